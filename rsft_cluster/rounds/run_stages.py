"""The stages of a run's rounds, each resuming at its artefact: pilot, plan, sample and accept, train, evaluate."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from rsft_cluster.acceptance.decide import selection_rules
from rsft_cluster.acceptance.piloted import piloted
from rsft_cluster.collection.plan import write_plan
from rsft_cluster.collection.seal import reasons
from rsft_cluster.config import SamplingConfig
from rsft_cluster.errors import ConfigError, NothingAcceptedError
from rsft_cluster.evaluation.figures import evaluation_passes
from rsft_cluster.policies.references import verify
from rsft_cluster.progress import Listener
from rsft_cluster.prompts.stored import write_prompts
from rsft_cluster.records import (
    AuditHead,
    Evaluation,
    Manifest,
    Pass,
    PilotChoice,
    Plan,
    PolicyRef,
    Totals,
    TrainingResult,
)
from rsft_cluster.review.audit.lines import head_of
from rsft_cluster.rounds.pilot import COLUMNS, choose
from rsft_cluster.rounds.stages import Examples, Site, evaluate, sample, train
from rsft_cluster.rounds.waves import sample_in_waves
from rsft_cluster.runs.run import Run, pilot_choice
from rsft_cluster.schemas import PROMPT
from rsft_cluster.store.layout import Folder

EVALUATION = "evaluation"
"""The random stream of evaluations: the same for all of a run, so that they pair."""


def with_pilot(run: Run, number: int, prompts: str, listener: Listener) -> Run:
    """Return the run as its round is to be done: with the temperature and threshold that a pilot finds best."""
    pilot, config = run.config.pilot, run.config
    if pilot is None:
        return run

    stream, site = f"pilot-{number:04d}", site_of(run, listener)

    def judged(temperature: float) -> pa.Table:
        folder = run.round(number).pilot(temperature)
        passes = (_sampled(config.sampling.model_copy(update={"temperature": temperature, "adaptive": None})),)
        plan = run.keep(folder.plan, Plan, lambda: _plan(run, folder, number, stream, first_prompts, passes))
        manifest = sample(
            config, plan, folder, selection_rules(config, number), site, metric_stage="pilot", decides=False
        )
        return pa.concat_tables([run.store.read_table(ref, columns=list(COLUMNS)) for ref in manifest.scores])

    first_prompts = run.round(number).pilot_prompts
    if not run.store.exists(run.round(number).pilot_choice):
        batches = run.store.first_rows(prompts, pilot.num_prompts)
        write_prompts(run.store, first_prompts, batches, PROMPT, unit_size=config.sampling.unit_size)
        with listener.stage(f"round {number}: pilot"):
            choice = choose(pilot, {t: judged(t) for t in pilot.temperatures})
        run.keep(run.round(number).pilot_choice, PilotChoice, lambda: choice)
        threshold = "" if choice.min_score is None else f", threshold {choice.min_score:g}"
        listener.note(f"round {number}: the pilot chose temperature {choice.temperature:g}{threshold}")
    return replace(run, config=piloted(config, pilot_choice(run.store, number)))


def plan_round(run: Run, number: int, prompts: str) -> Plan:
    """Return the plan of a round, for the incumbent; raises ConfigError where an import of it is not finished."""
    _refuse_unfinished_import(run, number)
    folder, passes = run.round(number), (_sampled(run.config.sampling),)
    return run.keep(folder.plan, Plan, lambda: _plan(run, folder, number, f"round-{number:04d}", prompts, passes))


def _refuse_unfinished_import(run: Run, number: int) -> None:
    folder = run.round(number)
    if run.store.exists(folder.imported) and not run.store.exists(folder.manifest):
        raise ConfigError(
            f"{run.store.uri}: round {number} is being brought in by `rsft import` and is not sealed; finish that first"
        )


def _sampled(sampling: SamplingConfig) -> Pass:
    return Pass(**{k: getattr(sampling, k) for k in Pass.model_fields})


def _plan(
    run: Run,
    folder: Folder,
    number: int,
    stream: str,
    prompts: str,
    passes: tuple[Pass, ...],
    policy: PolicyRef | None = None,
) -> Plan:
    """Plan a collection for a policy, by default the incumbent."""
    chosen = policy or run.log.entries()[-1].policy
    verify(chosen)
    return write_plan(
        folder,
        round_number=number,
        stream=stream,
        seed=run.config.seed,
        policy=chosen,
        passes=passes,
        prompts=prompts,
        fingerprint=run.fingerprint,
    )


def sample_round(run: Run, plan: Plan, listener: Listener) -> Manifest:
    """Sample, score and accept what a plan asks for; raises NothingAcceptedError when too little is kept."""
    _refuse_unfinished_import(run, plan.round)
    acceptance = run.config.acceptance
    folder = run.round(plan.round)
    selection, site = selection_rules(run.config, plan.round), site_of(run, listener)
    with listener.stage(f"round {plan.round}: sample and score"):
        if selection.scope == "round" or run.config.budget.is_set:

            def collect_wave(wave: Folder, wave_plan: Plan, earlier: Sequence[Totals]) -> Manifest:
                return sample(run.config, wave_plan, wave, selection, site, decides=False, earlier=earlier)

            manifest = sample_in_waves(run, plan, selection, collect_wave, listener)
        else:
            manifest = sample(run.config, plan, folder, selection, site)
    if manifest.totals.num_audited:
        listener.note(f"round {plan.round}: {manifest.totals.describe_audit()}")
    if run.control is None:
        run.keep(folder.audit, AuditHead, lambda: head_of(run.store, plan.round))
    if manifest.totals.num_accepted < acceptance.min_accepted:
        told = ", ".join(f"{count} x {reason!r}" for reason, count in reasons(folder, manifest).most_common(5))
        raise NothingAcceptedError(
            f"round {plan.round}: {manifest.totals.num_accepted} of {manifest.totals.num_candidates} candidates were "
            f"accepted, acceptance.min_accepted is {acceptance.min_accepted}; {plan.policy.name} stays. "
            f"Why candidates were rejected: {told}"
        )
    return manifest


def accumulated(run: Run, number: int) -> range:
    """Return the rounds whose accepted samples a round learns from."""
    return range(1 if run.config.training.accumulate else number, number + 1)


def train_round(run: Run, number: int, incumbent: PolicyRef, listener: Listener) -> TrainingResult:
    """Fine-tune on what the rounds so far accepted, from the base or from the incumbent as configured."""
    config = run.config.training

    def make() -> TrainingResult:
        manifests = [run.store.read_record(run.round(r).manifest, Manifest) for r in accumulated(run, number)]
        accepted = tuple(run.store.uri_of(ref.path) for m in manifests for ref in m.accepted if ref.num_rows)
        judged = tuple(
            (run.store.uri_of(candidates.path), run.store.uri_of(scores.path))
            for m in manifests
            for candidates, scores in zip(m.candidates, m.scores, strict=True)
        )
        initial = run.base if config.init == "base" else incumbent
        examples, site = Examples(accepted, judged), site_of(run, listener)
        return train(run.config, number, initial, examples, run.round(number), site, base=run.base)

    result = run.keep(run.round(number).training, TrainingResult, make)
    # Checkpoints hold whole optimizer states, and are of no use once the model is published.
    for folder in run.store.folders(run.round(number).checkpoints):
        for checkpoint in run.store.folders(folder):
            run.store.delete_folder(checkpoint)
    return result


def evaluate_policy(run: Run, number: int, policy: PolicyRef, held_out: str, listener: Listener) -> Evaluation:
    """Answer the held-out prompts with a policy and return the figures."""
    folder = run.round(number).evaluation
    passes = evaluation_passes(run.config.evaluation, run.config.sampling)

    def make() -> Evaluation:
        plan = run.keep(folder.plan, Plan, lambda: _plan(run, folder, number, EVALUATION, held_out, passes, policy))
        with listener.stage(f"round {number}: evaluate"):
            return evaluate(run.config, plan, folder, site_of(run, listener))

    return run.keep(folder.record, Evaluation, make)


def site_of(run: Run, listener: Listener) -> Site:
    """Return where the stages of a run work."""
    label = run.config.run if run.control is None else f"{run.config.run}/{run.arm.path}"
    return Site(run.lease, listener, label, run.trust_remote_code)

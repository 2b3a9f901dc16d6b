"""The stages of a round, each resuming at its artefact: plan, sample and accept, train, evaluate."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pyarrow as pa

from rsft_cluster.acceptance.decide import bind_rule, selecting
from rsft_cluster.acceptance.piloted import piloted
from rsft_cluster.acceptance.selecting import Selecting
from rsft_cluster.collection.actors import Work
from rsft_cluster.collection.collect import collect
from rsft_cluster.collection.pipeline import sampled, units_a_pass
from rsft_cluster.collection.plan import write_plan
from rsft_cluster.collection.seal import reasons
from rsft_cluster.config import AcceptanceConfig, SamplingConfig, TrainingConfig
from rsft_cluster.errors import ConfigError, NothingAcceptedError
from rsft_cluster.evaluation.figures import evaluate, evaluate_fairness, evaluation_passes
from rsft_cluster.metrics.exported import RayMeter
from rsft_cluster.plugins import bind
from rsft_cluster.policies.references import folder_digest, policy_spec, verify
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.progress import Listener
from rsft_cluster.prompts.stored import write_prompts
from rsft_cluster.records import (
    AuditHead,
    Evaluation,
    FairnessReport,
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
from rsft_cluster.rounds.waves import sample_in_waves
from rsft_cluster.runs.run import Run, pilot_choice
from rsft_cluster.schemas import PROMPT
from rsft_cluster.store.layout import Folder
from rsft_cluster.training.job import TrainingJob
from rsft_cluster.training.terms.configured import active_terms
from rsft_cluster.training.trainer import fine_tune

EVALUATION = "evaluation"
STAGES = {"round": "sample", "pilot": "pilot", EVALUATION: "evaluate"}
"""What a plan's stream says first -> how metrics name the stage."""


def with_pilot(run: Run, number: int, prompts: str, listener: Listener) -> Run:
    """Return the run as its round is to be done: with the temperature and threshold that a pilot finds best."""
    pilot, config = run.config.pilot, run.config
    if pilot is None:
        return run

    stream = f"pilot-{number:04d}"

    def judged(temperature: float) -> pa.Table:
        folder = run.round(number).pilot(temperature)
        passes = (_sampled(config.sampling.model_copy(update={"temperature": temperature, "adaptive": None})),)
        plan = run.keep(folder.plan, Plan, lambda: _plan(run, folder, number, stream, first_prompts, passes))
        manifest = _collect(run, folder, plan, selecting(config, number), listener, decides=False)
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
    how = selecting(run.config, plan.round)
    with listener.stage(f"round {plan.round}: sample and score"):
        if how.scope == "round" or run.config.budget.is_set:
            manifest = sample_in_waves(run, plan, how, partial(_collect_wave, run, how, listener), listener)
        else:
            manifest = _collect(run, folder, plan, how, listener)
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
        return train_policy(run, number, run.base if config.init == "base" else incumbent, accepted, listener, judged)

    result = run.keep(run.round(number).training, TrainingResult, make)
    # Checkpoints hold whole optimizer states, and are of no use once the model is published.
    for folder in run.store.folders(run.round(number).checkpoints):
        for checkpoint in run.store.folders(folder):
            run.store.delete_folder(checkpoint)
    return result


def train_policy(
    run: Run,
    number: int,
    initial: PolicyRef,
    accepted: tuple[str, ...],
    listener: Listener,
    judged: tuple[tuple[str, str], ...] = (),
) -> TrainingResult:
    """Fine-tune one policy on accepted samples and the replay file; the model lies in the round's folder.

    `judged` are the files of candidates and scores that a loss over rejected candidates reads.
    """
    config, folder = run.config.training, run.round(number)
    needs_base = any(term.needs_base for term in active_terms(config))
    for used in (initial, run.base) if needs_base else (initial,):
        verify(used)
    job = TrainingJob(
        name=f"{run.arm.path.replace('/', '-')}-{number:04d}",
        policy=_spec(run, initial, config),
        examples=accepted,
        replay=config.replay,
        config=config,
        seed=run.config.seed + number,
        output_uri=run.store.uri_of(folder.model),
        storage_uri=run.store.uri_of(folder.checkpoints),
        judged=judged,
        base=_spec(run, run.base, config) if needs_base else None,
        meter=RayMeter(_label(run)),
    )
    run.store.delete_folder(folder.model)
    with listener.stage(f"round {number}: train"):
        outcome = fine_tune(job, listener.training)
        listener.training(outcome.num_steps, outcome.num_steps, outcome.final_loss)
    name = f"round-{number:04d}"
    return TrainingResult(
        policy=PolicyRef(name=name, uri=job.output_uri, digest=folder_digest(job.output_uri)),
        started_from=initial.name,
        num_examples=outcome.num_examples,
        num_replayed=outcome.num_replayed,
        num_steps=outcome.num_steps,
        first_loss=outcome.first_loss,
        final_loss=outcome.final_loss,
    )


def evaluate_policy(run: Run, number: int, policy: PolicyRef, held_out: str, listener: Listener) -> Evaluation:
    """Answer the held-out prompts with a policy and return the figures."""
    folder, fairness = run.round(number).evaluation, run.config.fairness

    passes = evaluation_passes(run.config.evaluation, run.config.sampling)

    def make() -> Evaluation:
        planned = run.keep(folder.plan, Plan, lambda: _plan(run, folder, number, EVALUATION, held_out, passes, policy))
        with listener.stage(f"round {number}: evaluate"):
            # Candidates of an evaluation are judged and never learned from, so duplicates stay.
            acceptance = AcceptanceConfig(dedupe=False)
            how = Selecting(bind_rule(acceptance), acceptance, fairness=fairness and fairness.observing())
            manifest = _collect(run, folder, planned, how, listener, workers=run.config.evaluation.workers)
            if fairness:
                make_report = partial(evaluate_fairness, folder, planned, manifest, fairness)
                run.keep(folder.fairness, FairnessReport, make_report)
            return evaluate(folder, manifest, run.config.evaluation)

    return run.keep(folder.record, Evaluation, make)


def _spec(run: Run, policy: PolicyRef, config: SamplingConfig | TrainingConfig) -> PolicySpec:
    """Return a policy as the workers of a stage load it."""
    return policy_spec(
        policy,
        run.config.policy,
        trust_remote_code=run.trust_remote_code,
        threads=config.threads,
        gpu=config.num_gpus > 0,
    )


def _label(run: Run) -> str:
    """Return how metrics name a run, and an arm that is only compared."""
    return run.config.run if run.control is None else f"{run.config.run}/{run.arm.path}"


def _collect_wave(
    run: Run, how: Selecting, listener: Listener, folder: Folder, plan: Plan, earlier: Sequence[Totals]
) -> Manifest:
    return _collect(run, folder, plan, how, listener, decides=False, earlier=earlier)


def _collect(
    run: Run,
    folder: Folder,
    plan: Plan,
    how: Selecting,
    listener: Listener,
    *,
    workers: int | None = None,
    decides: bool = True,
    earlier: Sequence[Totals] = (),
) -> Manifest:
    sampling = run.config.sampling.model_copy(update={"workers": workers or run.config.sampling.workers})
    work = Work(
        store_uri=run.store.uri,
        folder=folder.path,
        session=run.lease.session,
        plan=plan,
        policy=_spec(run, plan.policy, sampling),
        generator=bind(sampling.generator, "generators", num_leading=1),
        scoring=run.config.scoring,
        selection=how,
        decides=decides,
        unit_timeout_s=sampling.unit_timeout_s,
        meter=RayMeter(_label(run), STAGES[plan.stream.partition("-")[0]]),
    )
    return collect(
        work,
        sampled(work, sampling),
        run.config.cluster,
        listener.collecting,
        run.lease.publish,
        earlier=earlier,
        units_a_pass=units_a_pass(sampling),
    )

"""The loop: improve the policy once, decide, and again. Resumes at the first artefact that is missing."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from rsft_cluster.acceptance import bind_rule
from rsft_cluster.acceptance.selecting import Selecting
from rsft_cluster.cluster import connect
from rsft_cluster.collection.collect import collect
from rsft_cluster.collection.plan import Folder, write_plan
from rsft_cluster.collection.seal import reasons
from rsft_cluster.collection.workers import Work
from rsft_cluster.config import AcceptanceConfig, FairnessConfig, RunConfig
from rsft_cluster.errors import NothingAcceptedError
from rsft_cluster.evaluation import evaluate, evaluate_fairness, evaluation_passes
from rsft_cluster.fingerprint import claim, fingerprint
from rsft_cluster.lease import hold
from rsft_cluster.plugins import bind
from rsft_cluster.policies import base_policy, folder_digest, policy_spec, verify
from rsft_cluster.records import (
    Decision,
    Evaluation,
    FairnessReport,
    Manifest,
    Pass,
    Plan,
    PolicyRef,
    TrainingResult,
)
from rsft_cluster.report.progress import Reporter
from rsft_cluster.report.tables import RoundSummary
from rsft_cluster.runs import (
    Run,
    open_store,
    round_of,
    summaries,
    summary,
    take_in,
)
from rsft_cluster.training.job import TrainingJob
from rsft_cluster.training.trainer import fine_tune

EVALUATION = "evaluation"


def run_rounds(
    config: RunConfig,
    reporter: Reporter,
    *,
    until: str = "promote",
    trust_remote_code: bool = False,
    import_paths: tuple[str, ...] = (),
) -> list[RoundSummary]:
    """Do every round of a config, going on where an earlier invocation stopped; return the rounds.

    `until` ends the invocation after that stage of the first unfinished round. A finished run is left as it is.
    """
    with opened(config, trust_remote_code=trust_remote_code) as run:
        found = summaries(run.store)
        if len(found) > config.rounds and all(r.stage == "done" for r in found):
            reporter.note(f"{run.store.uri}: all {config.rounds} rounds are done; nothing to do")
            return found
        with connect(config, import_paths):
            train_path, held_out_path = (i.path for i in take_in(run))
            start(run, held_out_path, reporter)
            for number in range(1, config.rounds + 1):
                # Only the first unfinished round is stopped on the way; those before it are passed over.
                stage = "promote" if summary(run.store, number).stage == "done" else until
                if not run_round(run, number, train_path, held_out_path, reporter, until=stage):
                    break
        return summaries(run.store)


@contextmanager
def opened(config: RunConfig, *, trust_remote_code: bool = False) -> Iterator[Run]:
    """Hold a config's run for the length of the block: store probed, lease held, fingerprint claimed."""
    store = open_store(config)
    base = base_policy(config.policy)
    with hold(store) as lease:
        mark = claim(store, fingerprint(config, base))
        store.create("config.json", config.model_dump_json(indent=1).encode())
        yield Run(config, store, lease, mark, base, trust_remote_code)


def start(run: Run, held_out: str, reporter: Reporter) -> None:
    """Round 0: evaluate the policy as it is, and make it the first incumbent."""
    evaluate_policy(run, 0, run.base, held_out, reporter)
    if run.log.current() is None:
        run.lease.check()
        run.log.append(
            action="start",
            policy=run.base,
            reason="the policy that the run starts from",
            round_number=0,
            epoch=run.lease.epoch,
        )


def run_round(
    run: Run, number: int, prompts: str, held_out: str, reporter: Reporter, *, until: str = "promote"
) -> bool:
    """Improve the policy once; the better of the two policies is the incumbent afterwards.

    Returns whether the round is complete: False when it was stopped after the stage `until`.
    """
    plan = plan_round(run, number, prompts)
    sample_round(run, plan, reporter)
    if until == "sample":
        return False
    challenger = train_round(run, number, plan.policy, reporter).policy
    if until == "train":
        return False
    evaluation = evaluate_policy(run, number, challenger, held_out, reporter)
    if until == "evaluate":
        return False
    path = run.round(number).at("decision.json")
    decision = run.keep(path, Decision, lambda: _decide(run, plan.policy, evaluation))
    _record(run, number, decision, challenger)
    reporter.note(f"round {number}: {'promoted' if decision.promoted else 'kept the old policy'}: {decision.reason}")
    return True


def plan_round(run: Run, number: int, prompts: str, policy: PolicyRef | None = None) -> Plan:
    """Return the plan of a round, for the incumbent or for the policy given."""

    def make() -> Plan:
        chosen = policy or run.log.entries()[-1].policy
        verify(chosen)
        sampling = run.config.sampling
        return write_plan(
            run.round(number),
            round_number=number,
            stream=f"round-{number:04d}",
            seed=run.config.seed,
            policy=chosen,
            passes=(Pass(**{k: getattr(sampling, k) for k in Pass.model_fields}),),
            prompts=prompts,
            fingerprint=run.fingerprint,
        )

    return run.keep(run.round(number).plan, Plan, make)


def sample_round(run: Run, plan: Plan, reporter: Reporter) -> Manifest:
    """Sample, score and accept what a plan asks for; raises NothingAcceptedError when too little is kept."""
    acceptance = run.config.acceptance
    folder = run.round(plan.round)
    with reporter.stage(f"round {plan.round}: sample and score"):
        manifest = _collect(run, folder, plan, acceptance, reporter)
    if manifest.totals.num_accepted < acceptance.min_accepted:
        told = ", ".join(f"{count} x {reason!r}" for reason, count in reasons(folder, manifest).most_common(5))
        raise NothingAcceptedError(
            f"round {plan.round}: {manifest.totals.num_accepted} of {manifest.totals.num_candidates} candidates were "
            f"accepted, acceptance.min_accepted is {acceptance.min_accepted}; {plan.policy.name} stays. "
            f"Why candidates were rejected: {told}"
        )
    return manifest


def train_round(run: Run, number: int, incumbent: PolicyRef, reporter: Reporter) -> TrainingResult:
    """Fine-tune on what the rounds so far accepted, from the base or from the incumbent as configured."""
    config = run.config.training

    def make() -> TrainingResult:
        rounds = range(1 if config.accumulate else number, number + 1)
        manifests = [run.store.read_record(run.round(r).manifest, Manifest) for r in rounds]
        accepted = tuple(run.store.uri_of(ref.path) for m in manifests for ref in m.accepted if ref.num_rows)
        return train_policy(run, number, run.base if config.init == "base" else incumbent, accepted, reporter)

    result = run.keep(run.round(number).at("training.json"), TrainingResult, make)
    # Checkpoints hold whole optimizer states, and are of no use once the model is published.
    for folder in run.store.folders(run.round(number).at("training")):
        for checkpoint in run.store.folders(folder):
            run.store.delete_folder(checkpoint)
    return result


def train_policy(
    run: Run, number: int, initial: PolicyRef, accepted: tuple[str, ...], reporter: Reporter
) -> TrainingResult:
    """Fine-tune one policy on accepted samples and the replay file; the model lies in the round's folder."""
    config, folder = run.config.training, run.round(number)
    verify(initial)
    spec = policy_spec(
        initial,
        run.config.policy,
        trust_remote_code=run.trust_remote_code,
        threads=config.threads,
        gpu=config.num_gpus > 0,
    )
    job = TrainingJob(
        name=f"{run.arm.replace('/', '-')}-{number:04d}",
        policy=spec,
        examples=accepted,
        replay=config.replay,
        config=config,
        seed=run.config.seed + number,
        output_uri=run.store.uri_of(folder.at("model")),
        storage_uri=run.store.uri_of(folder.at("training")),
    )
    run.store.delete_folder(folder.at("model"))
    with reporter.stage(f"round {number}: train"):
        outcome = fine_tune(job, reporter.training)
        reporter.training(outcome.num_steps, outcome.num_steps, outcome.final_loss)
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


def evaluate_policy(run: Run, number: int, policy: PolicyRef, held_out: str, reporter: Reporter) -> Evaluation:
    """Answer the held-out prompts with a policy and return the figures."""
    folder, fairness = run.evaluation(number), run.config.fairness

    def plan() -> Plan:
        verify(policy)
        return write_plan(
            folder,
            round_number=number,
            stream=EVALUATION,
            seed=run.config.seed,
            policy=policy,
            prompts=held_out,
            passes=evaluation_passes(run.config.evaluation, run.config.sampling),
            fingerprint=run.fingerprint,
        )

    def make() -> Evaluation:
        planned = run.keep(folder.plan, Plan, plan)
        with reporter.stage(f"round {number}: evaluate"):
            # Candidates of an evaluation are judged and never learned from, so duplicates stay.
            manifest = _collect(
                run,
                folder,
                planned,
                AcceptanceConfig(dedupe=False),
                reporter,
                workers=run.config.evaluation.workers,
                fairness=fairness and fairness.observing(),
            )
            if fairness:
                make_report = partial(evaluate_fairness, folder, planned, manifest, fairness)
                run.keep(folder.at("fairness.json"), FairnessReport, make_report)
            return evaluate(folder, manifest, run.config.evaluation)

    return run.keep(folder.at("evaluation.json"), Evaluation, make)


def _collect(
    run: Run,
    folder: Folder,
    plan: Plan,
    acceptance: AcceptanceConfig,
    reporter: Reporter,
    *,
    workers: int | None = None,
    fairness: FairnessConfig | None = None,
) -> Manifest:
    sampling = run.config.sampling.model_copy(update={"workers": workers or run.config.sampling.workers})
    spec = policy_spec(
        plan.policy,
        run.config.policy,
        trust_remote_code=run.trust_remote_code,
        threads=sampling.threads,
        gpu=sampling.num_gpus > 0,
    )
    work = Work(
        store_uri=run.store.uri,
        folder=folder.path,
        session=run.lease.session,
        plan=plan,
        policy=spec,
        generator=bind(sampling.generator, "generators", num_leading=1),
        scoring=run.config.scoring,
        how=Selecting(bind_rule(acceptance), acceptance, fairness=fairness),
        decides=True,
        unit_timeout_s=sampling.unit_timeout_s,
    )
    return collect(work, sampling, run.config.cluster, reporter.collecting)


def _decide(run: Run, incumbent: PolicyRef, challenger: Evaluation) -> Decision:
    path = run.evaluation(round_of(incumbent)).at("evaluation.json")
    old = run.store.read_record(path, Evaluation)
    rule = bind(run.config.promotion.rule, "promotion_rules", num_leading=2)
    decision = rule(run.store.read_table(old.per_prompt), run.store.read_table(challenger.per_prompt))
    return decision.model_copy(update={"incumbent": incumbent.name, "challenger": challenger.policy.name})


def _record(run: Run, number: int, decision: Decision, challenger: PolicyRef) -> None:
    """Add the decision to the promotions log, unless an earlier invocation already did."""
    entries = run.log.entries()
    if any(e.round == number and e.action in ("promote", "keep") for e in entries):
        return
    run.lease.check()
    run.log.append(
        action="promote" if decision.promoted else "keep",
        policy=challenger if decision.promoted else entries[-1].policy,
        reason=decision.reason,
        round_number=number,
        epoch=run.lease.epoch,
    )

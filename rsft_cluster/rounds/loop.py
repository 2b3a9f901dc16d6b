"""The loop: improve the policy once, decide, and again. Resumes at the first artefact that is missing."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rsft_cluster.acceptance.compatible import check_compatible
from rsft_cluster.cluster.connection import connect
from rsft_cluster.config import RunConfig
from rsft_cluster.errors import ConfigError
from rsft_cluster.evaluation.alarms import alarms
from rsft_cluster.metrics.exported import RayMeter
from rsft_cluster.metrics.meter import LAST_PROMOTION, PROMOTED, ROUND
from rsft_cluster.plugins import bind
from rsft_cluster.policies.references import base_policy
from rsft_cluster.progress import Listener
from rsft_cluster.records import Decision, Evaluation, PolicyRef
from rsft_cluster.rounds.controls import has_controls, run_controls
from rsft_cluster.rounds.run_stages import evaluate_policy, plan_round, sample_round, train_round, with_pilot
from rsft_cluster.rounds.trackers import with_trackers
from rsft_cluster.runs.fingerprint import claim_run, fingerprint
from rsft_cluster.runs.lease import hold
from rsft_cluster.runs.prompt_sets import ingest_prompts
from rsft_cluster.runs.run import Run, open_store, round_of
from rsft_cluster.runs.summary import RoundSummary, summaries, summary
from rsft_cluster.store.layout import RunLayout


def run_rounds(
    config: RunConfig,
    listener: Listener,
    *,
    until: str = "promote",
    trust_remote_code: bool = False,
    import_paths: tuple[str, ...] = (),
) -> list[RoundSummary]:
    """Do every round of a config, going on where an earlier invocation stopped; return the rounds.

    `until` ends the invocation after that stage of the first unfinished round. A finished run is left as it is.
    """
    listener = with_trackers(config, listener)
    with opened(config, trust_remote_code=trust_remote_code) as run:
        found = summaries(run.store)
        if len(found) > config.rounds and all(r.stage == "done" and has_controls(config, r) for r in found):
            listener.note(f"{run.store.uri}: all {config.rounds} rounds are done; nothing to do")
            return found
        with connect(config, import_paths):
            train_path, held_out_path = (i.path for i in ingest_prompts(run))
            start(run, held_out_path, listener)
            for number in range(1, config.rounds + 1):
                # Only the first unfinished round is stopped on the way; those before it are passed over.
                stage = "promote" if summary(run.store, number).stage == "done" else until
                if not run_round(run, number, train_path, held_out_path, listener, until=stage):
                    break
                run_controls(run, number, held_out_path, listener)
        return summaries(run.store)


@contextmanager
def opened(config: RunConfig, *, trust_remote_code: bool = False) -> Iterator[Run]:
    """Hold a config's run for the length of the block: store probed, lease held, fingerprint claimed."""
    check_compatible(config)
    store = open_store(config)
    if RunLayout(store).night_records():
        raise ConfigError(f"{store.uri}: holds nights of `rsft nightly`; give the run a `run` name of its own")
    base = base_policy(config.policy)
    with hold(store) as lease:
        mark = claim_run(store, fingerprint(config, base))
        store.create(RunLayout(store).config, config.model_dump_json(indent=1).encode())
        yield Run(config, store, lease, mark, base, trust_remote_code)


def start(run: Run, held_out: str, listener: Listener) -> None:
    """Round 0: evaluate the policy as it is, and make it the first incumbent."""
    evaluate_policy(run, 0, run.base, held_out, listener)
    if run.log.current() is None:
        reason = "the policy that the run starts from"
        run.log.append(run.lease, action="start", policy=run.base, reason=reason, round_number=0)


def run_round(
    run: Run, number: int, prompts: str, held_out: str, listener: Listener, *, until: str = "promote"
) -> bool:
    """Improve the policy once; the better of the two policies is the incumbent afterwards.

    Returns whether the round is complete: False when it was stopped after the stage `until`.
    """
    run = with_pilot(run, number, prompts, listener)
    plan = plan_round(run, number, prompts)
    sample_round(run, plan, listener)
    if until == "sample":
        return False
    challenger = train_round(run, number, plan.policy, listener).policy
    if until == "train":
        return False
    evaluation = evaluate_policy(run, number, challenger, held_out, listener)
    if until == "evaluate":
        return False
    decision = run.keep(run.round(number).decision, Decision, lambda: _decide(run, number, plan.policy, evaluation))
    _record(run, number, decision, challenger)
    for alarm in decision.alarms:
        listener.note(f"round {number}: alarm: {alarm}")
    listener.decided(number, summary(run.store, number).row())
    listener.note(f"round {number}: {'promoted' if decision.promoted else 'kept the old policy'}: {decision.reason}")
    return True


def _decide(run: Run, number: int, incumbent: PolicyRef, challenger: Evaluation) -> Decision:
    """Ask the promotion rule, then the health monitors, which may hold what it would promote."""
    config = run.config.promotion
    old = run.store.read_record(run.round(round_of(incumbent)).evaluation.record, Evaluation)
    rule = bind(config.rule, "promotion_rules", num_leading=2)
    decision = rule(run.store.read_table(old.per_prompt), run.store.read_table(challenger.per_prompt))
    history = [run.store.read_record(run.round(n).evaluation.record, Evaluation) for n in range(number)]
    found = alarms([*history, challenger], old, config.health)
    holding = [alarm.says for alarm in found if alarm.name in config.health.hold_on]
    changes: dict[str, object] = {"alarms": tuple(f"{alarm.name}: {alarm.says}" for alarm in found)}
    if decision.promoted and holding:
        reason = f"held, since {'; '.join(holding)} (the rule would promote: {decision.reason})"
        changes |= {"promoted": False, "reason": reason}
    names = {"incumbent": incumbent.name, "challenger": challenger.policy.name}
    return decision.model_copy(update={**names, **changes})


def _record(run: Run, number: int, decision: Decision, challenger: PolicyRef) -> None:
    """Add the decision to the promotions log, unless an earlier invocation already did."""
    entries = run.log.entries()
    if any(e.round == number and e.action in ("promote", "keep") for e in entries):
        return
    run.log.append(
        run.lease,
        action="promote" if decision.promoted else "keep",
        policy=challenger if decision.promoted else entries[-1].policy,
        reason=decision.reason,
        round_number=number,
    )
    meter = RayMeter(run.config.run)
    meter.put(ROUND, number)
    meter.put(PROMOTED, decision.promoted)
    if decision.promoted:
        meter.put(LAST_PROMOTION, time.time())

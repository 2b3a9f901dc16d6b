"""One night: take what is new, do the rounds, hand the policy on. Safe to start again at any point."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from rsft_cluster.config import RunConfig
from rsft_cluster.errors import ConfigError, DivergedError, NothingAcceptedError, RsftError
from rsft_cluster.nightly.dates import missed
from rsft_cluster.nightly.intake import ingest, mark_seen, stored_prompts
from rsft_cluster.nightly.limits import at_most
from rsft_cluster.nightly.notices import notify
from rsft_cluster.nightly.records import NightPlan, NightRecord, record_of, records
from rsft_cluster.nightly.retention import prune
from rsft_cluster.policies.references import BASE, base_policy
from rsft_cluster.progress import Listener
from rsft_cluster.records import PolicyRef
from rsft_cluster.rounds.loop import run_rounds
from rsft_cluster.runs.lease import Lease, hold
from rsft_cluster.runs.promotions import PromotionLog
from rsft_cluster.runs.run import open_store
from rsft_cluster.runs.summary import RoundSummary, summaries
from rsft_cluster.schemas import digest
from rsft_cluster.store import Store
from rsft_cluster.store.layout import NightLayout, RunLayout

MAX_STARTS = 3
"""Starts after which an earlier night that never came to its end is given up."""
EXIT_CODES = {"nothing_accepted": NothingAcceptedError.exit_code, "diverged": DivergedError.exit_code}


@dataclass(frozen=True)
class _Nights:
    """The nights of a config, while this process may write to them."""

    config: RunConfig
    store: Store
    lease: Lease
    listener: Listener
    trust_remote_code: bool
    import_paths: tuple[str, ...]

    @property
    def layout(self) -> RunLayout:
        return RunLayout(self.store)

    @property
    def log(self) -> PromotionLog:
        return PromotionLog(self.store)

    @property
    def current(self) -> PolicyRef:
        return self.log.entries()[-1].policy


def nightly(
    config: RunConfig,
    tonight: date,
    listener: Listener,
    *,
    trust_remote_code: bool = False,
    import_paths: tuple[str, ...] = (),
) -> NightRecord:
    """Run the night of a date, after unfinished earlier ones; return its record. A night that is over stays as it is.

    Raises AlreadyRunningError while another process is at a night of this config, ConfigError where a plain run lies
    in its folder; whatever else stops a night leaves it unfinished, to be resumed at the next start.
    """
    store = open_store(config)
    if store.folders(RunLayout(store).rounds.path):
        raise ConfigError(f"{store.uri}: holds a run of `rsft run`; give the nights a `run` name of their own")
    with hold(store) as lease:
        nights = _Nights(config, store, lease, listener, trust_remote_code, import_paths)
        record = record_of(store, str(tonight))
        if record is not None:
            listener.note(f"{store.uri}: the night of {tonight} is over ({record.outcome}): {record.reason}")
            return record
        _begin(nights)
        try:
            with at_most(config.nightly.max_hours):
                for earlier in _unfinished(store, tonight):
                    _finish_or_abandon(nights, earlier)
                return _run_night(nights, str(tonight))
        except RsftError as error:
            notify(config.nightly, {"date": str(tonight), "outcome": "failed", "reason": str(error)}, listener)
            raise


def _begin(nights: _Nights) -> None:
    """Store the config of the newest night and, before the first one, the policy that the nights start from."""
    nights.store.write(nights.layout.config, nights.config.model_dump_json(indent=1).encode())
    entries = nights.log.entries()
    if not entries:
        policy = base_policy(nights.config.policy).model_copy(update={"name": "base"})
        reason = "the policy that the nights start from"
        nights.log.append(nights.lease, action="start", policy=policy, reason=reason, round_number=0)
    elif entries[0].policy.uri != nights.config.policy.model:
        raise ConfigError(
            f"policy.model: {nights.config.policy.model}, but the nights in {nights.store.uri} started from "
            f"{entries[0].policy.uri}; put that back, or give the nights another `run` name"
        )


def _unfinished(store: Store, tonight: date) -> list[str]:
    """Return the nights before tonight that began and are not over."""
    begun = RunLayout(store).begun_nights()
    return [night.name for night in begun if night.name < str(tonight) and not store.exists(night.record)]


def _finish_or_abandon(nights: _Nights, night: str) -> None:
    """Finish an earlier night, or give it up."""
    store, layout = nights.store, nights.layout.night(night)
    num_starts, plan = len(store.files(layout.starts)), store.find_record(layout.plan, NightPlan)
    if plan is None:  # it took nothing yet
        store.delete_folder(layout.path)
        return
    reason = ""
    if nights.config.nightly.unfinished == "abandon":
        reason = "it was cut off, and nightly.unfinished is abandon"
    elif num_starts >= MAX_STARTS:
        reason = f"it was started {num_starts} times and never came to its end"
    elif plan.policy.digest != nights.current.digest:
        reason = f"it began from {plan.policy.name}, and {nights.current.name} is current now"
    if not reason:
        try:
            _run_night(nights, night)
        except (NothingAcceptedError, DivergedError) as error:  # recorded, and no reason to skip tonight
            nights.listener.note(f"{night}: {error}")
        except ConfigError as error:
            reason = f"it cannot be gone on with: {error}"
        else:
            return
    if reason:
        _close(nights, _night_record(nights, night, "abandoned", reason, plan), 0.0)


def _run_night(nights: _Nights, night: str) -> NightRecord:
    store, layout, start = nights.store, nights.layout.night(night), time.monotonic()
    plan = _plan(nights, layout)
    min_prompts = nights.config.nightly.min_prompts
    if plan.taken.num_prompts < min_prompts:
        reason = _nothing_new(plan, min_prompts)
        store.delete_folder(layout.path)  # its prompts wait for the next
        return _close(nights, _night_record(nights, night, "nothing_new", reason, plan), 0.0)
    store.create(layout.start(nights.lease.epoch), b"{}")
    try:
        rounds = run_rounds(
            config_of_night(nights.config, store, night, plan),
            nights.listener,
            trust_remote_code=nights.trust_remote_code,
            import_paths=nights.import_paths,
        )
    except (NothingAcceptedError, DivergedError) as error:
        outcome = "nothing_accepted" if isinstance(error, NothingAcceptedError) else "diverged"
        mark_seen(store, night, plan.taken)
        _close(nights, _night_record(nights, night, outcome, str(error), plan), time.monotonic() - start)
        raise
    outcome, reason = _promote(nights, layout)
    mark_seen(store, night, plan.taken)
    record = _night_record(nights, night, outcome, reason, plan, rounds)
    return _close(nights, record, time.monotonic() - start)


def _plan(nights: _Nights, night: NightLayout) -> NightPlan:
    store = nights.store
    if not store.exists(night.plan):
        over = [date.fromisoformat(record.date) for record in records(store)]
        left_out = missed(nights.config.nightly, max(over, default=None), date.fromisoformat(night.name))
        taken = ingest(nights.config, night)
        plan = NightPlan(policy=nights.current, taken=taken, missed=tuple(str(day) for day in left_out))
        nights.lease.publish(night.plan, plan)
    return store.read_record(night.plan, NightPlan)


def config_of_night(config: RunConfig, store: Store, night: str, plan: NightPlan) -> RunConfig:
    """Return the config of a night's run: from the current policy, on the prompts taken, with a seed of its own."""
    policy = {"model": plan.policy.uri, "revision": plan.policy.revision, "adapter": plan.policy.adapter}
    return config.model_copy(
        update={
            "run": night,
            "store": store.uri_of(RunLayout(store).nights),
            "seed": int(digest(config.seed, night)[:12], 16),
            "policy": config.policy.model_copy(update=policy),
            "prompts": stored_prompts(config.prompts, store, plan.taken),
        }
    )


def _promote(nights: _Nights, night: NightLayout) -> tuple[str, str]:
    """Make the policy that the night promoted current, unless it is already; return the outcome and the reason."""
    entry = PromotionLog(night.run()).entries()[-1]
    if entry.policy.name == BASE:
        return "kept", entry.reason
    policy = entry.policy.model_copy(update={"name": night.name})
    if not any(e.policy.name == night.name for e in nights.log.entries()):
        nights.log.append(nights.lease, action="promote", policy=policy, reason=entry.reason, round_number=entry.round)
    return "promoted", entry.reason


def _nothing_new(plan: NightPlan, min_prompts: int) -> str:
    supply = (
        f"{plan.taken.num_prompts} prompts that no earlier night took" if plan.taken.num_prompts else "no new prompt"
    )
    return f"{supply}, nightly.min_prompts is {min_prompts}; {plan.taken.num_seen:,} were taken before"


def _night_record(
    nights: _Nights, night: str, outcome: str, reason: str, plan: NightPlan, rounds: Sequence[RoundSummary] = ()
) -> NightRecord:
    known = {r.round: r for r in rounds or summaries(nights.layout.night(night).run())}
    before = known[0].evaluation if 0 in known else None
    after = known[max(known)].evaluation if len(known) > 1 else None
    return NightRecord.model_validate(
        {
            "date": night,
            "outcome": outcome,
            "reason": reason,
            "policy": nights.current.name,
            "num_prompts": plan.taken.num_prompts,
            "num_accepted": sum(r.manifest.totals.num_accepted for r in known.values() if r.manifest),
            "before": before and before.pass_at_1,
            "after": after and after.pass_at_1,
            "missed": plan.missed,
            "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )


def _close(nights: _Nights, record: NightRecord, seconds: float) -> NightRecord:
    """Publish the night's record, send the notice, and prune old nights."""
    record = record.model_copy(update={"hours": round(seconds / 3600, 3)})
    nights.lease.publish(nights.layout.night(record.date).record, record)
    nights.listener.note(f"{record.date}: {record.outcome}: {record.reason}")
    notify(nights.config.nightly, record.model_dump(mode="json"), nights.listener)
    prune(nights.store, nights.config.nightly, records(nights.store), nights.log.entries())
    return record

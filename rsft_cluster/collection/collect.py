"""Collect: pass after pass of the pipeline until every unit of the plan has a commit, then the seal.

The store decides what is done; Ray executes. `collect` may be killed at any point and called again: it goes on with
the units that have no commit, and the sealed outcome is the same as if nothing had happened.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from ray.exceptions import RayError

from rsft_cluster.acceptance.decide import target_of
from rsft_cluster.collection.actors import Work
from rsft_cluster.collection.pipeline import run_pass
from rsft_cluster.collection.plan import Survey, is_done, planned_units, quarantine, split, survey
from rsft_cluster.collection.seal import seal
from rsft_cluster.config import ClusterConfig, SamplingConfig, most
from rsft_cluster.errors import RsftError, StageError, UnitFailedError
from rsft_cluster.metrics.meter import ACCEPTANCE_RATIO, PASS_RATIO, PROMPTS_LEFT, SOLVE_RATIO, UNITS_LEFT, Meter
from rsft_cluster.progress import Progress
from rsft_cluster.records import Manifest, Totals, Unit
from rsft_cluster.scoring.error_limits import ErrorBudget
from rsft_cluster.store.layout import Folder

UNITS_A_PASS = 4096
"""Units given to Ray Data at once, or so many of each worker as UNITS_A_WORKER says if these are more: bounds the
driver's memory however large the plan."""
UNITS_A_WORKER = 128
"""At the end of a pass workers run out of work, and the next one loads its models again: once in so many units."""
UNITS_AT_ONCE = 8
"""Units that a worker decodes together, where it may: rows idle once in so many units."""


def collect(
    work: Work,
    sampling: SamplingConfig,
    cluster: ClusterConfig,
    report: Callable[[Progress], None],
    earlier: Sequence[Totals] = (),
) -> Manifest:
    """Bring every unit of the plan to a commit and return the sealed manifest.

    `earlier` are the totals of the same round's waves before: the share of erroneous verdicts is that of all together.
    Raises a failure of the store or of ours at once, a generator's when no unit ever succeeded, and StageError when
    verdicts fail too often or pass after pass ends with nothing done.
    """
    folder = work.open()
    if folder.store.exists(folder.manifest):
        return folder.store.read_record(folder.manifest, Manifest)
    progress = Progress(work.plan.num_prompts)
    budget = _error_budget(work, earlier)
    num_idle = 0
    max_units = max(UNITS_A_PASS, UNITS_A_WORKER * most(sampling.workers))
    while chosen := _next_units(folder, work, cluster, progress, report, max_units):
        units, are_fresh = chosen
        num_done = progress.num_prompts_done
        # What was begun before may have met a crash: alone, a unit takes no other one with it.
        at_once = UNITS_AT_ONCE if are_fresh and sampling.mixes_units else 1
        work.meter.put(UNITS_LEFT, len(units))
        done = _told(run_pass(work, units, sampling, at_once=at_once), work.meter, len(units), progress)
        _one_pass(done, progress, budget, report)
        num_idle = 0 if progress.num_prompts_done > num_done else num_idle + 1
        if num_idle >= cluster.max_idle_passes:
            raise StageError(
                f"{folder.store.uri_of(folder.path)}: {len(units)} units are still unfinished after {num_idle} passes "
                f"without one done; the first is {units[0].unit}. "
                + (f"Last failure: {progress.failures[-1]}" if progress.failures else "Their workers died.")
            )
    manifest = seal(folder, work.plan, target=target_of(work.how.rule), generator=work.generator.describe())
    whole = _error_budget(work, earlier)
    totals = manifest.totals
    whole.spend(num_verdicts=totals.num_verdicts, num_errors=totals.num_errors, first=progress.first_error, final=True)
    folder.store.create(folder.manifest, manifest.to_json())
    _tell_ratios(work.meter, totals)
    return folder.store.read_record(folder.manifest, Manifest)


def _told(done: Iterator[dict[str, Any]], meter: Meter, num_units: int, progress: Progress) -> Iterator[dict[str, Any]]:
    """Pass rows on, and say how much of the pass and of the plan is left after each."""
    for row in done:
        yield row
        num_units -= 1
        meter.put(UNITS_LEFT, num_units)
        meter.put(PROMPTS_LEFT, progress.num_prompts - progress.num_prompts_done)


def _tell_ratios(meter: Meter, totals: Totals) -> None:
    num_candidates, num_prompts = max(1, totals.num_candidates), max(1, totals.num_prompts)
    meter.put(PASS_RATIO, totals.num_passed / num_candidates)
    meter.put(SOLVE_RATIO, totals.num_solved / num_prompts)
    meter.put(ACCEPTANCE_RATIO, totals.num_accepted / num_candidates)


def _error_budget(work: Work, earlier: Sequence[Totals]) -> ErrorBudget:
    budget = ErrorBudget(max_error_rate=work.scoring.max_error_rate)
    for totals in earlier:
        budget.spend(num_verdicts=totals.num_verdicts, num_errors=totals.num_errors)
    return budget


def _next_units(
    folder: Folder,
    work: Work,
    cluster: ClusterConfig,
    progress: Progress,
    report: Callable[[Progress], None],
    max_units: int,
) -> tuple[list[Unit], bool] | None:
    """Return the units to do next and whether they were never begun, None when all are done.

    Counts what earlier invocations did at the first call.
    """
    state = survey(folder)
    units = list(islice(_unfinished(folder, work, state, cluster), max_units))
    fresh = [unit for unit in units if unit.unit not in state.attempts]
    if not progress.num_prompts_done:
        progress.num_prompts_found = progress.num_prompts_done = _num_done(folder, work, state)
        report(progress)
    return (fresh or units, bool(fresh)) if units else None


def _unfinished(folder: Folder, work: Work, state: Survey, cluster: ClusterConfig) -> Iterator[Unit]:
    """Yield what needs work, in order. Units that keep crashing are halved; single prompts among them end here."""
    stack: list[Unit] = []
    for planned in planned_units(folder, work.plan):
        stack.extend(reversed(list(state.leaves(planned))))
        while stack:
            unit = stack.pop()
            if is_done(state, unit.unit, session=work.session):
                continue
            num_crashes = state.num_crashes(unit.unit, work.session)
            # A part of a split unit has its parent's crashes behind it, so it is given fewer of its own.
            allowed = cluster.crashes_before_split if "-" not in unit.unit else 2
            if num_crashes < allowed:
                yield unit
            elif unit.num_prompts == 1:
                quarantine(folder, unit, num_crashes=num_crashes)
            else:
                split(folder, unit, num_crashes=num_crashes)
                state.splits.add(unit.unit)
                stack.extend(reversed(list(state.leaves(unit))))


def _one_pass(
    done: Iterator[dict[str, Any]], progress: Progress, budget: ErrorBudget, report: Callable[[Progress], None]
) -> None:
    failures: list[RsftError] = []
    try:
        for row in done:
            if row["failure"] is not None:
                failures.append(pickle.loads(row["failure"]))
                continue
            _count(progress, row)
            report(progress)
            first = (row["failing_constraint"], row["first_error"]) if row["num_errors"] else None
            progress.first_error = progress.first_error or first
            budget.spend(num_verdicts=row["num_verdicts"], num_errors=row["num_errors"], first=first)
    except RayError as error:
        failures.append(_root_cause(error))
    progress.failures += map(str, failures)
    for failure in failures:
        # A generator that fails at some units has met a poison prompt; one that never succeeded is broken itself.
        if not isinstance(failure, UnitFailedError) or not progress.num_prompts_done:
            raise failure


def _count(progress: Progress, row: dict[str, int]) -> None:
    progress.num_prompts_done += row["num_prompts"]
    progress.num_solved += row["num_solved"]
    progress.num_candidates += row["num_candidates"]
    progress.num_passed += row["num_passed"]
    progress.num_accepted += row["num_accepted"]
    progress.num_tokens += row["num_tokens"]
    progress.sampling_s += row["sampling_s"]


def _num_done(folder: Folder, work: Work, state: Survey) -> int:
    return sum(
        leaf.num_prompts
        for unit in planned_units(folder, work.plan)
        for leaf in state.leaves(unit)
        if is_done(state, leaf.unit, session=work.session)
    )


def _root_cause(error: BaseException) -> RsftError:
    """Return the error of ours behind a chain of Ray's, or a StageError that tells the chain's end."""
    seen: BaseException | None = error
    last = error
    while seen is not None:
        if isinstance(seen, RsftError):
            return seen
        last = seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return StageError(str(last).strip() or repr(last))

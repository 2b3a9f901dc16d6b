"""Collect: the units of a plan brought to commits by a supplier, then the seal.

The store decides what is done. `collect` may be killed at any point and called again: it goes on with the units that
have no commit, and the sealed outcome is the same as if nothing had happened.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from rsft_cluster.acceptance.decide import target_of
from rsft_cluster.collection.actors import Work
from rsft_cluster.collection.driver import Supplier, Tally, UnitsLeft, bring_to_commits
from rsft_cluster.collection.plan import Survey, is_done, planned_units, quarantine, split, survey
from rsft_cluster.collection.seal import seal
from rsft_cluster.config import ClusterConfig
from rsft_cluster.metrics.meter import ACCEPTANCE_RATIO, PASS_RATIO, SOLVE_RATIO, Meter
from rsft_cluster.progress import Progress
from rsft_cluster.records import Manifest, Record, Totals, Unit
from rsft_cluster.store.layout import Folder

UNITS_A_PASS = 4096
"""Units given to a supplier at once: bounds the driver's memory however large the plan."""


def collect(
    work: Work,
    supply: Supplier[Unit],
    cluster: ClusterConfig,
    report: Callable[[Progress], None],
    publish: Callable[[str, Record], object],
    *,
    earlier: Sequence[Totals] = (),
    units_a_pass: int = UNITS_A_PASS,
) -> Manifest:
    """Bring every unit of the plan to a commit and return the sealed manifest.

    `publish` puts a record under the run's lease. `earlier` are the totals of the same round's waves before: the share
    of erroneous verdicts is that of all together. Raises as `bring_to_commits` does.
    """
    folder = work.open()
    if folder.store.exists(folder.manifest):
        return folder.store.read_record(folder.manifest, Manifest)
    tally = Tally(
        work.plan.num_prompts,
        report,
        max_error_rate=work.scoring.max_error_rate,
        meter=work.meter,
        earlier=earlier,
    )

    tally.resume(_num_prompts_done(folder, work, survey(folder)))

    def left() -> UnitsLeft[Unit] | None:
        return _left(folder, work, cluster, units_a_pass)

    name = folder.store.uri_of(folder.path)
    bring_to_commits(left, supply, tally, name=name, max_idle_passes=cluster.max_idle_passes)
    manifest = seal(folder, work.plan, target=target_of(work.selection.rule), generator=work.generator.describe())
    totals = manifest.totals
    tally.check(num_verdicts=totals.num_verdicts, num_errors=totals.num_errors)
    publish(folder.manifest, manifest)
    _tell_ratios(work.meter, totals)
    return folder.store.read_record(folder.manifest, Manifest)


def _left(folder: Folder, work: Work, cluster: ClusterConfig, max_units: int) -> UnitsLeft[Unit] | None:
    """Return the units to do next, those that were never begun before all others; None when all are done."""
    state = survey(folder)
    units = list(islice(_unfinished(folder, work, state, cluster), max_units))
    if not units:
        return None
    fresh = [unit for unit in units if unit.unit not in state.attempts]
    chosen = fresh or units
    return UnitsLeft(chosen, bool(fresh), chosen[0].unit)


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


def _num_prompts_done(folder: Folder, work: Work, state: Survey) -> int:
    return sum(
        leaf.num_prompts
        for unit in planned_units(folder, work.plan)
        for leaf in state.leaves(unit)
        if is_done(state, leaf.unit, session=work.session)
    )


def _tell_ratios(meter: Meter, totals: Totals) -> None:
    num_candidates, num_prompts = max(1, totals.num_candidates), max(1, totals.num_prompts)
    meter.put(PASS_RATIO, totals.num_passed / num_candidates)
    meter.put(SOLVE_RATIO, totals.num_solved / num_prompts)
    meter.put(ACCEPTANCE_RATIO, totals.num_accepted / num_candidates)

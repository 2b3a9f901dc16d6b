"""The driver of every collection: units that have no commit go to a supplier, pass after pass, until none is left.

A supplier brings units to commits and says what came of each: candidates are sampled on a cluster, imported, or stored
ones are judged again. Which units are left is read from the store, so whatever is killed goes on where it stopped.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from rsft_cluster.errors import RsftError, StageError, UnitFailedError
from rsft_cluster.metrics.meter import PROMPTS_LEFT, Meter
from rsft_cluster.progress import Progress
from rsft_cluster.records import Totals
from rsft_cluster.scoring.error_limits import ErrorBudget

U = TypeVar("U")
U_contra = TypeVar("U_contra", contravariant=True)


@dataclass(frozen=True)
class UnitCounts:
    """What came of a unit that was committed."""

    num_prompts: int
    num_candidates: int
    num_passed: int
    num_tokens: int
    num_verdicts: int
    num_errors: int
    num_solved: int = 0
    num_accepted: int = 0
    first_error: tuple[str, str] | None = None
    """Constraint and traceback of the first verdict that is an error."""
    sampling_s: float = 0.0
    remarks: tuple[str, ...] = ()
    """What the generator said about how it decodes."""


class Supplier(Protocol[U_contra]):
    """Brings units to commits."""

    def __call__(self, units: Sequence[U_contra], *, are_fresh: bool) -> Iterator[UnitCounts | RsftError]:
        """Yield what came of each unit, or why it failed, as they are done; one that is lost is left out.

        `are_fresh` says that none of the units was begun before.
        """
        ...


@dataclass(frozen=True)
class UnitsLeft(Generic[U]):
    """Some units without a commit."""

    units: Sequence[U]
    are_fresh: bool
    """Whether none of them was begun before."""
    first: str
    """Name of the first one."""


class Tally:
    """The counts of a collection while it goes on: shown to whoever listens, and held against the budget of errors."""

    def __init__(
        self,
        num_prompts: int,
        report: Callable[[Progress], None],
        *,
        max_error_rate: float,
        meter: Meter,
        earlier: Sequence[Totals] = (),
    ) -> None:
        """`earlier` are totals whose verdicts count towards the same share of errors."""
        self.progress = Progress(num_prompts)
        self._report, self._meter = report, meter
        self._max_error_rate, self._earlier = max_error_rate, earlier
        self._budget = self._fresh_budget()

    def resume(self, num_prompts: int) -> None:
        """Take in the prompts that earlier invocations had committed."""
        self.progress.num_prompts_found = self.progress.num_prompts_done = num_prompts
        self._report(self.progress)

    def add(self, unit: UnitCounts) -> None:
        """Take in a unit; raises StageError when too many verdicts are errors."""
        progress = self.progress
        progress.num_prompts_done += unit.num_prompts
        progress.num_solved += unit.num_solved
        progress.num_candidates += unit.num_candidates
        progress.num_passed += unit.num_passed
        progress.num_accepted += unit.num_accepted
        progress.num_tokens += unit.num_tokens
        progress.sampling_s += unit.sampling_s
        progress.first_error = progress.first_error or unit.first_error
        progress.remarks |= dict.fromkeys(unit.remarks)
        self._meter.put(PROMPTS_LEFT, progress.num_prompts - progress.num_prompts_done)
        self._report(progress)
        self._budget.spend(num_verdicts=unit.num_verdicts, num_errors=unit.num_errors, first=unit.first_error)

    def check(self, *, num_verdicts: int, num_errors: int) -> None:
        """Raise StageError when too many verdicts of the whole collection are errors, whoever committed them."""
        budget, first = self._fresh_budget(), self.progress.first_error
        budget.spend(num_verdicts=num_verdicts, num_errors=num_errors, first=first, final=True)

    def _fresh_budget(self) -> ErrorBudget:
        budget = ErrorBudget(max_error_rate=self._max_error_rate)
        for totals in self._earlier:
            budget.spend(num_verdicts=totals.num_verdicts, num_errors=totals.num_errors)
        return budget


def bring_to_commits(
    left: Callable[[], UnitsLeft[U] | None], supply: Supplier[U], tally: Tally, *, name: str, max_idle_passes: int
) -> None:
    """Supply units until none is left; `left` returns some that have no commit, None where all have one.

    Raises a failure of the store or of ours at once, a generator's when no unit ever succeeded, and StageError when
    verdicts fail too often or `max_idle_passes` passes end with nothing done.
    """
    progress, num_idle = tally.progress, 0
    while chosen := left():
        num_done = progress.num_prompts_done
        _one_pass(supply(chosen.units, are_fresh=chosen.are_fresh), tally)
        num_idle = 0 if progress.num_prompts_done > num_done else num_idle + 1
        if num_idle >= max_idle_passes:
            raise StageError(
                f"{name}: {len(chosen.units)} units are still unfinished after {num_idle} passes without one done; the "
                f"first is {chosen.first}. "
                + (f"Last failure: {progress.failures[-1]}" if progress.failures else "Their workers died.")
            )


def _one_pass(outcomes: Iterable[UnitCounts | RsftError], tally: Tally) -> None:
    failures: list[RsftError] = []
    for outcome in outcomes:
        if isinstance(outcome, RsftError):
            failures.append(outcome)
        else:
            tally.add(outcome)
    tally.progress.failures += map(str, failures)
    for failure in failures:
        # A generator that fails at some units has met a poison prompt; one that never succeeded is broken itself.
        if not isinstance(failure, UnitFailedError) or not tally.progress.num_prompts_done:
            raise failure

"""Limits on the verdicts that are errors: of a stage as a whole, and of one constraint while an actor still judges."""

from collections import Counter
from collections.abc import Mapping, Sequence

from rsft_cluster.config import ScoringConfig
from rsft_cluster.constraints.outcomes import Outcome
from rsft_cluster.errors import StageError

MAX_TRACEBACKS = 3
"""Tracebacks, of different constraints, that the error holds when a stage stops."""
MIN_VERDICTS = 20
"""Fewer verdicts than this are no basis for a rate while a stage still runs."""


class ErrorBudget:
    """Counts the verdicts of a stage that are errors; `spend` raises StageError when they are too many."""

    def __init__(self, *, max_error_rate: float) -> None:
        self._max_error_rate = max_error_rate
        self._num_verdicts = 0
        self._num_errors = 0
        self._first: dict[str, str] = {}

    def spend(
        self, *, num_verdicts: int, num_errors: int, first: tuple[str, str] | None = None, final: bool = False
    ) -> None:
        """Add a unit's counts; `first` is the constraint and the traceback of its first error.

        The rate is judged from MIN_VERDICTS on, and in any case when `final`.
        """
        self._num_verdicts += num_verdicts
        self._num_errors += num_errors
        if first is not None and len(self._first) < MAX_TRACEBACKS:
            self._first.setdefault(*first)
        if self._num_verdicts < MIN_VERDICTS and not final:
            return
        if self._num_errors > self._max_error_rate * self._num_verdicts:
            raise StageError(
                f"{self._num_errors} of {self._num_verdicts} verdicts are errors, more than "
                f"scoring.max_error_rate = {self._max_error_rate:g} allows. {_first_errors(self._first)}"
            )


class CircuitBreaker:
    """Stops an actor when most verdicts of one constraint are errors.

    A constraint that is plainly broken would otherwise let every candidate wait for its deadline.
    """

    def __init__(self, names: Sequence[str], *, max_error_rate: float) -> None:
        self._names = names
        self._max_error_rate = max_error_rate
        self._num_verdicts, self._num_errors = Counter[int](), Counter[int]()
        self._first: dict[str, str] = {}

    def observe(self, number: int, outcome: Outcome) -> None:
        """Count an outcome of the constraint with this index; raises StageError when its errors are too many."""
        self._num_verdicts[number] += 1
        if outcome.error is None:
            return
        self._num_errors[number] += 1
        name = self._names[number]
        self._first.setdefault(name, outcome.error)
        errors, verdicts = self._num_errors[number], self._num_verdicts[number]
        if errors >= MIN_VERDICTS and errors > max(0.5, self._max_error_rate) * verdicts:
            raise StageError(
                f"{errors} of {verdicts} verdicts of {name} are errors, more than scoring.max_error_rate = "
                f"{self._max_error_rate:g} allows. {_first_errors({name: self._first[name]})}"
            )


def _first_errors(first: Mapping[str, str]) -> str:
    """Return the first traceback of each constraint, for whoever mends it."""
    if not first:
        return "No traceback was recorded"
    (constraint, error), *more = first.items()
    return "\n".join(
        [f"The first one, of constraint {constraint!r}:\n{error}"]
        + [f"The first one of constraint {name!r}:\n{trace}" for name, trace in more]
    )


def too_many_errors(num_errors: int, num_verdicts: int, scoring: ScoringConfig) -> bool:
    """Return whether a unit's commit counts only for the invocation that made it: the next one judges it again."""
    return num_errors > scoring.max_error_rate * num_verdicts

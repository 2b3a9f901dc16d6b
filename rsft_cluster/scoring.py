"""Scoring: every constraint judges every candidate, CANDIDATE -> verdicts, score, passed, reason.

`Judge` is the one boundary where a failure of a constraint becomes data: an error verdict with its
traceback, never a score. `ErrorBudget` ends the run when such errors are more than a few. Pure: knows no
engine and no storage.
"""

import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from time import perf_counter
from typing import Any

import numpy as np

from rsft_cluster import config
from rsft_cluster.constraints.base import BatchConstraint, Candidate, Verdict
from rsft_cluster.errors import PluginError, StageError
from rsft_cluster.plugins import bind

MAX_REASON_CHARACTERS = 500
MAX_ERROR_CHARACTERS = 8000
MIN_VERDICTS = 20
"""Fewer verdicts than this say nothing of a rate while a stage still runs."""


@dataclass(frozen=True)
class Judgement:
    """What all constraints together say of one candidate."""

    verdicts: list[dict[str, object]]
    """One a constraint, in the config's order; the fields of schemas.VERDICT."""
    score: float | None
    """Weighted mean of the verdicts; None after an error in a constraint that counts."""
    passed: bool | None
    """Whether every required constraint passed; None with the score."""
    reason: str

    @property
    def errors(self) -> list[tuple[str, str]]:
        """The constraints that failed to judge, each with its traceback."""
        return [(str(v["constraint"]), str(v["error"])) for v in self.verdicts if v["error"] is not None]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A verdict or an error, exactly one of the two."""

    verdict: Verdict | None
    duration_s: float
    reason: str
    error: str | None = None


class Judge:
    """All constraints of a run, bound and built, ready to judge.

    Building it is cheap and is also the check that constraints and their parameters are usable: it raises
    ConfigError, naming the constraint. Build one in each scoring worker.
    """

    def __init__(self, constraints: Sequence[config.Constraint]) -> None:
        self._constraints = tuple(constraints)
        self._built = [_build(constraint) for constraint in constraints]

    def judge(self, candidates: Sequence[Candidate]) -> list[Judgement]:
        """Return one judgement a candidate, in the same order."""
        columns = [_outcomes(built, candidates) for built in self._built]
        return [self._combine([column[i] for column in columns]) for i in range(len(candidates))]

    def _combine(self, outcomes: Sequence[_Outcome]) -> Judgement:
        pairs = list(zip(self._constraints, outcomes, strict=True))
        rows = [_row(constraint, outcome) for constraint, outcome in pairs]
        for constraint, outcome in pairs:
            if outcome.verdict is None and (constraint.required or constraint.weight > 0):
                return Judgement(rows, None, None, _text(f"error in {constraint.name}: {outcome.reason}"))
        verdicts = [(c, outcome.verdict) for c, outcome in pairs if outcome.verdict is not None]
        score, passed = combined([(c.required, c.weight, v.score, v.passed) for c, v in verdicts])
        if passed:
            return Judgement(rows, score, passed, "passed")
        constraint, verdict = next((c, v) for c, v in verdicts if c.required and not v.passed)
        return Judgement(rows, score, passed, _text(f"{constraint.name}: {verdict.reason or 'did not pass'}"))


def combined(verdicts: Sequence[tuple[bool, float, float, bool]]) -> tuple[float, bool]:
    """Return score and passed, given (required, weight, score, passed) of each constraint."""
    passed = all(has_passed for required, _, _, has_passed in verdicts if required)
    total = sum(weight for _, weight, _, _ in verdicts)
    weighted = sum(weight * score for _, weight, score, _ in verdicts)
    # min: the rounding of a sum of weights may lie an ulp above 1
    return (min(1.0, weighted / total) if total > 0 else float(passed)), passed


class ErrorBudget:
    """How many verdicts of a stage were errors; `spend` raises StageError when they are too many."""

    def __init__(self, *, max_error_rate: float) -> None:
        self._max_error_rate = max_error_rate
        self._num_verdicts = 0
        self._num_errors = 0
        self._first: tuple[str, str] | None = None

    def spend(
        self, *, num_verdicts: int, num_errors: int, first: tuple[str, str] | None = None, final: bool = False
    ) -> None:
        """Add a unit's counts; `first` is the constraint and the traceback of its first error.

        The rate is judged from MIN_VERDICTS on, and in any case when `final`.
        """
        self._num_verdicts += num_verdicts
        self._num_errors += num_errors
        self._first = self._first or first
        if self._num_verdicts < MIN_VERDICTS and not final:
            return
        if self._num_errors > self._max_error_rate * self._num_verdicts:
            constraint, error = self._first or ("not recorded", "no traceback was recorded")
            raise StageError(
                f"{self._num_errors} of {self._num_verdicts} verdicts are errors, more than "
                f"scoring.max_error_rate = {self._max_error_rate:g} allows. The first one, of constraint "
                f"{constraint!r}:\n{error}"
            )


def as_verdict(value: object) -> Verdict:
    """Return what a constraint returned as a verdict; raises an error as it is, TypeError or ValueError for others."""
    match value:
        case Verdict(passed=bool(), reason=str()):
            return value
        case Exception():
            raise value
        case Verdict():
            raise TypeError(f"passed must be a bool and reason a string in {value!r}")
        case bool() | np.bool_():
            return Verdict.of(bool(value))
        case Real() if math.isfinite(score := float(value)) and 0.0 <= score <= 1.0:
            return Verdict(score, score == 1.0, "" if score == 1.0 else f"score {score:g} is below 1")
        case Real():
            raise ValueError(f"a score is finite and in [0, 1], not {value!r}")
        case _:
            raise TypeError(f"a constraint returns a bool, a float or a Verdict, not {type(value).__name__}")


def _build(constraint: config.Constraint) -> BatchConstraint | Callable[[Candidate], object]:
    bound = bind(constraint, "constraints", num_leading=1)
    attribute = bound.load()
    if not isinstance(attribute, type):
        return partial(attribute, **bound.params)
    try:
        built = attribute(**bound.params)
    except (ValueError, TypeError, OSError) as error:
        raise PluginError(f"constraint {constraint.name!r} cannot be built: {error}") from error
    if not isinstance(built, BatchConstraint):
        raise PluginError(f"constraint {constraint.name!r}: class {bound.use} has no judge(candidates)")
    return built


def _outcomes(built: Any, candidates: Sequence[Candidate]) -> list[_Outcome]:
    if isinstance(built, BatchConstraint):
        return _batch(built, candidates)
    return [_single(partial(built, candidate)) for candidate in candidates]


def _single(judge: Callable[[], object]) -> _Outcome:
    start = perf_counter()
    try:
        verdict = as_verdict(judge())
    except (
        Exception,
        SystemExit,
    ) as error:  # the boundary where errors become data; libraries do call sys.exit
        return _failure(error, perf_counter() - start)
    return _Outcome(verdict, perf_counter() - start, verdict.reason)


def _batch(built: BatchConstraint, candidates: Sequence[Candidate]) -> list[_Outcome]:
    """Judge a batch; where that raises, one by one, so that the offender alone gets the error."""
    if not candidates:
        return []
    start = perf_counter()
    try:
        values = list(built.judge(candidates))
    except (Exception, SystemExit) as error:  # the same boundary as in _single
        if len(candidates) > 1:
            return [outcome for candidate in candidates for outcome in _batch(built, [candidate])]
        return [_failure(error, perf_counter() - start)]
    duration_s = (perf_counter() - start) / len(candidates)
    if len(values) != len(candidates):
        wrong = ValueError(f"judge returned {len(values)} verdicts for {len(candidates)} candidates")
        return [_failure(wrong, duration_s)] * len(candidates)
    outcomes = [_single(partial(as_verdict, value)) for value in values]
    return [_Outcome(o.verdict, duration_s, o.reason, o.error) for o in outcomes]


def _failure(error: BaseException, duration_s: float) -> _Outcome:
    trace = "".join(traceback.format_exception(error))
    return _Outcome(None, duration_s, f"{type(error).__name__}: {error}", trace[-MAX_ERROR_CHARACTERS:])


def _row(constraint: config.Constraint, outcome: _Outcome) -> dict[str, object]:
    verdict = outcome.verdict
    return {
        "constraint": constraint.name,
        "score": float(verdict.score) if verdict else None,
        "passed": verdict.passed if verdict else None,
        "reason": _text(outcome.reason),
        "error": _storable(outcome.error) if outcome.error is not None else None,
        "fatal_at": verdict.fatal_at if verdict else None,
        "duration_s": outcome.duration_s,
    }


def _text(reason: str) -> str:
    reason = _storable(reason)
    return reason if len(reason) <= MAX_REASON_CHARACTERS else reason[: MAX_REASON_CHARACTERS - 3] + "..."


def _storable(text: str) -> str:
    """Return the text without lone surrogates: a completion may bring them in, and Arrow refuses them."""
    return text.encode("utf-8", "replace").decode("utf-8")

"""The one boundary where a failure of a constraint becomes data: an error with its traceback, never a score."""

import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from time import perf_counter
from typing import Any

import numpy as np

from rsft_cluster.constraints.base import BatchConstraint, Candidate, Verdict

MAX_ERROR_CHARACTERS = 8000

Built = BatchConstraint | Callable[[Candidate], object]
"""A constraint that is ready to judge: an instance of a class, or a function with its parameters bound."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict or an error, exactly one of the two."""

    verdict: Verdict | None
    duration_s: float
    reason: str
    error: str | None = None
    """The traceback, or what happened to the process."""


def as_verdict(value: object) -> Verdict:
    """Return what a constraint returned as a verdict; raises an error as it is, TypeError or ValueError for others."""
    match value:
        case Verdict(passed=bool(), reason=str()):
            # Plain values, so that it can travel: a reason may be some library's own kind of text, a score a tensor.
            fatal_at = None if value.fatal_at is None else int(value.fatal_at)
            return Verdict(float(value.score), value.passed, "".join(value.reason), fatal_at)
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


def outcomes_of(
    built: Built, candidates: Sequence[Candidate], begin: Callable[[int, int], object] = lambda _start, _count: None
) -> list[Outcome]:
    """Judge candidates together; where that raises, one by one, so that only the offender gets the error.

    `begin(start, count)` is called before each call of the constraint, with the range of candidates that it judges.
    """
    if not isinstance(built, BatchConstraint):
        outcomes = []
        for i, candidate in enumerate(candidates):
            begin(i, 1)
            outcomes.append(_single(partial(built, candidate)))
        return outcomes
    begin(0, len(candidates))
    together = _together(built, candidates)
    if together is not None:
        return together
    outcomes = []
    for i, candidate in enumerate(candidates):
        begin(i, 1)
        outcomes.append(_single(partial(_judge_one, built, candidate)))
    return outcomes


def _together(built: BatchConstraint, candidates: Sequence[Candidate]) -> list[Outcome] | None:
    """Return the outcomes of one call; None where it raised and could be repeated one by one."""
    if not candidates:
        return []
    start = perf_counter()
    try:
        values = list(built.judge(candidates))
        if len(values) != len(candidates):
            raise ValueError(f"judge returned {len(values)} verdicts for {len(candidates)} candidates")
    except (Exception, SystemExit) as error:  # the same boundary as in _single
        return None if len(candidates) > 1 else [_failure(error, perf_counter() - start)]
    duration_s = (perf_counter() - start) / len(candidates)
    outcomes = [_single(partial(as_verdict, value)) for value in values]
    return [Outcome(o.verdict, duration_s, o.reason, o.error) for o in outcomes]


def _judge_one(built: BatchConstraint, candidate: Candidate) -> object:
    values: list[Any] = list(built.judge([candidate]))
    if len(values) != 1:
        raise ValueError(f"judge returned {len(values)} verdicts for 1 candidate")
    return values[0]


def _single(judge: Callable[[], object]) -> Outcome:
    start = perf_counter()
    try:
        verdict = as_verdict(judge())
    except (Exception, SystemExit) as error:  # the boundary where errors become data; libraries do call sys.exit
        return _failure(error, perf_counter() - start)
    return Outcome(verdict, perf_counter() - start, verdict.reason)


def _failure(error: BaseException, duration_s: float) -> Outcome:
    trace = "".join(traceback.format_exception(error))
    return Outcome(None, duration_s, _message(error), trace[-MAX_ERROR_CHARACTERS:])


def _message(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception as another:  # an exception whose text cannot be made
        return f"{type(error).__name__}, which cannot be told: {type(another).__name__}"

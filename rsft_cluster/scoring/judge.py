"""Scoring: every constraint judges every candidate, CANDIDATE -> verdicts, score, passed, reason.

A constraint that fails gives an error verdict with its traceback, never a score. `ErrorBudget` ends the run when
such errors are more than a few. Pure: knows no engine and no storage.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rsft_cluster import config
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.constraints.building import build
from rsft_cluster.constraints.outcomes import Outcome, outcomes_of
from rsft_cluster.errors import StageError

MAX_REASON_CHARACTERS = 500
MAX_TRACEBACKS = 3
"""Of different constraints, told when a stage stops."""
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
    audited: bool = False
    """Whether it was judged twice."""
    disagreements: tuple[str, ...] = ()
    """The constraints that said otherwise the second time."""

    @property
    def num_verdicts(self) -> int:
        """Verdicts and errors, without the constraints that do not apply."""
        return sum(v["score"] is not None or v["error"] is not None for v in self.verdicts)

    @property
    def errors(self) -> list[tuple[str, str]]:
        """The constraints that failed to judge, each with its traceback."""
        return [(str(v["constraint"]), str(v["error"])) for v in self.verdicts if v["error"] is not None]


class Judge:
    """All constraints of a run, bound and built, judging in this process.

    Building it is cheap and is also the check that constraints and their parameters are usable: it raises
    ConfigError, naming the constraint. Scoring workers use `isolation.IsolatedJudge`.
    """

    def __init__(self, constraints: Sequence[config.Constraint]) -> None:
        self._constraints = tuple(constraints)
        self._built = [build(constraint, name=constraint.name) for constraint in constraints]

    def judge(self, candidates: Sequence[Candidate]) -> list[Judgement]:
        """Return one judgement a candidate, in the same order."""
        return self._judgements(candidates, self._outcomes)

    def _judgements(
        self,
        candidates: Sequence[Candidate],
        outcomes: Callable[[Sequence[Candidate], Sequence[Sequence[int]]], list[list[Outcome]]],
    ) -> list[Judgement]:
        wanted = [[i for i, c in enumerate(candidates) if applies(of, c)] for of in self._constraints]
        found = [
            dict(zip(places, column, strict=True))
            for places, column in zip(wanted, outcomes(candidates, wanted), strict=True)
        ]
        return [self._combine([column.get(i) for column in found]) for i in range(len(candidates))]

    def _outcomes(self, candidates: Sequence[Candidate], wanted: Sequence[Sequence[int]]) -> list[list[Outcome]]:
        return [
            outcomes_of(built, [candidates[i] for i in places])
            for built, places in zip(self._built, wanted, strict=True)
        ]

    def _combine(self, outcomes: Sequence[Outcome | None]) -> Judgement:
        pairs = list(zip(self._constraints, outcomes, strict=True))
        rows = [_row(constraint, outcome) for constraint, outcome in pairs]
        # What neither is required nor weighs anything says something, and decides nothing.
        if not any(outcome and constraint.counts for constraint, outcome in pairs):
            return Judgement(rows, None, None, "no constraint that counts judges such a prompt")
        for constraint, outcome in pairs:
            if outcome and outcome.verdict is None and constraint.counts:
                return Judgement(rows, None, None, _text(f"error in {constraint.name}: {outcome.reason}"))
        verdicts = [(c, outcome.verdict) for c, outcome in pairs if outcome and outcome.verdict is not None]
        score, passed = combined([(c.required, c.weight, v.score, v.passed) for c, v in verdicts])
        if passed:
            return Judgement(rows, score, passed, "passed")
        constraint, verdict = next((c, v) for c, v in verdicts if c.required and not v.passed)
        return Judgement(rows, score, passed, _text(f"{constraint.name}: {verdict.reason or 'did not pass'}"))


def applies(constraint: config.Constraint, candidate: Candidate) -> bool:
    """Say whether a constraint judges candidates of this prompt (`when`)."""
    return all(
        candidate.attributes.get(name) in ((wanted,) if isinstance(wanted, str) else wanted)
        for name, wanted in constraint.when.items()
    )


def combined(verdicts: Sequence[tuple[bool, float, float, bool]]) -> tuple[float, bool]:
    """Return score and passed, given (required, weight, score, passed) of each constraint."""
    passed = all(has_passed for required, _, _, has_passed in verdicts if required)
    total = sum(weight for _, weight, _, _ in verdicts)
    weighted = sum(weight * score for _, weight, score, _ in verdicts)
    # min: the rounding of a sum of weights may lie an ulp above 1
    return (min(1.0, weighted / total) if total > 0 else float(passed)), passed


def too_many_errors(num_errors: int, num_verdicts: int, scoring: config.ScoringConfig) -> bool:
    """Return whether a unit's commit counts only for the invocation that made it: the next one judges it again."""
    return num_errors > scoring.max_error_rate * num_verdicts


class ErrorBudget:
    """How many verdicts of a stage were errors; `spend` raises StageError when they are too many."""

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
                f"scoring.max_error_rate = {self._max_error_rate:g} allows. {first_errors(self._first)}"
            )


def first_errors(first: Mapping[str, str]) -> str:
    """Return the first tracebacks by constraint, to be read by whoever mends it."""
    if not first:
        return "No traceback was recorded"
    (constraint, error), *more = first.items()
    return "\n".join(
        [f"The first one, of constraint {constraint!r}:\n{error}"]
        + [f"The first one of constraint {name!r}:\n{trace}" for name, trace in more]
    )


def _row(constraint: config.Constraint, outcome: Outcome | None) -> dict[str, object]:
    verdict = outcome.verdict if outcome else None
    return {
        "constraint": constraint.name,
        "score": float(verdict.score) if verdict else None,
        "passed": verdict.passed if verdict else None,
        "reason": _text(outcome.reason) if outcome else "does not apply to this prompt",
        "error": _storable(outcome.error) if outcome and outcome.error is not None else None,
        "fatal_at": verdict.fatal_at if verdict else None,
        "duration_s": outcome.duration_s if outcome else 0.0,
    }


def _text(reason: str) -> str:
    reason = _storable(reason)
    return reason if len(reason) <= MAX_REASON_CHARACTERS else reason[: MAX_REASON_CHARACTERS - 3] + "..."


def _storable(text: str) -> str:
    """Return the text without lone surrogates: a completion may bring them in, and Arrow refuses them."""
    return text.encode("utf-8", "replace").decode("utf-8")

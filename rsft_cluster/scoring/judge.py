"""Scoring: every constraint judges every candidate, CANDIDATE -> verdicts, score, passed, reason.

A constraint that fails gives an error verdict with its traceback, never a score. Pure: knows no engine and no storage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rsft_cluster import config
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.constraints.outcomes import Outcome
from rsft_cluster.scoring.evaluator import Evaluator, InProcessEvaluator

MAX_REASON_CHARACTERS = 500


class ConstraintVerdict(NamedTuple):
    """The verdict or the error of one constraint on one candidate, ready to be stored; see schemas.VERDICT."""

    constraint: str
    score: float | None
    """None, as `passed`, after an error and where the constraint does not apply to the prompt."""
    passed: bool | None
    reason: str
    error: str | None
    fatal_at: int | None
    duration_s: float

    @property
    def applies(self) -> bool:
        """True if the constraint judged the candidate, if only with an error."""
        return self.score is not None or self.error is not None


@dataclass(frozen=True)
class Judgement:
    """The verdicts of all constraints on one candidate, and what they come to."""

    verdicts: tuple[ConstraintVerdict, ...]
    """One per constraint, in the config's order."""
    score: float | None
    """Weighted mean of the verdicts; None after an error in a constraint that counts."""
    passed: bool | None
    """True if every required constraint passed; None with the score."""
    reason: str
    audited: bool = False
    """True if it was judged twice."""
    disagreements: tuple[str, ...] = ()
    """The constraints that judged otherwise the second time."""

    @property
    def num_verdicts(self) -> int:
        """Number of verdicts and errors, without the constraints that do not apply."""
        return sum(v.applies for v in self.verdicts)

    @property
    def errors(self) -> list[tuple[str, str]]:
        """The constraints that failed to judge, each with its traceback."""
        return [(v.constraint, v.error) for v in self.verdicts if v.error is not None]


class Judge:
    """Judges candidates by all constraints of a run, whose outcomes come from an evaluator; by default in this process.

    Building it so is cheap and is also the check that constraints and their parameters are usable: it raises
    ConfigError, naming the constraint. Scoring actors use `GuardedJudge`.
    """

    def __init__(self, constraints: Sequence[config.Constraint], evaluator: Evaluator | None = None) -> None:
        self._constraints = tuple(constraints)
        self._evaluator = evaluator or InProcessEvaluator(constraints)

    def judge(self, candidates: Sequence[Candidate]) -> list[Judgement]:
        """Return one judgement per candidate, in the same order."""
        indices = [[i for i, c in enumerate(candidates) if applies(constraint, c)] for constraint in self._constraints]
        outcomes = self._evaluator.evaluate(candidates, indices)
        columns = [dict(zip(rows, column, strict=True)) for rows, column in zip(indices, outcomes, strict=True)]
        return [self._combine([column.get(i) for column in columns]) for i in range(len(candidates))]

    def _combine(self, outcomes: Sequence[Outcome | None]) -> Judgement:
        pairs = list(zip(self._constraints, outcomes, strict=True))
        named = tuple(_named(constraint, outcome) for constraint, outcome in pairs)
        # A constraint that neither is required nor weighs anything gives verdicts, and decides nothing.
        if not any(outcome and constraint.counts for constraint, outcome in pairs):
            return Judgement(named, None, None, "no constraint that counts judges such a prompt")
        for constraint, outcome in pairs:
            if outcome and outcome.verdict is None and constraint.counts:
                return Judgement(named, None, None, _text(f"error in {constraint.name}: {outcome.reason}"))
        verdicts = [(c, outcome.verdict) for c, outcome in pairs if outcome and outcome.verdict is not None]
        score, passed = combined([(c.required, c.weight, v.score, v.passed) for c, v in verdicts])
        if passed:
            return Judgement(named, score, passed, "passed")
        constraint, verdict = next((c, v) for c, v in verdicts if c.required and not v.passed)
        return Judgement(named, score, passed, _text(f"{constraint.name}: {verdict.reason or 'did not pass'}"))


def applies(constraint: config.Constraint, candidate: Candidate) -> bool:
    """Return whether a constraint judges candidates of this prompt (`when`)."""
    return all(
        candidate.attributes.get(name) in ((values,) if isinstance(values, str) else values)
        for name, values in constraint.when.items()
    )


def combined(verdicts: Sequence[tuple[bool, float, float, bool]]) -> tuple[float, bool]:
    """Return score and passed, given (required, weight, score, passed) of each constraint."""
    passed = all(has_passed for required, _, _, has_passed in verdicts if required)
    total = sum(weight for _, weight, _, _ in verdicts)
    weighted = sum(weight * score for _, weight, score, _ in verdicts)
    # min: the rounding of a sum of weights may lie an ulp above 1
    return (min(1.0, weighted / total) if total > 0 else float(passed)), passed


def _named(constraint: config.Constraint, outcome: Outcome | None) -> ConstraintVerdict:
    if outcome is None:
        return ConstraintVerdict(constraint.name, None, None, "does not apply to this prompt", None, None, 0.0)
    verdict, error = outcome.verdict, outcome.error
    return ConstraintVerdict(
        constraint=constraint.name,
        score=float(verdict.score) if verdict else None,
        passed=verdict.passed if verdict else None,
        reason=_text(outcome.reason),
        error=None if error is None else _storable(error),
        fatal_at=verdict.fatal_at if verdict else None,
        duration_s=outcome.duration_s,
    )


def _text(reason: str) -> str:
    reason = _storable(reason)
    return reason if len(reason) <= MAX_REASON_CHARACTERS else reason[: MAX_REASON_CHARACTERS - 3] + "..."


def _storable(text: str) -> str:
    """Return the text without lone surrogates: a completion may bring them in, and Arrow refuses them."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")

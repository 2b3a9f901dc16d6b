"""Canaries: candidates with a known verdict, judged in every scoring actor before it starts and beside every unit.

Two kinds: those of the config (`scoring.canaries`), judged under the run's own parameters, and the inline cases that
constraints bring along. A constraint that cannot work where it runs fails before it has judged anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rsft_cluster.config import ScoringConfig
from rsft_cluster.config.parts import Constraint
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.constraints.building import cases_of
from rsft_cluster.errors import StageError
from rsft_cluster.schemas import Message
from rsft_cluster.scoring.evaluator import Evaluator
from rsft_cluster.scoring.judge import Judge


@dataclass(frozen=True)
class Canary:
    """A candidate with a known verdict."""

    candidate: Candidate
    passes: bool
    number: int | None
    """Index of the constraint that judges it; None for all of them together."""
    constraint: str


class Canaries:
    """The canaries of a run: all of them before an actor starts, some of them beside every unit."""

    def __init__(self, scoring: ScoringConfig) -> None:
        self._configured = _configured(scoring)
        self._inline, self.variants = _inline(scoring.constraints)
        self._num_constraints = len(scoring.constraints) + len(self.variants)
        self._num_units = 0

    def check_all(self, judge: Judge, evaluator: Evaluator) -> None:
        """Raise StageError where a canary is judged wrongly, or not at all.

        The evaluator runs the constraints of the run and, behind them, the `variants`.
        """
        self._check([*self._configured, *self._inline], judge, evaluator)

    def check_some(self, judge: Judge, evaluator: Evaluator) -> None:
        """Check those of the config, and a passing and a failing inline case of each constraint, others each time."""
        self._num_units += 1
        groups: dict[tuple[str, bool], list[Canary]] = {}
        for canary in self._inline:
            groups.setdefault((canary.constraint, canary.passes), []).append(canary)
        inline = [group[self._num_units % len(group)] for group in groups.values()]
        self._check([*self._configured, *inline], judge, evaluator)

    def _check(self, canaries: Sequence[Canary], judge: Judge, evaluator: Evaluator) -> None:
        single = [c for c in canaries if c.number is not None]
        indices = [[i for i, c in enumerate(single) if c.number == n] for n in range(self._num_constraints)]
        columns = evaluator.evaluate([c.candidate for c in single], indices)
        for rows, column in zip(indices, columns, strict=True):
            for i, outcome in zip(rows, column, strict=True):
                _require(single[i], outcome.verdict and outcome.verdict.passed, outcome.error or outcome.reason)
        whole = [c for c in canaries if c.number is None]
        judgements = judge.judge([c.candidate for c in whole]) if whole else []
        for canary, judgement in zip(whole, judgements, strict=True):
            _require(canary, judgement.passed, judgement.reason)


def _configured(scoring: ScoringConfig) -> list[Canary]:
    """Return the canaries of the config."""
    numbers = {c.name: i for i, c in enumerate(scoring.constraints)}
    return [
        Canary(
            Candidate(
                completion=canary.completion,
                messages=(Message("user", canary.prompt),),
                reference=canary.reference,
                attributes=canary.attributes,
                finish_reason=canary.finish_reason,
                num_tokens=canary.num_tokens,
                candidate_id="canary",
                prompt_id="canary",
            ),
            canary.passes,
            None if canary.constraint is None else numbers[canary.constraint],
            canary.constraint or "all constraints together",
        )
        for canary in scoring.canaries
    ]


def _inline(constraints: Sequence[Constraint]) -> tuple[list[Canary], list[Constraint]]:
    """Return the inline cases of constraints, and these constraints with the parameters that the cases need.

    The numbers of the latter follow those of `constraints`.
    """
    variants: list[Constraint] = []
    canaries: list[Canary] = []
    for constraint in constraints:
        for case in cases_of(constraint):
            variant = constraint.model_copy(update={"params": dict(case.params), "when": {}})
            if variant not in variants:
                variants.append(variant)
            number = len(constraints) + variants.index(variant)
            canaries.append(Canary(case.candidate, case.passes, number, constraint.name))
    return canaries, variants


def _require(canary: Canary, passed: bool | None, reason: str) -> None:  # noqa: FBT001 the verdict
    """Raise StageError where the verdict is missing or differs from the canary's."""
    if passed is canary.passes:
        return
    verdict = {True: "passed", False: "did not pass", None: "could not be judged"}[passed]
    raise StageError(
        f"canary of {canary.constraint}: {canary.candidate.completion[:200]!r} {verdict}, "
        f"expected was that it {'passes' if canary.passes else 'does not'}. It was said: {reason}"
    )

"""Evaluators: candidates in, the outcomes of every constraint out. Here in this process, for others see `isolation`."""

from collections.abc import Callable, Sequence
from typing import Protocol

from rsft_cluster import config
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.constraints.building import build
from rsft_cluster.constraints.outcomes import Outcome, outcomes_of

Observer = Callable[[int, Outcome], None]
"""Gets the index of a constraint and an outcome of it, as it comes in; what it raises ends the evaluation."""


class Evaluator(Protocol):
    """Gets the outcomes of the constraints of a run."""

    def evaluate(self, candidates: Sequence[Candidate], indices: Sequence[Sequence[int]]) -> list[list[Outcome]]:
        """Return a column of outcomes for each constraint: those on the candidates at its `indices`, in that order.

        Constraints beyond the last of `indices` are left out.
        """
        ...


class InProcessEvaluator:
    """Runs constraints one after the other in this process; raises ConfigError naming one that cannot be built."""

    def __init__(self, constraints: Sequence[config.Constraint], *, observer: Observer | None = None) -> None:
        self.constraints = [build(constraint, name=constraint.name) for constraint in constraints]
        self._observer = observer

    def evaluate(self, candidates: Sequence[Candidate], indices: Sequence[Sequence[int]]) -> list[list[Outcome]]:
        """Return a column of outcomes for each constraint."""
        columns = []
        for number, (constraint, rows) in enumerate(zip(self.constraints, indices, strict=False)):
            columns.append(outcomes_of(constraint, [candidates[i] for i in rows]))
            if self._observer is not None:
                for outcome in columns[-1]:
                    self._observer(number, outcome)
        return columns

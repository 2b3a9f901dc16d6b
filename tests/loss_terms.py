"""Terms of the loss that tests name in configs."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from rsft_cluster.config import TrainingConfig
from rsft_cluster.training.batches import Batch, Example
from rsft_cluster.training.losses import Learned
from rsft_cluster.training.rejected import JudgedCandidates
from rsft_cluster.training.terms.base import Term


class Confidence(Term):
    """The highest log-probability at every position, negative."""

    name = "confidence"

    def __init__(self, config: TrainingConfig, *, weight: float = 0.01) -> None:
        super().__init__(weight)

    def values(self, at: Learned, rows: Batch, base: Learned | None) -> Tensor:
        return -at.summed(at.logits.log_softmax(1).max(1).values)


class Passed(Confidence):
    """The same over judged candidates."""

    name = "passed"
    learns_from_judged = True

    def examples(self, judged: JudgedCandidates) -> Sequence[Example]:
        return [replace(rejected.example, weight=1.0) for rejected in judged.rejected]


class Rejection(Confidence):
    """Has the name of another."""

    name = "rejection"

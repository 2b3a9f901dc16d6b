"""Terms of the loss that tests name in configs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
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


class Greedy(Confidence):
    """Runs out of memory on more than one row, and leaves a mark each time; may fail in other ways."""

    name = "greedy"

    def __init__(self, config: TrainingConfig, *, marks: str, refuses: bool = False) -> None:
        super().__init__(config, weight=1.0)
        self._marks, self._refuses = Path(marks), refuses

    def values(self, at: Learned, rows: Batch, base: Learned | None) -> Tensor:
        if at.num_rows > 1:
            with self._marks.open("a") as file:
                file.write("once\n")
            if self._refuses:
                raise NotImplementedError("unsupported mix of dtypes")
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return 0.0 * super().values(at, rows, base)


class Rejection(Confidence):
    """Has the name of another."""

    name = "rejection"

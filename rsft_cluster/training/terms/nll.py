"""NLL, over accepted and replayed examples: value_i = -log pi(y_i). Its weight is 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsft_cluster.config import TrainingConfig
from rsft_cluster.training.terms.base import Term

if TYPE_CHECKING:
    from torch import Tensor

    from rsft_cluster.training.batches import Batch
    from rsft_cluster.training.losses import Learned


class NLL(Term):
    """What is learned."""

    name = "nll"

    def __init__(self, _config: TrainingConfig) -> None:
        super().__init__(1.0)

    def values(self, at: Learned, rows: Batch, base: Learned | None) -> Tensor:
        """Return the negative log-likelihood of each row's completion."""
        return completion_nll(at)


def completion_nll(at: Learned) -> Tensor:
    """Return the negative log-likelihood of each row's completion."""
    return at.summed(at.cross_entropy())

"""KL, over the examples of the NLL: value_i = the sum over tokens of KL(pi || policy of round 0) of the next token.

Over the whole vocabulary. This direction is the penalty of the KL-regularised objective whose optimum acceptance
samples from; summed along completions of pi it is the KL of whole completions (chain rule), here along those that pi
learns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsft_cluster.config import TrainingConfig
from rsft_cluster.training.terms.base import Term

if TYPE_CHECKING:
    from torch import Tensor

    from rsft_cluster.training.batches import Batch
    from rsft_cluster.training.losses import Learned


class KL(Term):
    """The distance to the policy of round 0."""

    name = "kl"
    key = "training.kl_weight"
    needs_base = True

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config.kl_weight)

    def values(self, at: Learned, rows: Batch, base: Learned | None) -> Tensor:
        """Return the KL of each row's completion."""
        assert base is not None
        return completion_kl(at, base)


def completion_kl(at: Learned, base: Learned) -> Tensor:
    """Return KL(policy || base) of the next token over the whole vocabulary, summed over each row's completion."""
    own, other = at.logits.log_softmax(1), base.logits.log_softmax(1)
    return at.summed((own.exp() * (own - other)).sum(1))

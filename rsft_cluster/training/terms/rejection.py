"""R, over rejected candidates: value_i = sg[min(1, pi(y_i) / mu(y_i))] log pi(y_i) (TOPR, Le Roux et al. 2025).

mu is what y_i was drawn with, sg without a gradient. At pi = mu its gradient points where that of the probability to be
rejected, 1 - sum_y pi(y) a(y), does; as pi(y_i) goes to 0 so does the weight, so that nothing runs away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsft_cluster.config import TrainingConfig
from rsft_cluster.training.terms.base import Term
from rsft_cluster.training.terms.nll import completion_nll

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rsft_cluster.training.batches import Batch, Example
    from rsft_cluster.training.losses import Learned
    from rsft_cluster.training.rejected import JudgedCandidates


class Rejection(Term):
    """The tapered log-likelihood of rejected candidates; 0 or less."""

    name = "rejection"
    key = "training.rejection"
    learns_from_judged = True
    needs = ("logprob",)

    def __init__(self, config: TrainingConfig) -> None:
        settings = config.rejection
        super().__init__(settings.weight if settings else 0.0, batch_size=settings and settings.batch_size)

    def examples(self, judged: JudgedCandidates) -> Sequence[Example]:
        """Return the rejected candidates."""
        return [rejected.example for rejected in judged.rejected]

    def values(self, at: Learned, rows: Batch, base: Learned | None) -> Tensor:
        """Return each row's log-likelihood, tapered."""
        return tapered_logprob(at, rows.logprobs)


def tapered_logprob(at: Learned, sampled: Tensor) -> Tensor:
    """Return each row's log-likelihood, times how likely it still is against `sampled`, at most 1, a constant.

    `sampled` are the log-probabilities that the rows' completions were drawn with.
    """
    logprob = -completion_nll(at)
    ratio = (logprob.detach() - sampled).clamp(max=0.0).exp()
    return ratio.to(logprob) * logprob

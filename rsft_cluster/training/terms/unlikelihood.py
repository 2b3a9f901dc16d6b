"""U, over the tokens with which rejected candidates went wrong: value_i = -log(1 - pi(token)), T_i = 1.

Unlikelihood, Welleck et al. 2020. A constraint names the place of the token (`Verdict.fatal_at`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rsft_cluster.config import TrainingConfig
from rsft_cluster.training.terms.base import Term

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rsft_cluster.training.batches import Batch, Example
    from rsft_cluster.training.losses import Learned
    from rsft_cluster.training.rejected import JudgedCandidates


class Unlikelihood(Term):
    """-log(1 - p) of fatal tokens."""

    name = "unlikelihood"
    key = "training.unlikelihood"
    learns_from_judged = True
    needs = ("logprob",)

    def __init__(self, config: TrainingConfig) -> None:
        settings = config.unlikelihood
        super().__init__(settings.weight if settings else 0.0, batch_size=settings and settings.batch_size)

    def examples(self, judged: JudgedCandidates) -> Sequence[Example]:
        """Return the fatal tokens of rejected candidates, each as the completion of all before it."""
        return judged.fatal

    def values(self, at: Learned, rows: Batch, base: Learned | None) -> Tensor:
        """Return -log(1 - p) of each row's token."""
        return completion_unlikelihood(at)


def completion_unlikelihood(at: Learned) -> Tensor:
    """Return -log(1 - p) of each row's tokens, summed.

    1 - p is summed over the other tokens, so it is exact where p rounds to 1; the gradient's norm is at most sqrt 2.
    """
    others = at.logits.scatter(1, at.targets[:, None], -math.inf)
    return at.summed(at.logits.logsumexp(1) - others.logsumexp(1))

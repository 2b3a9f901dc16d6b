"""The contract of a term of the loss.

The loss of a step is the sum of terms, each weight x sum_i w_i value_i / sum_i w_i T_i over a batch of its own, T_i the
completion tokens of example i. The denominators are known before any forward pass, so workers and micro batches add up
to exactly this.

A term is a class, built from the training's config and its own parameters:

    class Confidence(Term):
        name = "confidence"

        def __init__(self, config: TrainingConfig, *, weight: float = 0.01) -> None:
            super().__init__(weight)

        def values(self, at: Learned, rows: Batch, base: Learned | None) -> Tensor:
            return -at.summed(at.logits.log_softmax(1).max(1).values)

It is named in the config, `training: {terms: [{use: my_terms:Confidence, params: {weight: 0.02}}]}`, and its value is
recorded for every step under its name. The same on every worker, it is a function of what it is given alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # the driver asks terms what they need, and has no use for torch
    from collections.abc import Sequence

    from torch import Tensor

    from rsft_cluster.training.batches import Batch, Example
    from rsft_cluster.training.losses import Learned
    from rsft_cluster.training.rejected import JudgedCandidates


class Term:
    """A term of the loss, over accepted and replayed examples unless it brings examples of its own."""

    name: ClassVar[str]
    """Under which its value is recorded."""
    key: ClassVar[str] = "training.terms"
    """The config key that turns it on, for messages."""
    needs_base: ClassVar[bool] = False
    """Whether `values` looks at the policy of round 0."""
    learns_from_judged: ClassVar[bool] = False
    """Whether its examples are made of judged candidates; `examples` says of which. Control arms, which judge nothing,
    are trained without it."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Columns of CANDIDATE that it cannot do without and that candidates from elsewhere may lack."""

    def __init__(self, weight: float, *, batch_size: int | None = None) -> None:
        """`weight` may be 0, which leaves the term out; `batch_size` is that of its own examples, over all workers."""
        self.weight = weight
        self.batch_size = batch_size

    def examples(self, judged: JudgedCandidates) -> Sequence[Example]:
        """Return the examples of a term that learns from judged candidates, in an order that depends on them alone."""
        raise NotImplementedError(f"{self.name}: learns from judged candidates and does not say which")

    def values(self, at: Learned, rows: Batch, base: Learned | None) -> Tensor:
        """Return the value of each row, shape (rows,), with gradients.

        `at` are the completions' positions under the policy, `base` the same under the policy of round 0 where the
        term needs it.
        """
        raise NotImplementedError

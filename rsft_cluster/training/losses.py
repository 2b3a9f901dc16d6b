"""Where completions are learned, how parts of a term add up, how fast a step may go, and when it has gone wrong.

Tensors and numbers in, numbers out; nothing here knows of workers, files or engines. The terms that the loss is made of
are in `terms/`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rsft_cluster.config import TrainingConfig
from rsft_cluster.errors import DivergedError

IGNORED = -100
"""Label of positions that are not learned: prompts and padding."""

MIN_REFERENCE_LOSS = 0.1
"""A policy that starts below this many nats a token is compared with this instead: a converged policy's first
loss can be 0.01, and ten times that is noise, not divergence."""


class Learned(NamedTuple):
    """The positions of a batch that a loss is about, one after the other."""

    logits: Tensor
    """Of each position, over the vocabulary; float32 or better."""
    targets: Tensor
    """The token that stands there."""
    rows: Tensor
    """The row of the batch that it belongs to."""
    num_rows: int

    def cross_entropy(self) -> Tensor:
        """Return the negative log-likelihood of each position's token."""
        return functional.cross_entropy(self.logits, self.targets, reduction="none")

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum of the positions' values by row."""
        return torch.zeros(self.num_rows, dtype=values.dtype, device=values.device).index_add(0, self.rows, values)


def learned(logits: Tensor, labels: Tensor) -> Learned:
    """Return the completions' positions.

    `labels` are aligned with the input: IGNORED, or the token at that position. `logits` may cover only the
    last positions of the input, as long as they include the one before each row's first label.
    """
    targets = labels[:, labels.shape[1] - logits.shape[1] + 1 :]
    places = targets != IGNORED
    chosen = logits[:, :-1][places]
    if chosen.dtype in {torch.bfloat16, torch.float16}:
        chosen = chosen.float()
    return Learned(chosen, targets[places], places.nonzero()[:, 0], len(labels))


def weighted_loss(values: Tensor, weights: Tensor, denominator: float) -> Tensor:
    """Return these rows' part of a term; the parts of a batch sum to the term."""
    return (values * weights.to(values)).sum() / denominator


def learning_rate(config: TrainingConfig, step: int, num_steps: int) -> float:
    """Return the rate of a step counted from 0: linear warm-up, then the schedule down to its last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, num_steps - 1 - config.warmup_steps))
    shape = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[config.schedule]
    floor = 1.0 if config.schedule == "constant" else config.final_learning_rate
    return config.learning_rate * (floor + (1.0 - floor) * shape)


def check_loss(loss: float, nll: float, *, step: int, first_nll: float, ratio: float) -> None:
    """Raise DivergedError if the loss of a step, counted from 1, is not finite or its NLL has run away.

    The other terms may well be negative, or start at 0; when they do harm, it is what is learned that suffers.
    """
    if not math.isfinite(loss):
        raise DivergedError(
            f"step {step}: the loss is {loss}; lower training.learning_rate, or check the policy's weights"
        )
    limit = ratio * max(first_nll, MIN_REFERENCE_LOSS)
    if nll > limit:
        raise DivergedError(
            f"step {step}: the loss is {nll:.4g}, above {limit:.4g} = training.divergence_ratio {ratio:g} x "
            f"the first step's {max(first_nll, MIN_REFERENCE_LOSS):.4g}; lower training.learning_rate"
        )

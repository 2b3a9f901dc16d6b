"""What a training step minimises, how fast it may go, and when it has gone wrong.

Tensors and numbers in, numbers out; nothing here knows of workers, files or engines. The loss of a step is
sum_i w_i NLL_i / sum_i w_i T_i over the whole batch, NLL_i summed over the T_i completion tokens of example
i. The denominator is known before any forward pass, so workers and micro batches add up to exactly this.
"""

import math

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


def completion_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed negative log-likelihood of each row's completion, in float32 or better.

    `labels` are aligned with the input: IGNORED, or the token at that position. `logits` may cover only the
    last positions of the input, as long as they include the one before each row's first label.
    """
    targets = labels[:, labels.shape[1] - logits.shape[1] + 1 :]
    learned = targets != IGNORED
    chosen = logits[:, :-1][learned]
    if chosen.dtype in {torch.bfloat16, torch.float16}:
        chosen = chosen.float()
    token_nll = functional.cross_entropy(chosen, targets[learned], reduction="none")
    rows = learned.nonzero()[:, 0]
    return torch.zeros(len(labels), dtype=chosen.dtype, device=logits.device).index_add(0, rows, token_nll)


def weighted_loss(nll: Tensor, weights: Tensor, denominator: float) -> Tensor:
    """Return these rows' part of the step's loss; the parts of a batch sum to the loss."""
    return (nll * weights.to(nll)).sum() / denominator


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


def check_loss(loss: float, *, step: int, first_loss: float, ratio: float) -> None:
    """Raise DivergedError if the loss of a step, counted from 1, is not finite or has run away."""
    if not math.isfinite(loss):
        raise DivergedError(
            f"step {step}: the loss is {loss}; lower training.learning_rate, or check the policy's weights"
        )
    limit = ratio * max(first_loss, MIN_REFERENCE_LOSS)
    if loss > limit:
        raise DivergedError(
            f"step {step}: the loss is {loss:.4g}, above {limit:.4g} = training.divergence_ratio {ratio:g} x "
            f"the first step's {max(first_loss, MIN_REFERENCE_LOSS):.4g}; lower training.learning_rate"
        )

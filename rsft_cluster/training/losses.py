"""What a training step minimises, how fast it may go, and when it has gone wrong.

Tensors and numbers in, numbers out; nothing here knows of workers, files or engines. The loss of a step is

    NLL + weight_R R + weight_U U + weight_KL KL

of which the last three are off by default. Each term is sum_i w_i value_i / sum_i w_i T_i over a batch of its own, T_i
the completion tokens of example i:

- NLL, over accepted and replayed examples: value_i = -log pi(y_i);
- R, over rejected candidates: value_i = sg[min(1, pi(y_i) / mu(y_i))] log pi(y_i), mu what y_i was drawn with and sg
  without a gradient (TOPR, Le Roux et al. 2025). At pi = mu its gradient points where that of the probability to be
  rejected, 1 - sum_y pi(y) a(y), does; as pi(y_i) goes to 0 so does the weight, so that nothing runs away;
- U, over the tokens with which rejected candidates went wrong: value_i = -log(1 - pi(token)), T_i = 1 (unlikelihood,
  Welleck et al. 2020);
- KL, over the examples of the NLL: value_i = the sum over tokens of KL(pi || base) of the next token, over the whole
  vocabulary. This direction is the penalty of the KL-regularised objective whose optimum acceptance samples from;
  summed along completions of pi it is the KL of whole completions (chain rule), here along those that pi learns.

The denominators are known before any forward pass, so workers and micro batches add up to exactly this.
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


def completion_nll(at: Learned) -> Tensor:
    """Return the negative log-likelihood of each row's completion."""
    return at.summed(functional.cross_entropy(at.logits, at.targets, reduction="none"))


def tapered_logprob(at: Learned, sampled: Tensor) -> Tensor:
    """Return each row's log-likelihood, times how likely it still is against `sampled`, at most 1, a constant.

    `sampled` are the log-probabilities that the rows' completions were drawn with.
    """
    logprob = -completion_nll(at)
    ratio = (logprob.detach() - sampled).clamp(max=0.0).exp()
    return ratio.to(logprob) * logprob


def completion_unlikelihood(at: Learned) -> Tensor:
    """Return -log(1 - p) of each row's tokens, summed.

    1 - p is summed over the other tokens, so it is exact where p rounds to 1; the gradient's norm is at most sqrt 2.
    """
    others = at.logits.scatter(1, at.targets[:, None], -math.inf)
    return at.summed(at.logits.logsumexp(1) - others.logsumexp(1))


def completion_kl(at: Learned, base: Learned) -> Tensor:
    """Return KL(policy || base) of the next token over the whole vocabulary, summed over each row's completion."""
    own, other = at.logits.log_softmax(1), base.logits.log_softmax(1)
    return at.summed((own.exp() * (own - other)).sum(1))


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

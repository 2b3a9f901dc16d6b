"""One next token per row: logits and keyed noise in, a token and two log-probabilities out.

A row's draw is a function of its logits, its 64-bit key and its step, and of nothing else: no generator state,
no neighbours. The noise is counter based, in integer arithmetic that is the same on every device. This module
knows nothing about models, prompts or when to stop.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rsft_cluster.generators.base import Decoding, Law

BLOCK = 128
"""Tokens per block of the two-level draw: V/128 + 128 noise values per row instead of V."""

_WITHIN = 1 << 32
"""Counters of the draw within a block start here; those of the draw of a block start at 0."""

_CUT = -float("inf")
FAINTEST = -80.0
"""Below the highest score, what counts as this far below: e^-80 of it changes no float, and is no denormal one."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One token per row. The log-probabilities are float64, and not finite where the logits were not."""

    tokens: Tensor
    logprobs: Tensor
    """Under the proposal: after temperature, top-k, top-p and min-p. With a law: under it, nothing taken off."""
    target_logprobs: Tensor
    """Under the logits as the model gave them."""


def draw(
    logits: Tensor, *, keys: Tensor, steps: Tensor, decoding: Decoding, laws: Sequence[Law | None] | None = None
) -> Draw:
    """Draw one token for every row of `logits` (rows, vocabulary).

    `keys` and `steps` are int64, one per row; `keys_tensor` makes keys. At temperature 0 the likeliest token is
    taken, the lowest id among equals, and its log-probability is 0. `laws` has a law per row, None for the proposal;
    where any is given, all is computed in float64, since laws depend on the mass that a near-certain token leaves.
    """
    logits = logits.float()
    raw_blocks = _block_lse(logits)
    raw_total = torch.logsumexp(raw_blocks, -1)
    if decoding.temperature == 0:
        tokens = logits.argmax(-1)
        target = _pick(logits, tokens) - raw_total
        return Draw(tokens, torch.where(target.isfinite(), 0.0, target), target)
    processed = process(logits, decoding)
    if laws is not None:
        proposal, weights = _by_laws(processed.double().log_softmax(-1), laws)
        tokens = _gumbel_max(weights, _block_lse(weights), _mix(keys ^ _mix(steps)))
        return Draw(tokens, _pick(proposal, tokens), _pick(logits, tokens) - raw_total)
    blocks = raw_blocks if processed is logits else _block_lse(processed)
    total = raw_total if processed is logits else torch.logsumexp(blocks, -1)
    tokens = _gumbel_max(processed, blocks, _mix(keys ^ _mix(steps)))
    return Draw(tokens, _pick(processed, tokens) - total, _pick(logits, tokens) - raw_total)


def process(logits: Tensor, decoding: Decoding) -> Tensor:
    """Return float32 logits shaped by temperature, top-k, top-p and min-p, in this order; -inf is cut off.

    Tokens that tie with the k-th likeliest are kept. Returns `logits` itself where nothing applies.
    """
    if decoding.temperature != 1.0:
        logits = logits / decoding.temperature
    if 0 < decoding.top_k < logits.shape[-1]:
        smallest_kept = logits.topk(decoding.top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, _CUT)
    if decoding.top_p < 1.0:
        logits = logits.masked_fill(_outside_nucleus(logits, decoding.top_p), _CUT)
    if decoding.min_p > 0.0:
        probabilities = logits.double().softmax(-1)
        lowest_kept = decoding.min_p * probabilities.amax(-1, keepdim=True)
        logits = logits.masked_fill(probabilities < lowest_kept, _CUT)
    return logits


def keys_tensor(keys: list[int], *, device: torch.device | str) -> Tensor:
    """Return unsigned 64-bit keys as the int64 tensor with the same bits, which is what `draw` takes."""
    return torch.tensor([_signed(key) for key in keys], dtype=torch.int64, device=device)


def uniforms(states: Tensor, counters: Tensor) -> Tensor:
    """Return float64 noise in the open interval (0, 1), one value for each state and counter, broadcast.

    52 bits: with 53 the largest value would round to 1, whose double logarithm is infinite.
    """
    bits = _shift(_mix(states + (counters + 1) * _GOLDEN), 12)
    return (bits.double() + 0.5) * 2.0**-52


def _gumbel_max(logits: Tensor, blocks: Tensor, states: Tensor) -> Tensor:
    """Draw a block by its total mass, then a token in it by its own: exactly one draw from softmax."""
    num_blocks = blocks.shape[-1]
    columns = torch.arange(max(num_blocks, BLOCK), dtype=torch.int64, device=logits.device)
    chosen = (blocks + _gumbel(states, columns[:num_blocks])).argmax(-1, keepdim=True)
    tokens = chosen * BLOCK + columns[:BLOCK]
    # Columns beyond the vocabulary read its last token and are then cut off.
    within = logits.gather(-1, tokens.clamp(max=logits.shape[-1] - 1)).double()
    within = within.masked_fill(tokens >= logits.shape[-1], _CUT)
    best = (within + _gumbel(states, tokens + _WITHIN)).argmax(-1, keepdim=True)
    return tokens.gather(-1, best).squeeze(-1)


def _by_laws(proposal: Tensor, laws: Sequence[Law | None]) -> tuple[Tensor, Tensor]:
    """Return log-probabilities under the laws, before and after mass is taken off.

    A known token has its law's probability; the others share the law's rest in proportion to the proposal. So what is
    known stays as it was, though logits differ in their last bits from batch to batch.
    """
    ruled = [(row, law) for row, law in enumerate(laws) if law is not None and len(law.known.tokens)]
    if not ruled:
        return proposal, proposal
    own = torch.tensor([row for row, _ in ruled], device=proposal.device)
    rest = torch.tensor([law.rest for _, law in ruled], dtype=torch.float64, device=proposal.device)
    rows = own.repeat_interleave(torch.tensor([len(law.known.tokens) for _, law in ruled], device=proposal.device))
    tokens, probabilities, left = (
        torch.from_numpy(np.concatenate(columns)).to(proposal.device)
        for columns in zip(*(law.known for _, law in ruled), strict=True)
    )
    proposal = proposal.index_put((rows, tokens), torch.full_like(probabilities, _CUT))
    unknown = proposal[own].logsumexp(-1)
    # Where everything is known there is nothing to scale.
    scale = torch.where(unknown.isneginf(), 0.0, rest.log() - unknown)
    proposal[own] += scale[:, None]
    proposal[rows, tokens] = probabilities.log()
    weights = proposal.index_put((rows, tokens), (probabilities * left).log())
    # Rounding may leave a prefix some mass when all that it can go on with is dead: it then draws what is dead.
    return proposal, torch.where(weights.isneginf().all(-1, keepdim=True), proposal, weights)


def _gumbel(states: Tensor, counters: Tensor) -> Tensor:
    return -torch.log(-torch.log(uniforms(states[:, None], counters)))


def _block_lse(logits: Tensor) -> Tensor:
    """Return the log of every block's mass, in float64 (rows, blocks)."""
    rows, size = logits.shape
    if size % BLOCK:
        logits = functional.pad(logits, (0, -size % BLOCK), value=_CUT)
    blocks = logits.view(rows, -1, BLOCK)
    highest = blocks.amax(-1, keepdim=True)
    # Clamped: a CPU takes up to 100 times as long for what is cut off.
    masses = (blocks - highest.masked_fill(highest == _CUT, 0.0)).clamp_(min=FAINTEST).exp_()
    return (masses.sum(-1).log() + highest.squeeze(-1)).double()


def _outside_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Return the tokens outside the smallest set of likeliest tokens whose mass reaches `top_p`."""
    ordered = _descending(logits)
    probabilities = ordered.double().softmax(-1)
    mass_before = probabilities.cumsum(-1).sub_(probabilities)
    num_kept = (mass_before < top_p).sum(-1, keepdim=True)
    least_kept = ordered.gather(-1, (num_kept - 1).clamp(min=0))
    # Of the tokens that are as likely as the last one, those with the lowest ids are in.
    ties = logits == least_kept
    num_ties = num_kept - (logits > least_kept).sum(-1, keepdim=True)
    return (logits < least_kept) | (ties & (ties.cumsum(-1, dtype=torch.int32) > num_ties))


def _descending(values: Tensor) -> Tensor:
    """Return float32 values (rows, size) in order. On CPUs by numpy, which takes a thirtieth of torch's time."""
    if values.device.type != "cpu":
        return values.sort(dim=-1, descending=True).values
    return torch.from_numpy(np.sort(values.numpy(), -1)).flip(-1)


def _pick(values: Tensor, tokens: Tensor) -> Tensor:
    return values.gather(-1, tokens[:, None]).squeeze(-1).double()


def _signed(value: int) -> int:
    """Return the int64 with the bits of an unsigned 64-bit integer."""
    return value - (1 << 64) if value >> 63 else value


def _shift(values: Tensor, num_bits: int) -> Tensor:
    """Shift right filling with zeros; int64 tensors shift in copies of the sign."""
    return (values >> num_bits) & ((1 << (64 - num_bits)) - 1)


# splitmix64 (Steele, Lea and Flood 2014); int64 products wrap, so they have the bits of unsigned ones.
_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = _signed(0x94D049BB133111EB)


def _mix(values: Tensor) -> Tensor:
    values = values + _GOLDEN
    values = (values ^ _shift(values, 30)) * _MULTIPLIER_1
    values = (values ^ _shift(values, 27)) * _MULTIPLIER_2
    return values ^ _shift(values, 31)

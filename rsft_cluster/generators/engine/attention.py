"""Attention over blocks, and the door through which a Hugging Face model calls it.

A decode step reads every block once for all the rows that it belongs to: a prompt's block for the prompt's candidates
together, a row's block for the row. Each block gives a part (unnormalised output, highest score, mass), and a row's
parts are merged by their log-sum-exp (Juravsky et al. 2024, "Hydragen"; Dao et al. 2023, "Flash-Decoding").
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

NAME = "rsft_blocks"
"""Under this name transformers knows the attention; no mask is registered for it, so the model makes none."""

HIDDEN = -1e30
"""Added to scores that are not to be seen; finite, so that a wholly hidden block gives zeros and not NaN."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How queries and keys become scores in one layer."""

    scale: float
    softcap: float | None = None


class Reader(Protocol):
    """A batch in mid-forward: it stores new keys and values, and attends to all that its tokens may see."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Scoring) -> Tensor:
        """Return (tokens, heads, value_dim) for query (heads, tokens, dim) and new key and value of each token."""
        ...


_READER: ContextVar[Reader] = ContextVar("reader")


@contextmanager
def installed(model: PreTrainedModel) -> Iterator[None]:
    """Let the model's attention be ours within the block."""
    before = model.config._attn_implementation or "sdpa"
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def reading(reader: Reader) -> Iterator[None]:
    """Let forwards within the block work on this batch."""
    token = _READER.set(reader)
    try:
        yield
    finally:
        _READER.reset(token)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **_kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer, with (1, heads, tokens, dim)."""
    how = Scoring(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap)
    layer: Any = module.layer_idx
    return _READER.get().attend(layer, query[0], key[0], value[0], how)[None], None


AttentionInterface.register(NAME, _attend)


class Places:
    """The rows that each of some blocks belongs to, as places in tensors of (rows x kv heads)."""

    def __init__(self, rows: Tensor, num_rows: int, parts: Tensor | None = None) -> None:
        """Take `rows` (blocks, width); the number of rows stands for none.

        `parts` (rows, most) lists for each row where it stands in `rows`, counted through, and -1; given on a GPU.
        """
        self.rows = rows
        self.parts = parts
        self._num_rows = num_rows
        self._flat: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        return len(self.rows)

    def forget(self) -> None:
        """Let what follows from `rows` be made anew: they may have changed in place."""
        self._flat.clear()

    def clone(self) -> "Places":
        """Return a copy with tensors of its own."""
        return Places(self.rows.clone(), self._num_rows, None if self.parts is None else self.parts.clone())

    def of(self, heads: int) -> tuple[Tensor, Tensor]:
        """Return where to read and where to add, (blocks * heads * width); none reads anything and adds to the end."""
        if heads not in self._flat:
            head = torch.arange(heads, device=self.rows.device)[:, None]
            none = self._num_rows * heads
            add = (self.rows[:, None, :] * heads + head).flatten().clamp(max=none)
            self._flat[heads] = add.clamp(max=none - 1), add
        return self._flat[heads]

    def parts_of(self, heads: int) -> tuple[Tensor, Tensor]:
        """Return the parts of each place, (rows * heads, most), and which of them are none."""
        assert self.parts is not None
        width = self.rows.shape[1]
        head = torch.arange(heads, device=self.rows.device)[None, :, None]
        block, within = (self.parts // width)[:, None, :], (self.parts % width)[:, None, :]
        flat = ((block * heads + head) * width + within).flatten(0, 1)
        none = (self.parts < 0)[:, None, :].expand(-1, heads, -1).flatten(0, 1)
        return flat.clamp(min=0), none


@dataclass(frozen=True, slots=True)
class Parts:
    """What blocks contribute: one part for each block, kv head and row that it belongs to."""

    places: Places
    output: Tensor
    """(parts, group, value_dim), not yet divided by the mass."""
    highest: Tensor
    """(parts, group, 1), float32: the score that counts as 1 in `output` and `mass`."""
    mass: Tensor
    """(parts, group, 1), float32."""


def attend_blocks(
    query: Tensor, places: Places, keys: Tensor, values: Tensor, mask: Tensor, softcap: float | None
) -> Parts:
    """Return the parts of blocks for their rows.

    `query` is (rows * kv heads, group, dim), scaled; `keys` (blocks, kv heads, dim, BLOCK) and `values` (blocks,
    kv heads, BLOCK, dim) are as stored; `mask` (blocks, width or 1, BLOCK) is 0 or HIDDEN.
    """
    group, dim = query.shape[1:]
    num_blocks, heads, size, value_dim = values.shape
    width = places.rows.shape[1]
    read, _ = places.of(heads)
    picked = query.index_select(0, read).view(num_blocks * heads, width * group, dim)
    scores = _products(picked, keys.reshape(-1, dim, size))
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    scores.view(num_blocks, heads, width, group, size).add_(mask[:, None, :, None, :])
    highest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(highest).exp_()
    mass = weights.sum(-1, keepdim=True)
    output = torch.bmm(weights.to(values.dtype), values.reshape(-1, size, value_dim))
    return Parts(places, output.view(-1, group, value_dim), highest.view(-1, group, 1), mass.view(-1, group, 1))


def scaled(query: Tensor, how: Scoring) -> Tensor:
    """Return queries with the scale in them: exact where it is a power of two, else in float32."""
    if query.dtype == torch.float32 or math.frexp(how.scale)[0] == 0.5:
        return query * how.scale
    return (query.float() * how.scale).to(query.dtype)


def _products(query: Tensor, key: Tensor) -> Tensor:
    """Return float32 products; a GPU gives them without rounding to the dtype of its operands first."""
    if query.is_cuda and query.dtype != torch.float32:
        return torch.bmm(query, key, out_dtype=torch.float32)
    return torch.bmm(query, key).float()


def merge(parts: Sequence[Parts], heads: int, num_rows: int) -> Tensor:
    """Return (rows * kv heads, group, value_dim) float32 from each row's and head's parts, 0 without any."""
    if parts[0].places.parts is not None:
        return _merge_gathered(parts, heads)
    return _merge_scattered(parts, heads, num_rows * heads)


def _merge_scattered(parts: Sequence[Parts], heads: int, num_places: int) -> Tensor:
    """Add each part to its row.

    Sums are float64, so that their order, which follows where blocks happen to lie, does not show in a float32.
    """
    highest, output = parts[0].highest, parts[0].output
    peak = highest.new_full((num_places + 1, *highest.shape[1:]), HIDDEN)
    for part in parts:
        _, add = part.places.of(heads)
        peak.scatter_reduce_(0, add[:, None, None].expand_as(part.highest), part.highest, "amax")
    total = highest.new_zeros(peak.shape, dtype=torch.float64)
    whole = highest.new_zeros((num_places + 1, *output.shape[1:]), dtype=torch.float64)
    for part in parts:
        _, add = part.places.of(heads)
        weight = (part.highest - peak.index_select(0, add)).exp_()
        total.index_add_(0, add, (part.mass * weight).double())
        whole.index_add_(0, add, (part.output * weight).double())
    return (whole[:num_places] / total[:num_places].clamp(min=1e-30)).float()


def _merge_gathered(parts: Sequence[Parts], heads: int) -> Tensor:
    """Gather each row's parts: on a GPU adding from many threads would sum in another order every time."""
    found = [part.places.parts_of(heads) for part in parts]
    highest = [
        part.highest[index].masked_fill(none[..., None, None], HIDDEN)
        for part, (index, none) in zip(parts, found, strict=True)
    ]
    peak = torch.cat(highest, 1).amax(1, keepdim=True)
    total = whole = torch.zeros((), device=peak.device)
    for part, (index, none), high in zip(parts, found, highest, strict=True):
        weight = (high - peak).exp_().masked_fill_(none[..., None, None], 0.0)
        total = total + (part.mass[index] * weight).sum(1)
        whole = whole + (part.output[index] * weight).sum(1)
    return whole / total.clamp(min=1e-30)


def attend_causally(query: Tensor, key: Tensor, value: Tensor, how: Scoring, *, window: int | None) -> Tensor:
    """Return (heads, tokens, value_dim) for the last tokens of a sequence, given all its keys and values."""
    heads, num_new, _ = query.shape
    num_all = key.shape[1]
    hidden = window is not None and num_all > window
    if how.softcap is None:
        mask = None if num_new == num_all and not hidden else _causal(num_new, num_all, window, query.device)
        return functional.scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=mask, is_causal=mask is None, scale=how.scale,
            enable_gqa=heads != key.shape[0],
        )[0]  # fmt: skip
    grouped = query.unflatten(0, (key.shape[0], -1))
    scores = torch.tanh((grouped @ key[:, None].transpose(-1, -2)).float() * (how.scale / how.softcap)) * how.softcap
    scores = scores.masked_fill(~_causal(num_new, num_all, window, query.device), HIDDEN)
    return (scores.softmax(-1).to(value.dtype) @ value[:, None]).flatten(0, 1)


def _causal(num_new: int, num_all: int, window: int | None, device: torch.device) -> Tensor:
    """Return what the last `num_new` of `num_all` tokens see, (num_new, num_all)."""
    back = torch.arange(num_all - num_new, num_all, device=device)[:, None] - torch.arange(num_all, device=device)
    return (back >= 0) & (back < (window or num_all))

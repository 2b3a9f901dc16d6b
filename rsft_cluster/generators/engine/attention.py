"""Attention over blocks, and the door through which a Hugging Face model calls it.

A decode step reads every block once for all the rows that it belongs to: a prompt's block for the prompt's candidates
together, a row's block for the row. Each block gives a part, relative to the highest score of all of a row's parts,
and these are added up: softmax split over the sequence (Dao et al. 2023, "Flash-Decoding") and over shared prefixes
(Juravsky et al. 2024, "Hydragen").
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

from rsft_cluster.generators.drawing import FAINTEST

NAME = "rsft_blocks"
"""Under this name transformers knows the attention; no mask is registered for it, so the model makes none."""

HIDDEN = -1e30
"""Added to scores that are not to be seen; finite, so that differences stay numbers."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """What turns queries and keys into scores in one layer."""

    scale: float
    softcap: float | None = None


class Reader(Protocol):
    """A batch in mid-forward: it stores new keys and values, and attends to all that its tokens may see."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
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
    scoring = Scoring(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap)
    layer: Any = module.layer_idx
    return _READER.get().attend(layer, query[0], key[0], value[0], scoring)[None], None


AttentionInterface.register(NAME, _attend)


FEWEST = 4
"""Matrices of fewer rows are multiplied by other kernels on some CPUs, which add in another order (AMD EPYC)."""


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
class Region:
    """Blocks that stand together in the store."""

    places: Places
    keys: Tensor
    """(blocks, kv heads, dim, BLOCK)"""
    values: Tensor
    """(blocks, kv heads, BLOCK, value_dim)"""
    mask: Tensor
    """(blocks, width or 1, BLOCK): 0, or HIDDEN."""


def attend_blocks(query: Tensor, regions: Sequence[Region], *, softcap: float | None, exact_sums: bool) -> Tensor:
    """Return (rows * kv heads, group, value_dim) for `query` (rows * kv heads, group, dim), scaled.

    Places that no block belongs to are 0. With `exact_sums` a row's parts are added in float64, so that their order,
    which follows where blocks happen to lie, does not show in a float32.
    """
    num_places = len(query)
    fewest = FEWEST if exact_sums and query.device.type == "cpu" else 1
    scores = [_scores(query, region, softcap, fewest) for region in regions]
    highest = [s.amax(-1, keepdim=True) for s in scores]
    peak = _peak(regions, highest, num_places)
    masses, outputs = [], []
    for region, part in zip(regions, scores, strict=True):
        num_blocks, heads, size, value_dim = region.values.shape
        read, _ = region.places.of(heads)
        # Clamped: exp is up to two hundred times slower on a CPU where its result is no normal float.
        weights = part.sub_(peak.index_select(0, read)).clamp_(FAINTEST, 0.0).exp_()
        masses.append(weights.sum(-1, keepdim=True))
        flat = weights.view(num_blocks * heads, -1, size).to(region.values.dtype)
        output = _bmm(flat, region.values.reshape(-1, size, value_dim), fewest)
        outputs.append(output.view(len(part), -1, value_dim))
    dtype = torch.float64 if exact_sums else torch.float32
    total, whole = (_sum(regions, parts, num_places, dtype) for parts in (masses, outputs))
    return (whole / total.clamp(min=1e-30)).to(query.dtype)


def _scores(query: Tensor, region: Region, softcap: float | None, fewest: int) -> Tensor:
    """Return (parts, group, BLOCK), float32: a part for each block, kv head and row that it belongs to."""
    group, dim = query.shape[1:]
    num_blocks, heads, _, size = region.keys.shape
    width = region.places.rows.shape[1]
    read, _ = region.places.of(heads)
    picked = query.index_select(0, read).view(num_blocks * heads, width * group, dim)
    scores = _products(picked, region.keys.reshape(-1, dim, size), fewest)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    scores.view(num_blocks, heads, width, group, size).add_(region.mask[:, None, :, None, :])
    return scores.view(-1, group, size)


def _peak(regions: Sequence[Region], highest: Sequence[Tensor], num_places: int) -> Tensor:
    """Return the highest score of every place, (places, group, 1)."""
    if regions[0].places.parts is not None:
        return torch.cat(list(_gathered(regions, highest, HIDDEN)), 1).amax(1)
    peak = highest[0].new_full((num_places + 1, *highest[0].shape[1:]), HIDDEN)
    for region, part in zip(regions, highest, strict=True):
        _, add = region.places.of(region.values.shape[1])
        peak.scatter_reduce_(0, add[:, None, None].expand_as(part), part, "amax")
    return peak[:-1]


def _sum(regions: Sequence[Region], parts: Sequence[Tensor], num_places: int, dtype: torch.dtype) -> Tensor:
    """Return the sum of every place's parts, (places, group, dim).

    On a GPU they are gathered: adding from many threads would sum in another order every time.
    """
    if regions[0].places.parts is not None:
        return torch.stack([part.to(dtype).sum(1) for part in _gathered(regions, parts, 0.0)]).sum(0)
    whole = parts[0].new_zeros((num_places + 1, *parts[0].shape[1:]), dtype=dtype)
    for region, part in zip(regions, parts, strict=True):
        _, add = region.places.of(region.values.shape[1])
        whole.index_add_(0, add, part.to(dtype))
    return whole[:-1]


def _gathered(regions: Sequence[Region], parts: Sequence[Tensor], fill: float) -> Iterator[Tensor]:
    """Yield the parts of every place, region by region, (places, most, group, dim), filled up with `fill`."""
    for region, part in zip(regions, parts, strict=True):
        index, none = region.places.parts_of(region.values.shape[1])
        yield part[index].masked_fill(none[..., None, None], fill)


def scaled(query: Tensor, scoring: Scoring) -> Tensor:
    """Return queries with the scale in them: exact where it is a power of two, else in float32."""
    if query.dtype == torch.float32 or math.frexp(scoring.scale)[0] == 0.5:
        return query * scoring.scale
    return (query.float() * scoring.scale).to(query.dtype)


def _products(query: Tensor, key: Tensor, fewest: int) -> Tensor:
    """Return float32 products; a GPU gives them without rounding to the dtype of its operands first."""
    if query.is_cuda and query.dtype != torch.float32:
        return torch.bmm(query, key, out_dtype=torch.float32)
    return _bmm(query, key, fewest).float()


def _bmm(left: Tensor, right: Tensor, fewest: int) -> Tensor:
    """Return the products of matrices; the left ones are filled up to have so many rows."""
    missing = fewest - left.shape[1]
    if missing <= 0:
        return torch.bmm(left, right)
    return torch.bmm(functional.pad(left, (0, 0, 0, missing)), right)[:, :-missing].contiguous()


def attend_causally(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, *, window: int | None) -> Tensor:
    """Return (heads, tokens, value_dim) for the last tokens of a sequence, given all its keys and values."""
    heads, num_new, _ = query.shape
    num_all = key.shape[1]
    hidden = window is not None and num_all > window
    if scoring.softcap is None:
        mask = None if num_new == num_all and not hidden else _causal(num_new, num_all, window, query.device)
        return functional.scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=mask, is_causal=mask is None, scale=scoring.scale,
            enable_gqa=heads != key.shape[0],
        )[0]  # fmt: skip
    grouped = query.unflatten(0, (key.shape[0], -1))
    scores = (
        torch.tanh((grouped @ key[:, None].transpose(-1, -2)).float() * (scoring.scale / scoring.softcap))
        * scoring.softcap
    )
    scores = scores.masked_fill(~_causal(num_new, num_all, window, query.device), HIDDEN)
    return (scores.softmax(-1).to(value.dtype) @ value[:, None]).flatten(0, 1)


def _causal(num_new: int, num_all: int, window: int | None, device: torch.device) -> Tensor:
    """Return what the last `num_new` of `num_all` tokens see, (num_new, num_all)."""
    back = torch.arange(num_all - num_new, num_all, device=device)[:, None] - torch.arange(num_all, device=device)
    return (back >= 0) & (back < (window or num_all))

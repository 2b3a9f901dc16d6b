"""What one forward works on: prompts to prefill, or one new token for every row.

Both are one packed sequence to the model, (1, tokens), with a position a token; which tokens see which is known here.
All shapes follow from the arrays given, so that a step can be repeated on the same tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from rsft_cluster.generators.engine.attention import (
    HIDDEN,
    Places,
    Region,
    Scoring,
    attend_blocks,
    attend_causally,
    scaled,
)
from rsft_cluster.generators.engine.blocks import BLOCK, PRIVATE, SHARED, BlockStore
from rsft_cluster.generators.engine.rows import Rows, listed

MULTIPLE = 16
"""Tokens a forward are padded to a multiple: matrix products of fewer rows are summed in another order."""

_EVERYTHING = 1 << 40
"""More tokens than any row has: the padding row sees all of every block, and is read by nobody."""


_NOT_COPIED = ("store", "exact_sums", "_writes", "_masks")
"""Fields of a batch that copies share, or that are made from the others in each step anew."""


def padded(num: int) -> int:
    """Return the number of tokens of a forward over `num`."""
    return -(-num // MULTIPLE) * MULTIPLE


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one prompt to prefill: those from `start` on, the earlier ones being in the store."""

    token_ids: Sequence[int]
    start: int
    blocks: Sequence[int]
    """The prompt's blocks, all of them."""


class PrefillBatch:
    """Chunks of prompts, one after the other."""

    def __init__(self, chunks: Sequence[Chunk], store: BlockStore) -> None:
        self._chunks = chunks
        self._store = store
        device = store.keys[0].device
        num = padded(sum(len(c.token_ids) for c in chunks))
        tokens, positions = np.zeros(num, np.int64), np.zeros(num, np.int64)
        blocks = np.full(num, store.bin, np.int64)
        self.last: list[int] = []
        """Where each chunk's last token is."""
        at = 0
        for chunk in chunks:
            here = slice(at, at + len(chunk.token_ids))
            tokens[here] = chunk.token_ids
            positions[here] = np.arange(chunk.start, chunk.start + len(chunk.token_ids))
            blocks[here] = np.asarray(chunk.blocks)[positions[here] // BLOCK]
            at = here.stop
            self.last.append(at - 1)
        self.tokens = torch.from_numpy(tokens).to(device)
        self.positions = torch.from_numpy(positions).to(device)
        self._writes = _Writes(torch.from_numpy(blocks).to(device), self.positions % BLOCK)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Store the new keys and values; attend from each token to those before it in its prompt."""
        self._writes.write(self._store, layer, key, value)
        output = query.new_zeros((query.shape[1], query.shape[0], value.shape[-1]))
        at = 0
        for chunk in self._chunks:
            here = slice(at, at + len(chunk.token_ids))
            at = here.stop
            keys, values = key[:, here], value[:, here]
            if chunk.start:
                end = chunk.start + len(chunk.token_ids)
                keys, values = self._stored(layer, chunk, end)
            window = self._store.layers[layer].window
            output[here] = attend_causally(query[:, here], keys, values, scoring, window=window).transpose(0, 1)
        return output

    def _stored(self, layer: int, chunk: Chunk, end: int) -> tuple[Tensor, Tensor]:
        blocks = torch.as_tensor(chunk.blocks, device=self.tokens.device)
        keys = self._store.keys[layer][blocks].permute(1, 0, 3, 2).flatten(1, 2)
        values = self._store.values[layer][blocks].transpose(0, 1).flatten(1, 2)
        return keys[:, :end], values[:, :end]


@dataclass(slots=True)
class DecodeBatch:
    """One new token for every row, and all that a step needs to know; a step leaves it ready for the next one."""

    store: BlockStore
    exact_sums: bool
    """Whether not a bit may depend on where blocks lie."""
    tokens: Tensor
    """(rows): the last token of each row, whose keys and values are stored by this step."""
    keys: Tensor
    steps: Tensor
    """(rows): the number of the token that is drawn."""
    own: Tensor
    """(rows + 1): a row's own tokens in the store before this step."""
    positions: Tensor
    """(rows + 1): the position of `tokens`."""
    table: Tensor
    """(rows, 2): the block that the row's next token is stored in, and the one after it."""
    first: Tensor
    """(rows): how many blocks the row had filled when `table` was made."""
    private: Places
    """The row of every block from the low end of the store."""
    private_start: Tensor
    shared: Places
    """The rows of every block up to the high end of the store."""
    shared_start: Tensor
    shared_count: Tensor
    _writes: "_Writes | None" = None
    _masks: "dict[int | None, tuple[Tensor, Tensor]] | None" = None

    @classmethod
    def of(
        cls, rows: Rows, store: BlockStore, *, grid: int = 1, gathers: bool = False, exact_sums: bool = False
    ) -> Self:
        """Return the batch of all rows.

        Numbers of blocks are rounded up to the `grid`, and widths to powers of 2 where there is one, so that few
        shapes occur. With `gathers`, rows' parts are listed.
        """
        num, size = rows.num, padded(rows.num)
        device = store.keys[0].device

        def up(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        def column(values: np.ndarray, length: int = size) -> Tensor:
            return up(np.pad(values, (0, length - num)))

        def places(members: np.ndarray) -> Places:
            parts = listed(members.ravel(), size, fill=-1) if gathers else None
            if grid > 1 and parts is not None:
                parts = _widened(parts, _power(parts.shape[1]), fill=-1)
            return Places(up(members), size, None if parts is None else up(parts))

        own = rows.own[:num]
        first = own // BLOCK
        table = np.full((size, 2), store.bin, np.int64)
        table[:num, 0] = rows.blocks[np.arange(num), first]
        table[:num, 1] = rows.blocks[np.arange(num), np.minimum(first + 1, rows.blocks.shape[1] - 1)]
        end = min(-(-store.private_end() // grid) * grid, store.num_blocks)
        start = store.num_blocks - min(-(-(store.num_blocks - store.shared_start()) // grid) * grid, store.num_blocks)
        private = np.where(store.kind[:end] == PRIVATE, store.holder[:end], size)
        groups = np.where(store.kind[start:] == SHARED, store.holder[start:], 0)
        members = rows.by_group(int(groups.max(initial=0)) + 1, fill=size)
        width = members.shape[1]
        if grid > 1:
            width = _power(width)
        if exact_sums:
            width = max(width, 2)  # a product of one row alone is summed in another order
        members = _widened(members, width, fill=size)
        shared = np.where((store.kind[start:] == SHARED)[:, None], members[groups], size)
        own_tokens = column(own, size + 1)
        own_tokens[size] = _EVERYTHING
        return cls(
            store=store,
            exact_sums=exact_sums,
            tokens=column(rows.last[:num]),
            keys=column(rows.key[:num]),
            steps=column(rows.length[:num]),
            own=own_tokens,
            positions=column(rows.prompt_length[:num] + own, size + 1),
            table=up(table),
            first=column(first),
            private=places(private[:, None]),
            private_start=up(store.start[:end].copy()),
            shared=places(shared),
            shared_start=up(store.start[start:].copy()),
            shared_count=up(store.count[start:].copy()),
        )

    @property
    def token_positions(self) -> Tensor:
        """The positions of `tokens`."""
        return self.positions[:-1]

    @property
    def num_rows(self) -> int:
        """Rows, those of the padding included."""
        return len(self.tokens)

    def clone(self) -> Self:
        """Return a copy with tensors of its own, over the same store."""
        own = {f.name: getattr(self, f.name).clone() for f in fields(self) if f.name not in _NOT_COPIED}
        return replace(self, **own)

    def advance(self, tokens: Tensor) -> None:
        """Go on to the next step, with the tokens that were drawn."""
        self.tokens.copy_(tokens)
        self.steps += 1
        self.own[:-1] += 1
        self.positions[:-1] += 1
        self._writes = self._masks = None
        self.private.forget()
        self.shared.forget()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Store each row's new key and value; attend from it to its prompt and to its own tokens."""
        if self._writes is None:
            own = self.own[:-1]
            block = self.table.gather(1, (own // BLOCK - self.first).clamp(0, 1)[:, None]).squeeze(1)
            self._writes = _Writes(block, own % BLOCK)
        self._writes.write(self.store, layer, key, value)
        shape = self.store.layers[layer]
        heads = shape.heads
        grouped = scaled(query, scoring).transpose(0, 1).reshape(self.num_rows * heads, -1, query.shape[-1])
        private_mask, shared_mask = self._mask(shape.window)
        keys, values = self.store.keys[layer], self.store.values[layer]
        low = slice(self.private.num_blocks)
        regions = [Region(self.private, keys[low], values[low], private_mask)]
        if self.shared.num_blocks:
            high = slice(self.store.num_blocks - self.shared.num_blocks, self.store.num_blocks)
            regions.append(Region(self.shared, keys[high], values[high], shared_mask))
        attended = attend_blocks(grouped, regions, softcap=scoring.softcap, exact_sums=self.exact_sums)
        return attended.view(self.num_rows, -1, value.shape[-1])

    def _mask(self, window: int | None) -> tuple[Tensor, Tensor]:
        """Return what rows see of their own blocks and of their prompts', made once a step."""
        self._masks = {} if self._masks is None else self._masks
        if window not in self._masks:
            columns = torch.arange(BLOCK, device=self.tokens.device)
            private = self.own[self.private.rows] - (self.private_start[:, None] + columns)
            seen = private >= 0
            prompt = (columns < self.shared_count[:, None])[:, None, :]
            if window is not None:
                seen &= private < window
                back = self.positions[self.shared.rows][:, :, None] - (self.shared_start[:, None] + columns)[:, None, :]
                prompt = prompt & (back < window)
            self._masks[window] = (_hiding(~seen[:, None, :]), _hiding(~prompt))
        return self._masks[window]


def _power(number: int) -> int:
    """Return the smallest power of 2 from `number` on."""
    return 1 << (number - 1).bit_length()


def _widened(table: np.ndarray, width: int, *, fill: int) -> np.ndarray:
    return np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=fill)


def _hiding(hidden: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, HIDDEN)


class _Writes:
    """Where the tokens of a forward are stored: a block and an offset each."""

    def __init__(self, blocks: Tensor, offsets: Tensor) -> None:
        self._blocks, self._offsets = blocks, offsets
        self._flat: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def write(self, store: BlockStore, layer: int, key: Tensor, value: Tensor) -> None:
        """Store key and value, each (heads, tokens, dim)."""
        heads, dim = key.shape[0], key.shape[-1]
        if (heads, dim) not in self._flat:
            head = torch.arange(heads, device=key.device)
            block = (self._blocks[:, None] * heads + head).flatten()
            offset = self._offsets.repeat_interleave(heads)
            column = torch.arange(dim, device=key.device)
            self._flat[heads, dim] = (
                ((block[:, None] * dim + column) * BLOCK + offset[:, None]).flatten(),
                (block * BLOCK + offset),
            )
        key_places, value_places = self._flat[heads, dim]
        store.keys[layer].view(-1).index_copy_(0, key_places, key.transpose(0, 1).flatten())
        values = store.values[layer]
        values.view(-1, values.shape[-1]).index_copy_(0, value_places, value.transpose(0, 1).flatten(0, 1))

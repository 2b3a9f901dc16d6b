"""Keys and values in blocks of a few tokens: what a prompt's candidates share, and what a row has of its own.

Blocks are taken from the low end for rows and from the high end for prompts. So each kind stands close together, and
attention reads it in place, as one slice of the store. This module knows nothing about rows but their numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

BLOCK = 32
"""Tokens a block. A row wastes half a block on average; smaller blocks cost more for the same tokens."""

FREE, PRIVATE, SHARED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one attention layer stores of a token."""

    heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    """How many tokens back attention reaches, the current one included; None reaches all."""


def block_bytes(layers: Sequence[LayerShape], dtype: torch.dtype) -> int:
    """Return the size of one block over all layers."""
    return BLOCK * dtype.itemsize * sum(layer.heads * (layer.key_dim + layer.value_dim) for layer in layers)


class BlockStore:
    """A fixed number of blocks for every layer, and who holds which.

    `keys[layer]` is (blocks + 1, heads, dim, BLOCK), the way round in which a CPU multiplies small matrices twice as
    fast, and `values[layer]` (blocks + 1, heads, BLOCK, dim). The last block is a bin, which padding writes to and
    nothing reads.
    """

    def __init__(
        self, layers: Sequence[LayerShape], num_blocks: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layers = layers
        self.num_blocks = num_blocks
        make = {"dtype": dtype, "device": device}
        self.keys = [torch.zeros(num_blocks + 1, n.heads, n.key_dim, BLOCK, **make) for n in layers]
        self.values = [torch.zeros(num_blocks + 1, n.heads, BLOCK, n.value_dim, **make) for n in layers]
        self.kind = np.zeros(num_blocks, np.int8)
        self.holder = np.zeros(num_blocks, np.int64)
        """The row, or the group number of the prompt."""
        self.start = np.zeros(num_blocks, np.int64)
        """The block's first token, counted within the row's own tokens or within the prompt."""
        self.count = np.zeros(num_blocks, np.int64)
        """Tokens of a prompt in the block; rows know their own."""
        self.num_free = num_blocks

    def clear(self) -> None:
        """Take all blocks back."""
        self.kind[:] = FREE
        self.num_free = self.num_blocks

    @property
    def bin(self) -> int:
        """The block that padding writes to."""
        return self.num_blocks

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return sum(t.nbytes for t in (*self.keys, *self.values))

    def num_held(self, kind: int) -> int:
        """Return how many blocks rows (PRIVATE) or prompts (SHARED) hold."""
        return int((self.kind == kind).sum())

    def private_end(self) -> int:
        """Return the number of blocks from the low end within which all rows' blocks lie."""
        held = self.kind[::-1] == PRIVATE
        return self.num_blocks - int(held.argmax()) if held.any() else 0

    def shared_start(self) -> int:
        """Return the block from which all prompts' blocks lie."""
        held = self.kind == SHARED
        return int(held.argmax()) if held.any() else self.num_blocks

    def take_private(self, row: int, start: int) -> int:
        """Give a row the lowest free block for its own tokens from `start`. There must be a free one."""
        block = int((self.kind == FREE).argmax())
        self._hold(block, PRIVATE, row, start)
        return block

    def take_shared(self, group: int, num_tokens: int) -> list[int]:
        """Give a prompt the highest free blocks for all its tokens. There must be enough."""
        blocks = []
        for start in range(0, num_tokens, BLOCK):
            block = self.num_blocks - 1 - int((self.kind[::-1] == FREE).argmax())
            self._hold(block, SHARED, group, start)
            self.count[block] = min(BLOCK, num_tokens - start)
            blocks.append(block)
        return blocks

    def release(self, blocks: Sequence[int] | np.ndarray) -> None:
        """Take blocks back."""
        self.kind[blocks] = FREE
        self.num_free += len(blocks)

    def move_down(self, block: int) -> int:
        """Move a row's block to the lowest free place below it; return where it is now."""
        target = int((self.kind == FREE).argmax())
        if self.kind[target] != FREE or target >= block:
            return block
        for stored in (*self.keys, *self.values):
            stored[target] = stored[block]
        self._hold(target, PRIVATE, int(self.holder[block]), int(self.start[block]))
        self.release([block])
        return target

    def _hold(self, block: int, kind: int, holder: int, start: int) -> None:
        assert self.kind[block] == FREE
        self.kind[block], self.holder[block], self.start[block] = kind, holder, start
        self.num_free -= 1

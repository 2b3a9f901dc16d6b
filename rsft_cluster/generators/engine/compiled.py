"""A decode step on a CPU: one new token for every row, whose attention is compiled (`cpu_kernels.py`) where numba is.

Rows of a prompt stand beside each other in what is given to the kernel, and read its blocks together.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from rsft_cluster.generators.engine.attention import Scoring
from rsft_cluster.generators.engine.batches import padded
from rsft_cluster.generators.engine.blocks import BLOCK, SHARED, BlockStore
from rsft_cluster.generators.engine.rows import Rows

Part = TypeVar("Part")

logger = logging.getLogger(__name__)

STORED_AS = {torch.float32: np.float32, torch.bfloat16: np.uint16}
"""What the kernel takes; bfloat16, which numpy lacks, as bits."""
_FAR = 1 << 40
"""More tokens than any sequence has."""


class Plan(NamedTuple):
    """What some of the rows of a step read and write, rows of a prompt beside each other."""

    tokens: np.ndarray
    """(rows): which of the step's tokens each is."""
    positions: np.ndarray
    """(rows): where that is in its sequence."""
    places: np.ndarray
    """(rows, 2): the block and the offset that the token is stored at."""
    pieces: np.ndarray
    """(pieces, 5): a block, the first and the last + 1 row that see it, the position of its first token, and how many
    tokens it has, where not all rows see as many."""


class Layer(NamedTuple):
    """The tensors of one layer's attention; bfloat16 comes as uint16, its bits."""

    query: np.ndarray
    """(tokens, heads, dim)"""
    key: np.ndarray
    """(tokens, kv heads, dim)"""
    value: np.ndarray
    """(tokens, kv heads, value_dim)"""
    keys: np.ndarray
    values: np.ndarray
    """As in `BlockStore`."""
    output: np.ndarray
    """(tokens, heads, value_dim)"""


@cache
def kernel_for(dtype: torch.dtype) -> Any:
    """Return the kernel's module, compiled for keys and values of this type.

    None, and a word in the log, where numba is not installed or does not work.
    """
    if dtype not in STORED_AS:
        return None
    try:
        # An optional dependency, and nothing that a process which does not sample should import.
        from rsft_cluster.generators.engine import cpu_kernels  # noqa: PLC0415

        cpu_kernels.compile_for(STORED_AS[dtype], Layer, Plan)
    except Exception as error:  # compilers fail in many ways, and there is another way to go on
        reason = str(error).strip().splitlines() or [""]
        advice = "; pip install rsft-cluster[cpu]" if isinstance(error, ModuleNotFoundError) else ""
        logger.warning("event=attention_not_compiled reason=%s: %s%s", type(error).__name__, reason[0], advice)
        return None
    return cpu_kernels


class CompiledBatch:
    """All rows' last tokens, in the order of the rows, and padding up to what matrix products want."""

    def __init__(self, rows: Rows, store: BlockStore) -> None:
        self._rows, self._store = rows, store
        self._kernel = kernel_for(store.keys[0].dtype)
        self._num_steps = 0
        self._plans: list[Plan] | None = None
        num = rows.num

        def column(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.pad(values, (0, padded(num) - num)))

        self.tokens = column(rows.last[:num])
        self.keys = column(rows.key[:num])
        self.steps = column(rows.length[:num])
        self.token_positions = column(rows.prompt_length[:num] + rows.own[:num])

    def advance(self, tokens: Tensor) -> None:
        """Go on to the next step, with the tokens that were drawn."""
        self.tokens.copy_(tokens)
        self.steps += 1
        self.token_positions += 1
        self._num_steps += 1
        self._plans = None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Store each row's new key and value; attend from it to its prompt and to its own tokens."""
        if self._plans is None:
            order = np.argsort(self._rows.group[: self._rows.num], kind="stable")
            self._plans = [self._plan(part) for part in np.array_split(order, torch.get_num_threads()) if len(part)]
        new = [tensor.transpose(0, 1).contiguous() for tensor in (query, key, value)]
        output = query.new_zeros((query.shape[1], query.shape[0], value.shape[-1]))
        tensors = (*new, self._store.keys[layer], self._store.values[layer], output)
        arrays = Layer(*map(as_array, tensors))
        scale, softcap = np.float32(scoring.scale), np.float32(scoring.softcap or 0.0)
        window = self._store.layers[layer].window or _FAR

        def part(plan: Plan) -> None:
            self._kernel.attend(arrays, plan, scale, softcap, window)

        for_each(part, self._plans)
        return output

    def _plan(self, order: np.ndarray) -> Plan:
        """Return what these rows read and write in this step."""
        rows, store = self._rows, self._store
        group, own, prompt = rows.group[order], rows.own[order] + self._num_steps, rows.prompt_length[order]
        shared = np.flatnonzero(store.kind == SHARED)
        first, last = (np.searchsorted(group, store.holder[shared], side) for side in ("left", "right"))
        of_prompts = np.stack([shared, first, last, store.start[shared], store.count[shared]], 1)
        row, number = np.nonzero(np.arange(int(own.max()) // BLOCK + 1) <= (own // BLOCK)[:, None])
        start = prompt[row] + number * BLOCK
        of_rows = np.stack([rows.blocks[order[row], number], row, row + 1, start, np.full_like(row, BLOCK)], 1)
        pieces = np.concatenate([of_prompts[first < last], of_rows])
        return Plan(
            tokens=order,
            positions=prompt + own,
            places=np.stack([rows.blocks[order, own // BLOCK], own % BLOCK], 1),
            # By row, and a row's own after those of its prompt.
            pieces=pieces[np.lexsort((pieces[:, 3], pieces[:, 1]))],
        )


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a contiguous tensor's memory; bfloat16, which numpy lacks, as bits."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()


def for_each(work: Callable[[Part], None], parts: Sequence[Part]) -> None:
    """Do compiled work for every part, at the same time."""
    if len(parts) == 1:
        work(parts[0])
    else:
        list(_threads(len(parts)).map(work, parts))


@cache
def _threads(num: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num)

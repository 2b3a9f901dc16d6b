"""What is compiled by numba for a CPU: attention of a decode step, and RMS norms.

Keys and values are read where they lie. A row's sums run over its own blocks in its own order, whatever is decoded beside it.
"""

import logging
from typing import Any, NamedTuple

import numpy as np
from numba import from_dtype, njit, types

from rsft_cluster.generators.engine.blocks import BLOCK
from rsft_cluster.generators.engine.vectors import HIDDEN, TILE, add_products, cap, narrowed, weigh, widened

logger = logging.getLogger(__name__)


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


class Work(NamedTuple):
    """One kv head's rows, a query of its group after the other."""

    queries: np.ndarray
    """(queries, dim), scaled"""
    sums: np.ndarray
    """(queries, value_dim): weighted values"""
    states: np.ndarray
    """(queries, 2): the highest score so far, and the sum of weights relative to it"""


_compiled = njit(fastmath={"contract"}, error_model="numpy")


@_compiled
def _begin(head: Any, layer: Any, plan: Any, scale: Any, work: Any) -> None:
    """Store the rows' new keys and values; set queries and sums."""
    group = layer.query.shape[1] // layer.key.shape[1]
    for row in range(len(plan.tokens)):
        token, block, offset = plan.tokens[row], plan.places[row, 0], plan.places[row, 1]
        for d in range(layer.key.shape[2]):
            layer.keys[block, head, d, offset] = layer.key[token, head, d]
        for d in range(layer.value.shape[2]):
            layer.values[block, head, offset, d] = layer.value[token, head, d]
        for member in range(group):
            x = row * group + member
            work.states[x, 0], work.states[x, 1] = HIDDEN, 0.0
            for d in range(layer.query.shape[2]):
                work.queries[x, d] = widened(layer.query[token, head * group + member, d]) * scale
            for d in range(layer.value.shape[2]):
                work.sums[x, d] = 0.0


@_compiled
def _weigh_tile(x: Any, size: Any, scores: Any, limits: Any, softcap: Any, work: Any) -> None:
    """Turn a tile's scores into weights, 0 for rows beyond `size`; scale down the sums that are relative to less."""
    for i in range(TILE):
        if i >= size:
            scores[i] = 0.0
            continue
        if softcap > 0:
            cap(scores, i, softcap)
        loss = weigh(scores, i, limits[i], limits[TILE], work.states, x + i)
        if loss != 1.0:
            for d in range(work.sums.shape[1]):
                work.sums[x + i, d] *= loss


@_compiled
def _finish(head: Any, layer: Any, plan: Any, work: Any) -> None:
    """Write what came out."""
    group = layer.query.shape[1] // layer.key.shape[1]
    for row in range(len(plan.tokens)):
        for member in range(group):
            x, place = row * group + member, head * group + member
            share = np.float32(1.0) / work.states[x, 1]
            for d in range(layer.value.shape[2]):
                result = narrowed(work.sums[x, d] * share, layer.output[0, 0, 0])
                layer.output[plan.tokens[row], place, d] = result


@njit(nogil=True, fastmath={"contract"}, error_model="numpy")
def attend(layer: Any, plan: Any, scale: Any, softcap: Any, window: Any) -> None:
    """Store the new key and value of every row of the plan and attend from it to all that it sees.

    A `softcap` of 0 is none; a row sees `window` tokens, itself included.
    """
    heads, dim, value_dim = layer.key.shape[1], layer.key.shape[2], layer.value.shape[2]
    group = layer.query.shape[1] // heads
    num = len(plan.tokens) * group
    # The last tile may reach beyond the rows: what it adds there is nothing.
    work = Work(
        np.zeros((num + TILE, dim), np.float32),
        np.zeros((num + TILE, value_dim), np.float32),
        np.empty((num, 2), np.float32),
    )
    scores, limits = np.empty((TILE, BLOCK), np.float32), np.empty(TILE + 1, np.int64)
    for head in range(heads):
        _begin(head, layer, plan, scale, work)
        for piece in range(len(plan.pieces)):
            block, first, last, start, end = plan.pieces[piece]
            limits[TILE] = min(end, plan.positions[first] + 1 - start)
            at = (block * heads + head) * BLOCK
            for x in range(first * group, last * group, TILE):
                size = min(TILE, last * group - x)
                for i in range(size):
                    limits[i] = max(0, plan.positions[(x + i) // group] + 1 - window - start)
                scores[:] = 0.0
                add_products((work.queries, x * dim, dim), (layer.keys, at * dim), dim, (scores, 0, BLOCK))
                _weigh_tile(x, size, scores, limits, softcap, work)
                values, sums = (layer.values, at * value_dim), (work.sums, x * value_dim, value_dim)
                add_products((scores, 0, BLOCK), values, limits[TILE], sums)
        _finish(head, layer, plan, work)


@njit(nogil=True, fastmath={"contract", "reassoc", "nsz", "arcp"}, error_model="numpy")
def rms_norm(rows: Any, weight: Any, epsilon: Any, output: Any) -> None:
    """Write rows (rows, dim) divided by the root of their mean square, and times the weight (dim), float32.

    What is divided is rounded to the rows' type before it is multiplied.
    """
    num = rows.shape[1]
    for row in range(len(rows)):
        total = np.float32(0.0)
        for d in range(num):
            total += widened(rows[row, d]) * widened(rows[row, d])
        share = np.float32(1.0) / np.sqrt(total / np.float32(num) + epsilon)
        for d in range(num):
            divided = widened(narrowed(widened(rows[row, d]) * share, rows[0, 0]))
            output[row, d] = narrowed(divided * weight[d], rows[0, 0])


def compile_for(store_type: Any) -> None:
    """Compile for tensors of a numpy type, or load what an earlier process compiled on such a machine."""
    two, three, four = (types.Array(from_dtype(np.dtype(store_type)), num, "C") for num in (2, 3, 4))
    ints = [types.Array(types.int64, num, "C") for num in (1, 1, 2, 2)]
    layer, plan = types.NamedTuple([three, three, three, four, four, three], Layer), types.NamedTuple(ints, Plan)
    _compile(attend, (layer, plan, types.float32, types.float32, types.int64))
    _compile(rms_norm, (two, types.Array(types.float32, 1, "C"), types.float32, two))


def _compile(function: Any, signature: tuple[Any, ...]) -> None:
    try:
        function.enable_caching()
    except RuntimeError as error:
        logger.info("event=compiled_not_cached reason=%s", error)  # there is no folder that can be written
    function.disable_compile(False)
    function.compile(signature)
    function.disable_compile()  # whatever comes must be of a type that was foreseen

"""What numba compiles for a CPU: attention of a decode step, and what stands between a layer's matrix products.

Keys and values are read where they lie. A row's sums run over its own blocks in its own order, whatever is decoded
beside it.
"""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import from_dtype, njit, types

from rsft_cluster.generators.engine import vectors
from rsft_cluster.generators.engine.blocks import BLOCK
from rsft_cluster.generators.engine.vectors import (
    FLOAT,
    INDEX,
    INT,
    TILE,
    add_products,
    constant,
    copy_gated,
    copy_scaled,
    data_code,
    exp_code,
    fetch,
    intrinsic,
    larger_code,
    multiply_add_code,
    narrowed,
    read_code,
    reduce_code,
    spread_code,
    vector_of,
    widened,
    write_code,
)

logger = logging.getLogger(__name__)

HIDDEN = -1e30
"""Less than any score; finite, so that differences stay numbers."""


@intrinsic
def cap(_context: Any, scores: Any, row: Any, most: Any) -> Any:
    """Make `most * tanh(score / most)` of a row's scores (rows, BLOCK)."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores = data_code(context, builder, signature, arguments, 0)
        place = builder.mul(arguments[1], INDEX(BLOCK))
        score = read_code(builder, scores, place, BLOCK)
        most, one = spread_code(builder, arguments[2], BLOCK), constant(score.type, 1.0)
        size = larger_code(builder, score, builder.fneg(score))
        fall = exp_code(builder, builder.fdiv(builder.fmul(constant(score.type, -2.0), size), most))
        size = builder.fmul(most, builder.fdiv(builder.fsub(one, fall), builder.fadd(one, fall)))
        below = builder.fcmp_ordered("<", score, constant(score.type, 0.0))
        write_code(builder, scores, place, builder.select(below, builder.fneg(size), size))
        return context.get_dummy_value()

    return types.void(scores, types.intp, types.float32), code


@intrinsic
def weigh(_context: Any, scores: Any, row: Any, begin: Any, end: Any, states: Any, at: Any) -> Any:
    """Turn a row's scores (rows, BLOCK) into weights, 0 outside of [begin, end), relative to the row's highest score.

    states (rows, 2) at `at`, the highest score and the sum of weights so far, are brought up to date. Returns what
    older weights are to be multiplied by.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, states = (data_code(context, builder, signature, arguments, i) for i in (0, 4))
        row, begin, end, at = (arguments[i] for i in (1, 2, 3, 5))
        floats, ints = vector_of(FLOAT, BLOCK), vector_of(INT, BLOCK)
        lane = ir.Constant(ints, list(range(BLOCK)))
        begin, end = (spread_code(builder, builder.trunc(limit, INT), BLOCK) for limit in (begin, end))
        seen = builder.and_(builder.icmp_signed(">=", lane, begin), builder.icmp_signed("<", lane, end))
        place = builder.mul(row, INDEX(BLOCK))
        score = read_code(builder, scores, place, BLOCK)
        score = builder.select(seen, score, constant(floats, HIDDEN))
        state = builder.mul(at, INDEX(2))
        old, mass = (read_code(builder, states, builder.add(state, INDEX(i)), 1) for i in (0, 1))
        top = larger_code(builder, old, reduce_code(builder, "fmax", [score], ("nnan", "nsz")))
        weight = exp_code(builder, builder.fsub(score, spread_code(builder, top, BLOCK)))
        weight = builder.select(seen, weight, constant(floats, 0.0))
        write_code(builder, scores, place, weight)
        loss = exp_code(builder, builder.fsub(old, top))
        more = reduce_code(builder, "fadd", [FLOAT(0.0), weight], ("reassoc", "nsz"))
        write_code(builder, states, state, top)
        write_code(builder, states, builder.add(state, INDEX(1)), multiply_add_code(builder, mass, loss, more))
        return loss

    index = types.intp
    return types.float32(scores, index, index, index, states, index), code


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
    group, dim = layer.query.shape[1] // layer.key.shape[1], layer.key.shape[2]
    for row in range(len(plan.tokens)):
        token, block, offset = plan.tokens[row], plan.places[row, 0], plan.places[row, 1]
        for d in range(dim):
            layer.keys[block, head, d, offset] = layer.key[token, head, d]
        for d in range(layer.value.shape[2]):
            layer.values[block, head, offset, d] = layer.value[token, head, d]
        for member in range(group):
            x = row * group + member
            work.states[x, 0], work.states[x, 1] = HIDDEN, 0.0
            work.sums[x] = 0.0
            place = (token * layer.query.shape[1] + head * group + member) * dim
            copy_scaled(layer.query, place, scale, work.queries, x * dim, dim)


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
            place, num = (x + i) * work.sums.shape[1], work.sums.shape[1]
            copy_scaled(work.sums, place, loss, work.sums, place, num)


@_compiled
def _finish(head: Any, layer: Any, plan: Any, work: Any) -> None:
    """Write what came out."""
    group, dim = layer.query.shape[1] // layer.key.shape[1], layer.value.shape[2]
    for row in range(len(plan.tokens)):
        for member in range(group):
            x = row * group + member
            place = (plan.tokens[row] * layer.query.shape[1] + head * group + member) * dim
            copy_scaled(work.sums, x * dim, np.float32(1.0) / work.states[x, 1], layer.output, place, dim)


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
            if piece + 1 < len(plan.pieces):
                then = (plan.pieces[piece + 1, 0] * heads + head) * BLOCK
                fetch(layer.keys, then * dim, BLOCK * dim)
                fetch(layer.values, then * value_dim, BLOCK * value_dim)
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


@njit(nogil=True, error_model="numpy")
def gate(rows: Any, output: Any) -> None:
    """Write silu(x) * y of rows that hold all x and then all y, (rows, 2 * dim), into (rows, dim)."""
    num = output.shape[1]
    for row in range(len(rows)):
        copy_gated(rows, row * 2 * num, output, row * num, num)


def compile_for(store_type: Any, layer_type: Any, plan_type: Any) -> None:
    """Compile for tensors of a numpy type, or load what an earlier process compiled on such a machine."""
    two, three, four = (types.Array(from_dtype(np.dtype(store_type)), num, "C") for num in (2, 3, 4))
    ints = [types.Array(types.int64, num, "C") for num in (1, 1, 2, 2)]
    layer, plan = (
        types.NamedTuple([three, three, three, four, four, three], layer_type),
        types.NamedTuple(ints, plan_type),
    )
    _compile(attend, (layer, plan, types.float32, types.float32, types.int64))
    _compile(rms_norm, (two, types.Array(types.float32, 1, "C"), types.float32, two))
    _compile(gate, (two, two))


def _compile(function: Any, signature: tuple[Any, ...]) -> None:
    try:
        function.enable_caching()
    except RuntimeError as error:
        logger.info("event=compiled_not_cached reason=%s", error)  # there is no folder that can be written
    else:
        # numba forgets what it cached when this module changes; what is compiled is made of that one too.
        cached = function._cache._cache_file
        cached._source_stamp = (cached._source_stamp, Path(vectors.__file__).read_bytes())
    function.disable_compile(False)
    function.compile(signature)
    function.disable_compile()  # whatever comes must be of a type that was foreseen

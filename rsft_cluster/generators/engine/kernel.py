"""What numba compiles for a CPU: attention of a decode step, and RMS norms.

Keys and values are read where they lie. A row's sums run over its own blocks in its own order, whatever is decoded
beside it. LLVM finds no vectors by itself in loops as short as these are, so it is given them: functions that end in
`_code` build its instructions, and intrinsics of them are called from compiled loops. All of this is one module, since
numba's cache knows a function by its module's age alone.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import extending, from_dtype, njit, types
from numba.core import cgutils

from rsft_cluster.generators.engine.blocks import BLOCK

logger = logging.getLogger(__name__)

intrinsic: Any = extending.intrinsic
"""Callable without the context, which comes first: more than its type says."""
TILE = 4
"""Rows that share a reading of a block: with two vectors each, their sums fit into the registers."""
LANES = 16
"""Floats a vector: a register of AVX-512, two of AVX2, four of NEON."""
HIDDEN = -1e30
"""Less than any score; finite, so that differences stay numbers."""
FAINTEST = -80.0
"""e^-80 changes no float, and is no denormal one."""

_FLOAT, _SHORT, _INT, _INDEX = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FUSED = ("contract",)
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
"""The polynomial of Cephes' expf, highest power first."""


def _vector(element: Any, lanes: int) -> Any:
    return element if lanes == 1 else ir.VectorType(element, lanes)


def _lanes(kind: Any) -> int:
    return kind.count if isinstance(kind, ir.VectorType) else 1


def _constant(kind: Any, value: float) -> Any:
    """Return the number, or a vector of it."""
    lanes = _lanes(kind)
    element = kind.element if lanes > 1 else kind
    number = float(np.float32(value)) if element == _FLOAT else int(value)
    return ir.Constant(kind, number if lanes == 1 else [number] * lanes)


def _spread_code(builder: Any, value: Any, lanes: int) -> Any:
    """Return a vector of the value."""
    if lanes == 1:
        return value
    nothing = ir.Constant(_vector(value.type, lanes), ir.Undefined)
    first = builder.insert_element(nothing, value, _INT(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(_vector(_INT, lanes), [0] * lanes))


def _widened_code(builder: Any, value: Any) -> Any:
    lanes = _lanes(value.type)
    if value.type == _vector(_FLOAT, lanes):
        return value
    wide = _vector(_INT, lanes)
    return builder.bitcast(builder.shl(builder.zext(value, wide), _constant(wide, 16)), _vector(_FLOAT, lanes))


def _read_code(builder: Any, array: Any, index: Any, lanes: int) -> Any:
    """Return so many floats from `index` on; 16 bits are a bfloat16, the upper ones of a float."""
    element = array.type.pointee
    place = builder.bitcast(builder.gep(array, [index]), _vector(element, lanes).as_pointer())
    return _widened_code(builder, builder.load(place, align=2 if element == _SHORT else 4))


def _write_code(builder: Any, array: Any, index: Any, value: Any) -> None:
    builder.store(value, builder.bitcast(builder.gep(array, [index]), value.type.as_pointer()), align=4)


def _multiply_add_code(builder: Any, left: Any, right: Any, to: Any) -> Any:
    return builder.fadd(builder.fmul(left, right, flags=_FUSED), to, flags=_FUSED)


def _larger_code(builder: Any, left: Any, right: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", left, right), left, right)


def _exp_code(builder: Any, x: Any) -> Any:
    """Return e^x to 1e-7, for x in [FAINTEST, 0]; below, e^FAINTEST."""
    kind = x.type
    ints = _vector(_INT, _lanes(kind))
    x = _larger_code(builder, x, _constant(kind, FAINTEST))
    # Added and taken off, 1.5 * 2^23 leaves a whole number.
    shift = _constant(kind, 12582912.0)
    whole = builder.fsub(_multiply_add_code(builder, x, _constant(kind, np.log2(np.e)), shift), shift)
    rest = _multiply_add_code(builder, whole, _constant(kind, -0.693359375), x)
    rest = _multiply_add_code(builder, whole, _constant(kind, 2.12194440e-4), rest)
    power = _constant(kind, _EXP[0])
    for factor in (*_EXP[1:], 1.0, 1.0):
        power = _multiply_add_code(builder, power, rest, _constant(kind, factor))
    exponent = builder.add(builder.fptosi(whole, ints), _constant(ints, 127))
    return builder.fmul(power, builder.bitcast(builder.shl(exponent, _constant(ints, 23)), kind))


def _reduce_code(builder: Any, name: str, arguments: Sequence[Any], flags: Sequence[str]) -> Any:
    kind = ir.FunctionType(_FLOAT, [argument.type for argument in arguments])
    lanes = _lanes(arguments[-1].type)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.{name}.v{lanes}f32")
    return builder.call(function, arguments, fastmath=flags)


def _data(context: Any, builder: Any, signature: Any, arguments: Sequence[Any], i: int) -> Any:
    """Return where an argument, which is an array, has its numbers."""
    return context.make_array(signature.args[i])(context, builder, arguments[i]).data


@intrinsic
def add_products(_context: Any, left: Any, right: Any, num: Any, to: Any) -> Any:
    """Add weights (TILE, num) times a matrix (num, width) to sums (TILE, width).

    `left` is an array, where in it the weights begin, and how far it is from a row to the next; `right` an array and
    where the matrix begins; `to` an array, where the sums begin, and the width of both.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def parts(i: int) -> list[Any]:
            array, *places = cgutils.unpack_tuple(builder, arguments[i])
            return [context.make_array(signature.args[i][0])(context, builder, array).data, *places]

        (weights, weight_at, weight_stride), (matrix, matrix_at), (sums, sum_at, width) = map(parts, (0, 1, 3))
        num = arguments[2]

        def place(at: Any, row: Any, stride: Any, column: Any) -> Any:
            return builder.add(builder.add(at, builder.mul(row, stride)), column)

        def columns(start: Any, end: Any, lanes: int, num_vectors: int) -> None:
            step = _INDEX(lanes * num_vectors)
            tile = [(row, vector) for row in range(TILE) for vector in range(num_vectors)]
            with cgutils.for_range_slice(builder, start, end, step, _INDEX) as (first, _):
                at = [builder.add(first, _INDEX(vector * lanes)) for vector in range(num_vectors)]
                places = [place(sum_at, _INDEX(row), width, at[vector]) for row, vector in tile]
                totals = [cgutils.alloca_once(builder, _vector(_FLOAT, lanes)) for _ in tile]
                for where, total in zip(places, totals, strict=True):
                    builder.store(_read_code(builder, sums, where, lanes), total)
                with cgutils.for_range(builder, num, intp=_INDEX) as loop:
                    right = [
                        _read_code(builder, matrix, place(matrix_at, loop.index, width, column), lanes) for column in at
                    ]
                    left = [
                        _read_code(builder, weights, place(weight_at, _INDEX(row), weight_stride, loop.index), 1)
                        for row in range(TILE)
                    ]
                    left = [_spread_code(builder, weight, lanes) for weight in left]
                    for (row, vector), total in zip(tile, totals, strict=True):
                        more = _multiply_add_code(builder, left[row], right[vector], builder.load(total))
                        builder.store(more, total)
                for where, total in zip(places, totals, strict=True):
                    _write_code(builder, sums, where, builder.load(total))

        pairs, whole = (builder.and_(width, _INDEX(-step)) for step in (2 * LANES, LANES))
        columns(_INDEX(0), pairs, LANES, 2)
        columns(pairs, whole, LANES, 1)
        columns(whole, width, 1, 1)
        return context.get_dummy_value()

    return types.void(left, right, types.intp, to), code


@intrinsic
def cap(_context: Any, scores: Any, row: Any, most: Any) -> Any:
    """Make `most * tanh(score / most)` of a row's scores (rows, BLOCK)."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores = _data(context, builder, signature, arguments, 0)
        place = builder.mul(arguments[1], _INDEX(BLOCK))
        score = _read_code(builder, scores, place, BLOCK)
        most, one = _spread_code(builder, arguments[2], BLOCK), _constant(score.type, 1.0)
        size = _larger_code(builder, score, builder.fneg(score))
        fall = _exp_code(builder, builder.fdiv(builder.fmul(_constant(score.type, -2.0), size), most))
        size = builder.fmul(most, builder.fdiv(builder.fsub(one, fall), builder.fadd(one, fall)))
        below = builder.fcmp_ordered("<", score, _constant(score.type, 0.0))
        _write_code(builder, scores, place, builder.select(below, builder.fneg(size), size))
        return context.get_dummy_value()

    return types.void(scores, types.intp, types.float32), code


@intrinsic
def weigh(_context: Any, scores: Any, row: Any, begin: Any, end: Any, states: Any, at: Any) -> Any:
    """Turn a row's scores (rows, BLOCK) into weights, 0 outside of [begin, end), relative to the row's highest score.

    states (rows, 2) at `at`, the highest score and the sum of weights so far, are brought up to date. Returns what
    older weights are to be multiplied by.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, states = (_data(context, builder, signature, arguments, i) for i in (0, 4))
        row, begin, end, at = (arguments[i] for i in (1, 2, 3, 5))
        floats, ints = _vector(_FLOAT, BLOCK), _vector(_INT, BLOCK)
        lane = ir.Constant(ints, list(range(BLOCK)))
        begin, end = (_spread_code(builder, builder.trunc(limit, _INT), BLOCK) for limit in (begin, end))
        seen = builder.and_(builder.icmp_signed(">=", lane, begin), builder.icmp_signed("<", lane, end))
        place = builder.mul(row, _INDEX(BLOCK))
        score = _read_code(builder, scores, place, BLOCK)
        score = builder.select(seen, score, _constant(floats, HIDDEN))
        state = builder.mul(at, _INDEX(2))
        old, mass = (_read_code(builder, states, builder.add(state, _INDEX(i)), 1) for i in (0, 1))
        top = _larger_code(builder, old, _reduce_code(builder, "fmax", [score], ("nnan", "nsz")))
        weight = _exp_code(builder, builder.fsub(score, _spread_code(builder, top, BLOCK)))
        weight = builder.select(seen, weight, _constant(floats, 0.0))
        _write_code(builder, scores, place, weight)
        loss = _exp_code(builder, builder.fsub(old, top))
        more = _reduce_code(builder, "fadd", [_FLOAT(0.0), weight], ("reassoc", "nsz"))
        _write_code(builder, states, state, top)
        _write_code(builder, states, builder.add(state, _INDEX(1)), _multiply_add_code(builder, mass, loss, more))
        return loss

    index = types.intp
    return types.float32(scores, index, index, index, states, index), code


@intrinsic
def widened(_context: Any, value: Any) -> Any:
    """Return a number of a tensor as a float; 16 bits are a bfloat16."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _widened_code(builder, arguments[0])

    return types.float32(value), code


@intrinsic
def narrowed(_context: Any, value: Any, like: Any) -> Any:
    """Return a float as a number of the same tensor as `like`: a bfloat16 is the nearest, to even where two are."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        value, like = arguments
        if like.type == _FLOAT:
            return value
        bits = builder.bitcast(value, _INT)
        odd = builder.and_(builder.lshr(bits, _INT(16)), _INT(1))
        nearest = builder.add(bits, builder.add(odd, _INT(0x7FFF)))
        return builder.trunc(builder.lshr(nearest, _INT(16)), _SHORT)

    return like(types.float32, like), code


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


def _compile(function: Any, signature: tuple[Any, ...]) -> None:
    try:
        function.enable_caching()
    except RuntimeError as error:
        logger.info("event=compiled_not_cached reason=%s", error)  # there is no folder that can be written
    function.disable_compile(False)
    function.compile(signature)
    function.disable_compile()  # whatever comes must be of a type that was foreseen

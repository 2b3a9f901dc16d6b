"""Vector code for a CPU, as numba intrinsics: a tile's products with a block, and the weights of a row's scores.

LLVM finds no vectors by itself in loops as short as these are, so it is given them. Functions that end in `_code`
build LLVM instructions; the others are called from compiled code.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types
from numba.core import cgutils

from rsft_cluster.generators.engine.blocks import BLOCK

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


def _read_code(builder: Any, array: Any, index: Any, lanes: int) -> Any:
    """Return so many floats from `index` on; 16 bits are a bfloat16, the upper ones of a float."""
    element = array.type.pointee
    place = builder.bitcast(builder.gep(array, [index]), _vector(element, lanes).as_pointer())
    found = builder.load(place, align=element.width // 8 if element == _SHORT else 4)
    if element != _SHORT:
        return found
    wide = _vector(_INT, lanes)
    return builder.bitcast(builder.shl(builder.zext(found, wide), _constant(wide, 16)), _vector(_FLOAT, lanes))


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
def _float_of(_context: Any, bits: Any) -> Any:
    """Return the float that has these bits."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _FLOAT)

    return types.float32(types.uint32), code


@intrinsic
def _bits_of(_context: Any, value: Any) -> Any:
    """Return a float's bits."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _INT)

    return types.uint32(types.float32), code


def widened(value: Any) -> Any:
    """Return a number of a tensor as a float; 16 bits are a bfloat16."""
    raise NotImplementedError


def narrowed(value: Any, like: Any) -> Any:
    """Return a float as a number of the same tensor as `like`: a bfloat16 is the nearest, to even where two are."""
    raise NotImplementedError


@extending.overload(widened, inline="always")
def _widened(value):
    if isinstance(value, types.Integer):
        return lambda value: _float_of(np.uint32(np.uint32(value) << np.uint32(16)))
    return lambda value: value


@extending.overload(narrowed, inline="always")
def _narrowed(value, like):
    if isinstance(like, types.Integer):
        return lambda value, like: _rounded(_bits_of(value))
    return lambda value, like: value


@njit
def _rounded(bits: Any) -> Any:
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16(np.uint32(bits + half) >> np.uint32(16))

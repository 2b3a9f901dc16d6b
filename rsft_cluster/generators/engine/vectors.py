"""Vectors for compiled loops: what builds LLVM's instructions (`..._code`), and functions that loops call.

LLVM finds no vectors by itself in loops as short as attention's, so it is given them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

intrinsic: Any = extending.intrinsic
"""Callable without the context, which comes first: more than its type says."""
TILE = 4
"""Rows that share a reading of a block: with two vectors each, their sums fit into the registers."""
LANES = 16
"""Floats a vector: a register of AVX-512, two of AVX2, four of NEON."""
FAINTEST = -80.0
"""e^-80 changes no float, and is no denormal one."""
CACHE_LINE = 64
"""Bytes."""

FLOAT, SHORT, INT, INDEX = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FUSED = ("contract",)
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
"""The polynomial of Cephes' expf, highest power first."""


def vector_of(element: Any, lanes: int) -> Any:
    """Return the type of a vector; of one lane, the element itself."""
    return element if lanes == 1 else ir.VectorType(element, lanes)


def lanes_of(kind: Any) -> int:
    """Return how many lanes a type has."""
    return kind.count if isinstance(kind, ir.VectorType) else 1


def constant(kind: Any, value: float) -> Any:
    """Return the number, or a vector of it."""
    lanes = lanes_of(kind)
    element = kind.element if lanes > 1 else kind
    number = float(np.float32(value)) if element == FLOAT else int(value)
    return ir.Constant(kind, number if lanes == 1 else [number] * lanes)


def spread_code(builder: Any, value: Any, lanes: int) -> Any:
    """Return a vector of the value."""
    if lanes == 1:
        return value
    nothing = ir.Constant(vector_of(value.type, lanes), ir.Undefined)
    first = builder.insert_element(nothing, value, INT(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(vector_of(INT, lanes), [0] * lanes))


def widened_code(builder: Any, value: Any) -> Any:
    """Return numbers of a tensor as floats; 16 bits are a bfloat16, the upper ones of a float."""
    lanes = lanes_of(value.type)
    if value.type == vector_of(FLOAT, lanes):
        return value
    wide = vector_of(INT, lanes)
    return builder.bitcast(builder.shl(builder.zext(value, wide), constant(wide, 16)), vector_of(FLOAT, lanes))


def narrowed_code(builder: Any, value: Any, element: Any) -> Any:
    """Return floats as numbers of a tensor; of two bfloat16 that are as near, the even one."""
    if element == FLOAT:
        return value
    wide = vector_of(INT, lanes_of(value.type))
    bits = builder.bitcast(value, wide)
    odd = builder.and_(builder.lshr(bits, constant(wide, 16)), constant(wide, 1))
    nearest = builder.add(bits, builder.add(odd, constant(wide, 0x7FFF)))
    return builder.trunc(builder.lshr(nearest, constant(wide, 16)), vector_of(SHORT, lanes_of(value.type)))


def read_code(builder: Any, array: Any, index: Any, lanes: int) -> Any:
    """Return so many floats from `index` on; 16 bits are a bfloat16, the upper ones of a float."""
    element = array.type.pointee
    place = builder.bitcast(builder.gep(array, [index]), vector_of(element, lanes).as_pointer())
    return widened_code(builder, builder.load(place, align=2 if element == SHORT else 4))


def write_code(builder: Any, array: Any, index: Any, value: Any) -> None:
    """Write floats from `index` on."""
    element = array.type.pointee
    value = narrowed_code(builder, value, element)
    place = builder.bitcast(builder.gep(array, [index]), value.type.as_pointer())
    builder.store(value, place, align=2 if element == SHORT else 4)


def multiply_add_code(builder: Any, left: Any, right: Any, to: Any) -> Any:
    """Return left * right + to, rounded once where the machine can."""
    return builder.fadd(builder.fmul(left, right, flags=_FUSED), to, flags=_FUSED)


def larger_code(builder: Any, left: Any, right: Any) -> Any:
    """Return the larger of two numbers, or of each pair."""
    return builder.select(builder.fcmp_ordered(">", left, right), left, right)


def exp_code(builder: Any, x: Any) -> Any:
    """Return e^x to 1e-7, for x in [FAINTEST, 0]; below, e^FAINTEST."""
    kind = x.type
    ints = vector_of(INT, lanes_of(kind))
    x = larger_code(builder, x, constant(kind, FAINTEST))
    # Added and taken off, 1.5 * 2^23 leaves a whole number.
    shift = constant(kind, 12582912.0)
    whole = builder.fsub(multiply_add_code(builder, x, constant(kind, np.log2(np.e)), shift), shift)
    rest = multiply_add_code(builder, whole, constant(kind, -0.693359375), x)
    rest = multiply_add_code(builder, whole, constant(kind, 2.12194440e-4), rest)
    power = constant(kind, _EXP[0])
    for factor in (*_EXP[1:], 1.0, 1.0):
        power = multiply_add_code(builder, power, rest, constant(kind, factor))
    exponent = builder.add(builder.fptosi(whole, ints), constant(ints, 127))
    return builder.fmul(power, builder.bitcast(builder.shl(exponent, constant(ints, 23)), kind))


def reduce_code(builder: Any, name: str, arguments: Sequence[Any], flags: Sequence[str]) -> Any:
    """Return what LLVM's reduction of that name makes of the last argument, a vector."""
    kind = ir.FunctionType(FLOAT, [argument.type for argument in arguments])
    lanes = lanes_of(arguments[-1].type)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.{name}.v{lanes}f32")
    return builder.call(function, arguments, fastmath=flags)


def data_code(context: Any, builder: Any, signature: Any, arguments: Sequence[Any], i: int) -> Any:
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
            step = INDEX(lanes * num_vectors)
            tile = [(row, vector) for row in range(TILE) for vector in range(num_vectors)]
            with cgutils.for_range_slice(builder, start, end, step, INDEX) as (first, _):
                at = [builder.add(first, INDEX(vector * lanes)) for vector in range(num_vectors)]
                places = [place(sum_at, INDEX(row), width, at[vector]) for row, vector in tile]
                totals = [cgutils.alloca_once(builder, vector_of(FLOAT, lanes)) for _ in tile]
                for where, total in zip(places, totals, strict=True):
                    builder.store(read_code(builder, sums, where, lanes), total)
                with cgutils.for_range(builder, num, intp=INDEX) as loop:
                    right = [
                        read_code(builder, matrix, place(matrix_at, loop.index, width, column), lanes) for column in at
                    ]
                    left = [
                        read_code(builder, weights, place(weight_at, INDEX(row), weight_stride, loop.index), 1)
                        for row in range(TILE)
                    ]
                    left = [spread_code(builder, weight, lanes) for weight in left]
                    for (row, vector), total in zip(tile, totals, strict=True):
                        more = multiply_add_code(builder, left[row], right[vector], builder.load(total))
                        builder.store(more, total)
                for where, total in zip(places, totals, strict=True):
                    write_code(builder, sums, where, builder.load(total))

        pairs, whole = (builder.and_(width, INDEX(-step)) for step in (2 * LANES, LANES))
        columns(INDEX(0), pairs, LANES, 2)
        columns(pairs, whole, LANES, 1)
        columns(whole, width, 1, 1)
        return context.get_dummy_value()

    return types.void(left, right, types.intp, to), code


def _each_code(builder: Any, num: Any, body: Callable[[Any, int], None]) -> None:
    """Let `body(first, lanes)` build what is done with LANES of `num` numbers at once, and with each that is left."""
    whole = builder.and_(num, INDEX(-LANES))
    for begin, end, lanes in ((INDEX(0), whole, LANES), (whole, num, 1)):
        with cgutils.for_range_slice(builder, begin, end, INDEX(lanes), INDEX) as (first, _):
            body(first, lanes)


@intrinsic
def copy_scaled(_context: Any, source: Any, at: Any, factor: Any, target: Any, to: Any, num: Any) -> Any:
    """Write `num` numbers of an array, from `at` on, times a factor into another array, from `to` on."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (data_code(context, builder, signature, arguments, i) for i in (0, 3))
        at, factor, to, num = (arguments[i] for i in (1, 2, 4, 5))

        def body(first: Any, lanes: int) -> None:
            value = read_code(builder, source, builder.add(at, first), lanes)
            value = builder.fmul(value, spread_code(builder, factor, lanes))
            write_code(builder, target, builder.add(to, first), value)

        _each_code(builder, num, body)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.float32, target, types.intp, types.intp), code


@intrinsic
def copy_gated(_context: Any, source: Any, at: Any, target: Any, to: Any, num: Any) -> Any:
    """Write silu(x) * y of `num` x from `at` on, and as many y after them, into an array of that type, from `to` on.

    silu(x) = x / (1 + e^-x) is rounded to the type before it is multiplied.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (data_code(context, builder, signature, arguments, i) for i in (0, 2))
        at, to, num = (arguments[i] for i in (1, 3, 4))

        def body(first: Any, lanes: int) -> None:
            place = builder.add(at, first)
            x, y = (read_code(builder, source, start, lanes) for start in (place, builder.add(place, num)))
            one = constant(x.type, 1.0)
            below = builder.fcmp_ordered("<", x, constant(x.type, 0.0))
            fall = exp_code(builder, builder.select(below, x, builder.fneg(x)))
            share = builder.fdiv(builder.select(below, fall, one), builder.fadd(one, fall))
            faintest = constant(x.type, FAINTEST)
            x = builder.select(builder.fcmp_ordered("<", x, faintest), faintest, x)
            gate = narrowed_code(builder, builder.fmul(x, share), source.type.pointee)
            write_code(builder, target, builder.add(to, first), builder.fmul(widened_code(builder, gate), y))

        _each_code(builder, num, body)
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp, types.intp), code


@intrinsic
def fetch(_context: Any, array: Any, at: Any, num: Any) -> Any:
    """Let `num` numbers of an array, from `at` on, come into the cache while other work is done."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = data_code(context, builder, signature, arguments, 0)
        _, at, num = arguments
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, INT, INT, INT])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        step = INDEX(CACHE_LINE // (2 if array.type.pointee == SHORT else 4))
        with cgutils.for_range_slice(builder, INDEX(0), num, step, INDEX) as (i, _):
            place = builder.bitcast(builder.gep(array, [builder.add(at, i)]), byte)
            builder.call(prefetch, [place, INT(0), INT(3), INT(1)])  # to be read, into the nearest cache, as data
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), code


@intrinsic
def widened(_context: Any, value: Any) -> Any:
    """Return a number of a tensor as a float; 16 bits are a bfloat16."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return widened_code(builder, arguments[0])

    return types.float32(value), code


@intrinsic
def narrowed(_context: Any, value: Any, like: Any) -> Any:
    """Return a float as a number of the same tensor as `like`: a bfloat16 is the nearest, to even where two are."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return narrowed_code(builder, arguments[0], arguments[1].type)

    return like(types.float32, like), code

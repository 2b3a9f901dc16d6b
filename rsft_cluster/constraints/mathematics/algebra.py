r"""Mathematical expressions: LaTeX or plain text to sympy, and whether two of them are equal.

The parser is latex2sympy2-extended, that of math-verify: a grammar, which evaluates no Python. What is given to it is
bounded before (length, depth, digits, powers of powers, commands), since it and sympy would work on 9^{9^{9^9}} for
ever. This module imports sympy (a quarter of a second): it is loaded where the first expression is met.

Expressions are equal when they have the same value, to 40 digits, at random points (Schwartz 1980, Zippel 1979), so
no simplification is needed and no decimal is rounded: 0.333 is 333/1000 and not 1/3. Where neither side can be
evaluated, `CannotTellError` is raised.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from rsft_cluster.constraints.answers.answers import Margin
from rsft_cluster.constraints.mathematics.notation import UnreadableError, as_latex
from rsft_cluster.constraints.mathematics.real_sets import Piece, of_relations, united, without_points

DIGITS = 40
"""Digits in which values agree."""
_PRECISION = 60
_ZERO = sympy.Float("1e-70", _PRECISION)
_HUGE = sympy.Float("1e120", _PRECISION)
"""Zeros are evaluated to less than `_ZERO`, and quotients by such zeros to more than this."""
_MAX_BITS = 4096
"""Of any number that an expression may have for a value or a part; 2^4096 has 1,234 digits."""
_MAX_SYMBOLS = 12
_NUM_POINTS = 4

_ROUNDED = Margin.of(0, 0.005)
"""How far the sides of a chain like 1/3 = 0.333 may lie apart."""

_KINDS = {"tuple": sympy.Tuple, "union": sympy.Union, "set": sympy.FiniteSet, "relations": sympy.And}
_NORMALIZED = NormalizationConfig(units=False, malformed_operators=True, nits=False, boxed="none", equations=False)
_CONVERTED = ConversionConfig(lowercase_symbols=False)


class CannotTellError(ValueError):
    """Two expressions can be read, and not compared."""


@dataclass(frozen=True)
class Collection:
    """Several values in one: an interval, a tuple, a set, a matrix."""

    kind: str
    """With all that is no value: shape, which ends are open."""
    parts: tuple[Any, ...]
    ordered: bool = True


@lru_cache(maxsize=4096)
def parsed(text: str) -> Any:
    """Return a text (as `unified`) as a sympy object or a Collection of such; raises UnreadableError."""
    latex = as_latex(text)
    try:
        found = latex2sympy(latex, is_real=True, normalization_config=_NORMALIZED, conversion_config=_CONVERTED)
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # the parser raises nothing more precise
        raise UnreadableError(f"cannot be read as mathematics: {str(error).splitlines()[0]}") from error
    return _structured(found)


def constant(value: Fraction, name: str | None = None) -> Any:
    """Return a number, or the equation of a name with it, as `parsed` would."""
    number = sympy.Rational(value)
    return number if name is None else sympy.Eq(sympy.Symbol(name, real=True), number, evaluate=False)


def equal(found: Any, wanted: Any, margin: Margin) -> bool:
    """Return whether two parsed answers are the same; constants may differ by the margin."""
    found, wanted = _comparable(found, wanted)
    if isinstance(found, Collection) or isinstance(wanted, Collection):
        return _equal_collections(found, wanted, margin)
    if isinstance(found, Relational) or isinstance(wanted, Relational):
        return _equal_relations(found, wanted)
    return _equal_values(found, wanted, margin)


def _structured(found: Any) -> Any:
    """Return the parser's object with Collections for what has parts; raises UnreadableError where it is too large."""
    if isinstance(found, sympy.MatrixExpr) and found.is_MatrixExpr and not isinstance(found, sympy.MatrixBase):
        found = found.doit()  # a sum or a product of matrices
    if isinstance(found, sympy.Eq) and isinstance(found.rhs, sympy.Set):
        found = found.rhs  # x in S
    match found:
        case sympy.Interval():
            ends = f"{'(' if found.left_open else '['}{')' if found.right_open else ']'}"
            thing = Collection(f"interval {ends}", (_exact(found.start), _exact(found.end)))
        case sympy.MatrixBase():
            thing = Collection(f"matrix {found.shape}", tuple(_exact(part) for part in found.flat()))
        case sympy.Tuple() | sympy.Union() | sympy.FiniteSet() | sympy.And():
            kind = next(kind for kind, base in _KINDS.items() if isinstance(found, base))
            thing = Collection(kind, tuple(_structured(part) for part in found.args), ordered=kind == "tuple")
        case Relational():
            thing = found.func(_exact(found.lhs), _exact(found.rhs), evaluate=False)
        case sympy.Set():
            thing = Collection(str(found), ())
        case _:
            thing = _exact(found)
    return thing


def _exact(expression: Any) -> Any:
    """Return an expression without binary floats, with i as the imaginary unit and f(x) as one unknown."""
    if not isinstance(expression, sympy.Expr):
        raise UnreadableError(f"cannot be read as mathematics: it holds a {type(expression).__name__}")
    _check_size(expression)
    replaced: dict[Any, Any] = {number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)}
    replaced |= {symbol: sympy.I for symbol in expression.free_symbols if str(symbol) == "i"}
    expression = expression.replace(_is_odd_root, _real_root)
    replaced |= {whole: whole.args[0] for whole in expression.atoms(sympy.UnevaluatedExpr)}
    replaced |= {call: sympy.Symbol(str(call), real=True) for call in expression.atoms(AppliedUndef)}
    return expression.xreplace(replaced)


def _is_odd_root(part: Any) -> bool:
    return part.is_Pow and part.exp.is_Rational and part.exp.q % 2 == 1 and part.exp.q > 1 and part.base.is_negative


def _real_root(part: Any) -> Any:
    """Return the real root of a negative number, for the complex one that sympy takes."""
    return (-1) ** part.exp.p * (-part.base) ** part.exp


def _check_size(expression: Any) -> None:
    if len(expression.free_symbols) > _MAX_SYMBOLS:
        raise UnreadableError(f"has more than {_MAX_SYMBOLS} unknowns")
    if _bits(expression) > _MAX_BITS:
        raise UnreadableError("holds a number or a power that is too large to compare")


def _bits(expression: Any) -> float:
    """Return a bound of the size of the numbers in an expression, in bits, without computing them."""
    if expression.is_Rational:
        return max(abs(expression.p).bit_length(), expression.q.bit_length())
    if not expression.args:
        return 4
    sizes = [_bits(part) for part in expression.args]
    if isinstance(expression, sympy.Pow | sympy.exp):
        base, exponent = (4, sizes[0]) if isinstance(expression, sympy.exp) else sizes
        power: Any = expression.args[-1]
        return base * (max(1, abs(power)) if power.is_Rational else 2 ** min(exponent, 16))
    if isinstance(expression, sympy.factorial):
        return sizes[0] * 2 ** min(sizes[0], 16)
    return sum(sizes)


def _comparable(found: Any, wanted: Any) -> tuple[Any, Any]:
    """Return both sides as the same kind of thing: x = 5 is 5 where the other side names nothing, x > 3 an interval."""
    if _is_set(wanted) or _is_set(found):
        found, wanted = _as_set(found), _as_set(wanted)
    if not _relations(wanted):
        found = _without_name(found, is_claim=True)
    if not _relations(found):
        wanted = _without_name(wanted, is_claim=False)
    return found, wanted


def _is_set(thing: Any) -> bool:
    return isinstance(thing, Collection) and thing.kind.startswith(("interval", "union", "reals"))


def _relations(thing: Any) -> list[Any]:
    parts = thing.parts if isinstance(thing, Collection) else (thing,)
    return [part for part in parts if isinstance(part, Relational)]


def _without_name(thing: Any, *, is_claim: bool) -> Any:
    """Return 5 for x = 5, {1, 2} for {x = 1, x = 2} or {x = 1, 2}, and the last side for a + b = 2 + 3 = 5.

    An expression of several unknowns names a constant in a claim alone: a + 3z = 0 that is asked for is a line, not 0.
    """
    equations = _relations(thing)
    if not isinstance(thing, Collection) and isinstance(thing, sympy.Eq) and thing.rhs.is_Symbol:
        return thing if thing.lhs.free_symbols else thing.lhs
    if not equations or not all(isinstance(part, sympy.Eq) and _defines(part, is_claim) for part in equations):
        return thing
    if not isinstance(thing, Collection):
        return thing.rhs
    if thing.kind == "relations" and (last := _end_of_chain(equations)) is not None:
        return last
    if thing.kind == "set" and len({str(part.lhs).partition("_")[0] for part in equations}) == 1:
        return Collection("set", tuple(_without_name(part, is_claim=is_claim) for part in thing.parts), ordered=False)
    return thing


def _defines(equation: Any, is_claim: bool) -> bool:  # noqa: FBT001
    """Return whether the left side of an equation is what the right one is the value of: no equation to be solved."""
    left, right = equation.lhs, equation.rhs
    if left.is_Symbol:
        return left not in right.free_symbols
    if not left.free_symbols:
        return not right.free_symbols and _equal_constants(left, right, _ROUNDED)
    return is_claim and len(left.free_symbols) > 1 and not right.free_symbols


def _end_of_chain(equations: Sequence[Any]) -> Any:
    starts, ends = [part.lhs for part in equations], [part.rhs for part in equations]
    last = [end for end in ends if end not in starts]
    return last[0] if len(last) == 1 else None


def joined(parts: Sequence[Any]) -> Any:
    """Return what is in one of several parsed sets of numbers; raises UnreadableError where one is no such set."""
    pieces = [_pieces(part) for part in parts]
    if any(some is None for some in pieces):
        raise UnreadableError("what is joined by or is no set of numbers")
    return _reals([piece for some in pieces for piece in some or ()])


def parsed_all_but(points: str) -> Any:
    """Return all real numbers but those listed; raises UnreadableError."""
    thing = parsed(points)
    listed = thing.parts if isinstance(thing, Collection) else (thing,)
    if not all(isinstance(part, sympy.Expr) and part.is_real and not part.free_symbols for part in listed):
        raise UnreadableError("what is left out of the real numbers is no list of numbers")
    return _reals(without_points(listed))


def both(first: Any, second: Any) -> Any:
    """Return the set of two parsed values, or of those in two such sets."""
    parts = [
        part
        for thing in (first, second)
        for part in (thing.parts if isinstance(thing, Collection) and thing.kind == "set" else (thing,))
    ]
    return Collection("set", tuple(parts), ordered=False)


def _as_set(thing: Any) -> Any:
    """Return the real numbers that intervals, or conditions on one unknown, describe; or the thing as it is."""
    pieces = _pieces(thing)
    return thing if pieces is None else _reals(pieces)


def _reals(pieces: Sequence[Piece]) -> Any:
    merged = united(pieces)
    kind = " ".join(f"{'(' if p.is_left_open else '['}{')' if p.is_right_open else ']'}" for p in merged)
    return Collection(f"reals {kind}", tuple(end for piece in merged for end in (piece.start, piece.end)))


def _pieces(thing: Any) -> list[Piece] | None:
    if isinstance(thing, Collection) and thing.kind.startswith("interval"):
        start, end = thing.parts
        if not (start.is_extended_real and end.is_extended_real) or start.free_symbols or end.free_symbols:
            return None
        return [Piece(start, "(" in thing.kind, end, ")" in thing.kind)]
    if isinstance(thing, Collection) and thing.kind == "union":
        pieces = [_pieces(part) or _points(part) for part in thing.parts]
        return None if not all(pieces) else [piece for some in pieces for piece in some or ()]
    if isinstance(thing, Collection) and thing.kind.startswith("reals"):
        ends = list(zip(thing.kind.split()[1:], thing.parts[::2], thing.parts[1::2], strict=True))
        return [Piece(start, shape[0] == "(", end, shape[1] == ")") for shape, start, end in ends]
    relations = _relations(thing)
    if not relations or (isinstance(thing, Collection) and len(relations) != len(thing.parts)):
        return None
    return of_relations(relations)


def _points(thing: Any) -> list[Piece] | None:
    if isinstance(thing, Collection) and thing.kind == "set" and all(part.is_real for part in thing.parts):
        return [Piece(part, False, part, False) for part in thing.parts]
    return None


def _equal_collections(found: Any, wanted: Any, margin: Margin) -> bool:
    if not (isinstance(found, Collection) and isinstance(wanted, Collection)):
        return False
    if found.kind != wanted.kind or (found.ordered and len(found.parts) != len(wanted.parts)):
        return False
    if wanted.ordered:
        return all(equal(mine, theirs, margin) for mine, theirs in zip(found.parts, wanted.parts, strict=True))
    return _covers(found.parts, wanted.parts, margin) and _covers(wanted.parts, found.parts, margin)


def _covers(parts: Sequence[Any], others: Sequence[Any], margin: Margin) -> bool:
    return all(any(equal(part, other, margin) for part in parts) for other in others)


def _equal_relations(found: Any, wanted: Any) -> bool:
    """Two equations are one when their differences are proportional; inequalities, by a positive factor."""
    if not all(isinstance(side, Relational) for side in (found, wanted)):
        return False
    (kind, mine), (other, theirs) = _difference(found), _difference(wanted)
    if kind != other:
        return False
    ratios = [mine_at / theirs_at for mine_at, theirs_at in _at_points(mine, theirs) if abs(theirs_at) > _ZERO]
    if not ratios:
        raise CannotTellError("neither relation could be evaluated")
    if not all(_close(ratio, following) for ratio, following in pairwise(ratios)):
        return False
    return kind in ("=", "!=") or bool(sympy.re(ratios[0]) > 0)


def _difference(relation: Any) -> tuple[str, Any]:
    left, right = relation.lhs, relation.rhs
    if isinstance(relation, sympy.Eq | sympy.Ne):
        return ("=" if isinstance(relation, sympy.Eq) else "!="), left - right
    is_open = isinstance(relation, sympy.StrictLessThan | sympy.StrictGreaterThan)
    return ("<" if is_open else "<="), relation.gts - relation.lts


def _equal_values(found: Any, wanted: Any, margin: Margin) -> bool:
    if any(side.has(sympy.zoo, sympy.nan) for side in (found, wanted)):
        return False  # what is divided by zero equals nothing
    if found == wanted:
        return True
    if not (found.free_symbols | wanted.free_symbols):
        return _equal_constants(found, wanted, margin)
    pairs = list(_at_points(found, wanted))
    if not pairs:
        raise CannotTellError("neither expression could be evaluated")
    return all(_close(mine, theirs) for mine, theirs in pairs)


def _equal_constants(found: Any, wanted: Any, margin: Margin) -> bool:
    mine, theirs = _value(found, {}), _value(wanted, {})
    if mine is None or theirs is None:
        return False  # infinities and 1/0 are equal to themselves alone
    if _close(mine, theirs):
        return True
    allowed = max(sympy.Rational(margin.absolute), sympy.Rational(margin.relative) * abs(theirs))
    return bool(abs(mine - theirs) <= allowed)


def _at_points(mine: Any, theirs: Any) -> Iterator[tuple[Any, Any]]:
    """Yield both values at random points, those where unknowns are negative only if both are real there."""
    symbols = sorted(mine.free_symbols | theirs.free_symbols, key=str)
    source = random.Random(0)
    for i in range(2 * _NUM_POINTS):
        positive = i < _NUM_POINTS
        at = {symbol: _random(source, positive=positive) for symbol in symbols}
        values = _value(mine, at), _value(theirs, at)
        if None not in values and (positive or all(value.is_real for value in values)):
            yield values


def _random(source: random.Random, *, positive: bool) -> Any:
    size = sympy.Rational(source.randrange(10**29, 4 * 10**30), 10**30)
    return size if positive or source.random() < 0.5 else -size


def _value(expression: Any, at: dict[Any, Any]) -> Any:
    """Return the value at a point, None where there is no finite one."""
    value = expression.evalf(_PRECISION, subs=at)
    return value if value.is_number and value.is_finite and abs(value) < _HUGE else None


def _close(one: Any, other: Any) -> bool:
    difference = abs(one - other)
    return bool(difference <= _ZERO or difference <= max(abs(one), abs(other)) * sympy.Float(10) ** -DIGITS)

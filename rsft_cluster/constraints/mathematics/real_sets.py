"""Sets of real numbers in one way of writing, whether given as intervals or by conditions on one unknown."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import sympy
from sympy.core.relational import Relational


class Piece(NamedTuple):
    """An interval; a point where both ends are the same."""

    start: Any
    is_left_open: bool
    end: Any
    is_right_open: bool


_ALL = Piece(-sympy.oo, True, sympy.oo, True)


def of_relations(relations: Sequence[Any]) -> list[Piece] | None:
    """Return the set in which all conditions on one unknown hold; None where they are no such conditions."""
    pieces, unknowns = [_ALL], set()
    for relation in relations:
        found = _of_relation(relation)
        if found is None:
            return None
        unknown, other = found
        unknowns.add(unknown)
        pieces = [both for one in pieces for another in other if (both := _intersection(one, another)) is not None]
    return pieces if len(unknowns) == 1 else None


def united(pieces: Sequence[Piece]) -> list[Piece]:
    """Return pieces in order, those that touch as one."""
    merged: list[Piece] = []
    for piece in sorted(pieces, key=lambda one: (_number(one.start), one.is_left_open)):
        last = merged[-1] if merged else None
        if (
            last is None
            or _number(piece.start) > _number(last.end)
            or (_number(piece.start) == _number(last.end) and piece.is_left_open and last.is_right_open)
        ):
            merged.append(piece)
        elif (_number(piece.end), not piece.is_right_open) > (_number(last.end), not last.is_right_open):
            merged[-1] = Piece(last.start, last.is_left_open, piece.end, piece.is_right_open)
    return merged


def without_points(points: Sequence[Any]) -> list[Piece]:
    """Return all real numbers but these."""
    ends = [-sympy.oo, *sorted(points, key=_number), sympy.oo]
    return [Piece(start, True, end, True) for start, end in pairwise(ends)]


def _of_relation(relation: Any) -> tuple[Any, list[Piece]] | None:
    if not isinstance(relation, Relational):
        return None
    sides = [relation.lhs, relation.rhs]
    if isinstance(relation, sympy.Eq | sympy.Ne):
        symbols = [side for side in sides if side.is_Symbol]
        values = [side for side in sides if not side.free_symbols and side.is_real]
        if len(symbols) != 1 or len(values) != 1:
            return None
        value = values[0]
        is_point = isinstance(relation, sympy.Eq)
        return symbols[0], [Piece(value, False, value, False)] if is_point else without_points([value])
    return next(_bounds(relation), None)


def _bounds(relation: Any) -> Iterator[tuple[Any, list[Piece]]]:
    is_open = isinstance(relation, sympy.StrictLessThan | sympy.StrictGreaterThan)
    less, more = relation.lts, relation.gts
    if less.is_Symbol and more.is_extended_real and not more.free_symbols:
        yield less, [Piece(-sympy.oo, True, more, is_open or more.is_infinite)]
    elif more.is_Symbol and less.is_extended_real and not less.free_symbols:
        yield more, [Piece(less, is_open or less.is_infinite, sympy.oo, True)]


def _intersection(one: Piece, other: Piece) -> Piece | None:
    start, left = _later(one, other)
    end, right = _earlier(one, other)
    if _number(start) > _number(end) or (_number(start) == _number(end) and (left or right)):
        return None
    return Piece(start, left, end, right)


def _later(one: Piece, other: Piece) -> tuple[Any, bool]:
    chosen = max((one, other), key=lambda piece: (_number(piece.start), piece.is_left_open))
    return chosen.start, chosen.is_left_open


def _earlier(one: Piece, other: Piece) -> tuple[Any, bool]:
    chosen = min((one, other), key=lambda piece: (_number(piece.end), not piece.is_right_open))
    return chosen.end, chosen.is_right_open


def _number(end: Any) -> Any:
    return float(end) if end.is_infinite else end.evalf(30)

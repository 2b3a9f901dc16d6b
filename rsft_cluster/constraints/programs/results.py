"""Whether what a program printed or returned is what was expected."""

import math
from collections.abc import Callable
from typing import Any


def same_output(found: str, expected: str, tolerance: float) -> bool:
    """Return whether two outputs are the same; white space at line ends is free, decimals may differ a little."""
    mine, theirs = _lines(found), _lines(expected)
    if mine == theirs:
        return True
    if len(mine) != len(theirs) or not tolerance:
        return False
    return all(
        one == other or _same_line(one.split(), other.split(), tolerance)
        for one, other in zip(mine, theirs, strict=True)
    )


def same(found: Any, expected: Any, tolerance: float, *, as_json: bool = False) -> bool:
    """Return whether two plain values are equal: True is not 1, decimals may differ a little.

    With `as_json` a tuple is as good as a list.
    """
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected
    if isinstance(found, float) or isinstance(expected, float):
        return _is_number(found) and _is_number(expected) and _close(found, expected, tolerance)
    if as_json and isinstance(found, tuple):
        found = list(found)
    if isinstance(found, list | tuple) and isinstance(expected, list | tuple):
        return isinstance(found, list) == isinstance(expected, list) and _same_items(
            list(found), list(expected), lambda one, other: same(one, other, tolerance, as_json=as_json)
        )
    if isinstance(found, dict) and isinstance(expected, dict):
        return _marked(found) == _marked(expected) and all(
            same(found[key], expected[key], tolerance, as_json=as_json) for key in expected
        )
    if isinstance(found, set | frozenset) and isinstance(expected, set | frozenset):
        return _marked(found) == _marked(expected)
    return bool(found == expected)


def _same_items(found: list[Any], expected: list[Any], equal: Callable[[Any, Any], bool]) -> bool:
    return len(found) == len(expected) and all(map(equal, found, expected))


def _marked(values: Any) -> set[tuple[bool, Any]]:
    """Return keys or members with what tells True from 1."""
    return {(isinstance(value, bool), value) for value in values}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _close(one: float, other: float, tolerance: float) -> bool:
    try:
        return one == other or math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # an integer that no float holds
        return False


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _same_line(found: list[str], expected: list[str], tolerance: float) -> bool:
    return len(found) == len(expected) and all(
        one == other or _same_decimal(one, other, tolerance) for one, other in zip(found, expected, strict=True)
    )


def _same_decimal(found: str, expected: str, tolerance: float) -> bool:
    if not any(mark in expected for mark in ".eE"):
        return False
    try:
        one, other = float(found), float(expected)
    except ValueError:
        return False
    return math.isfinite(other) and _close(one, other, tolerance)

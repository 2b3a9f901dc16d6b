"""Whether an equation of plain arithmetic is true: 2 + 3 = 5 is, 4 = 5 is not, x = 5 cannot be told."""

from fractions import Fraction
from itertools import pairwise

import regex

_MAX_CHARACTERS = 120
_MAX_EXPONENT = 20
_TOKEN = regex.compile(
    r"\s*(?:(?P<number>\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?P<percent>\s?\\?%)?|(?P<sign>[-+*/^()]|\\cdot|\\times|\\div|[×÷·]))"
)
_SIGNS = {"\\cdot": "*", "\\times": "*", "\\div": "/", "×": "*", "÷": "/", "·": "*"}
_CURRENCY = regex.compile(r"\\?[$€£¥]|\\[,;! ]|~")


def is_false(equation: str) -> bool:
    """Return whether two sides next to each other are numbers, and different ones; decimals may be rounded."""
    if "=" not in equation or len(equation) > 4 * _MAX_CHARACTERS:
        return False
    sides = [(side, _value(side)) for side in equation.split("=")]
    known = [(side, value) for side, value in sides if value is not None]
    return any(
        abs(one - other) > max(_rounding(left), _rounding(right)) for (left, one), (right, other) in pairwise(known)
    )


def _rounding(side: str) -> Fraction:
    """Return how far a decimal may be from what it stands for: a unit of its last place."""
    found = regex.fullmatch(r"[^\d.]*[\d,]*\.(\d+)[^\d]*", side)
    return Fraction(1, 10 ** len(found[1])) if found and len(found[1]) < _MAX_CHARACTERS else Fraction(0)


def _value(side: str) -> Fraction | None:
    """Return the value of an arithmetic expression, None where it is none."""
    side = _CURRENCY.sub("", side).strip(" \t\n.,*")
    if not side or len(side) > _MAX_CHARACTERS:
        return None
    tokens: list[Fraction | str] = []
    position = 0
    while position < len(side):
        found = _TOKEN.match(side, position)
        if found is None:
            return None
        position = found.end()
        if found["number"]:
            value = Fraction(found["number"].replace(",", ""))
            tokens.append(value / 100 if found["percent"] else value)
        else:
            tokens.append(_SIGNS.get(found["sign"], found["sign"]))
    parser = _Parser(tokens)
    try:
        value = parser.sum()
    except (IndexError, ZeroDivisionError, _NoArithmeticError):
        return None
    return None if parser.tokens else value


class _NoArithmeticError(ValueError):
    pass


class _Parser:
    """Recursive descent over tokens, the first of which is the last of the list."""

    def __init__(self, tokens: list[Fraction | str]) -> None:
        self.tokens = tokens[::-1]

    def sum(self) -> Fraction:
        value = self._product()
        while self.tokens and self.tokens[-1] in ("+", "-"):
            value = value + self._product() if self.tokens.pop() == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._power()
        while self.tokens and self.tokens[-1] in ("*", "/"):
            value = value * self._power() if self.tokens.pop() == "*" else value / self._power()
        return value

    def _power(self) -> Fraction:
        base = self._atom()
        if self.tokens and self.tokens[-1] == "^":
            self.tokens.pop()
            exponent = self._atom()
            if exponent.denominator != 1 or abs(exponent) > _MAX_EXPONENT:
                raise _NoArithmeticError
            return base ** int(exponent)
        return base

    def _atom(self) -> Fraction:
        first = self.tokens.pop()
        if isinstance(first, Fraction):
            return first
        if first in ("-", "+"):
            value = self._power()
            return -value if first == "-" else value
        if first != "(":
            raise _NoArithmeticError
        value = self.sum()
        if self.tokens.pop() != ")":
            raise _NoArithmeticError
        return value

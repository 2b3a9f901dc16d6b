"""Answers that are no expressions although they look like some: times of day, ratios, numerals of a base."""

from dataclasses import dataclass
from fractions import Fraction

import regex

_COLONS = regex.compile(
    r"\$?\s*(?P<part>\d{1,6}(?:\.\d{1,6})?)(?:\s*:\s*(?P<part>\d{1,6}(?:\.\d{1,6})?)){1,4}\s*(?:\\text\s*\{)?\s*"
    r"(?P<half>[ap]\.?\s?m\.?)?(?:\s*\})?[\s$.]*",
    regex.IGNORECASE,
)
_HOUR = regex.compile(
    r"\s*(?P<part>1?\d)\s*(?:\\text\s*\{)?\s*(?P<half>[ap]\.?\s?m\.?)(?:\s*\})?[\s$.]*", regex.IGNORECASE
)
_BASED = regex.compile(
    r"\$?\s*(?P<digits>[0-9A-Za-z]{1,60})\s*_\s*(?:\{\s*(?P<base>\d{1,2})\s*\}|(?P<base>\d{1,2}))[\s$.]*"
)
_CLOCK_MINUTES = regex.compile("[0-5][0-9]")


@dataclass(frozen=True)
class Colons:
    """Numbers between colons: a time of day where they look like one, else a ratio."""

    parts: tuple[str, ...]
    half: str = ""
    """`am`, `pm`, or nothing where it is left out."""

    @property
    def is_time(self) -> bool:
        """Whether it may be a time of day, or of a clock."""
        return bool(self.half) or all(_CLOCK_MINUTES.fullmatch(part) for part in self.parts[1:])

    def agrees(self, other: "Colons") -> bool:
        """Return whether both are the same time, or else the same ratio."""
        if self.is_time and other.is_time:
            same = [Fraction(part) for part in self.parts] == [Fraction(part) for part in other.parts]
            return same and (self.half == other.half or not (self.half and other.half))
        return self._ratio() is not None and self._ratio() == other._ratio()

    def quotient(self) -> Fraction | None:
        """Return the value of a ratio of two; None for any other, and for a time of day."""
        first, *others = map(Fraction, self.parts)
        return first / others[0] if len(others) == 1 and others[0] and not self.is_time else None

    def _ratio(self) -> tuple[Fraction, ...] | None:
        numbers = [Fraction(part) for part in self.parts]
        total = sum(numbers)
        return tuple(number / total for number in numbers) if total and not self.half else None


@dataclass(frozen=True)
class Based:
    """A numeral with its base: 2516_7."""

    digits: str
    base: int


def read_notation(text: str) -> Colons | Based | None:
    """Return the time, ratio or numeral that an answer is; None for any other."""
    if ":" in text and (found := _COLONS.fullmatch(text)):
        return Colons(tuple(found.captures("part")), _half(found["half"]))
    if found := _HOUR.fullmatch(text):
        return Colons((found["part"], "00"), _half(found["half"]))
    if "_" in text and (found := _BASED.fullmatch(text)) and found["digits"][0].isdigit():
        return Based(found["digits"].upper(), int(found["base"]))
    return None


def _half(text: str | None) -> str:
    return f"{text[0].lower()}m" if text else ""

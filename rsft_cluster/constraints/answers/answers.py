"""The number that an answer is: shared by the constraints that compare with a reference.

Numbers are read in linear time and exactly, as fractions; what cannot be read for certain
(digits within a word, dates, versions, commas that group no thousands) is no number.
"""

import unicodedata
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal, Self

import regex
from pydantic import Field

from rsft_cluster.constraints.answers.arithmetic import is_false
from rsft_cluster.constraints.answers.qualifiers import qualified, qualified_in_clause
from rsft_cluster.constraints.text._text import shown

DecimalMark = Literal["point", "comma"]
Tolerance = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_LONGEST_NUMBER = 400
"""Characters; longer digit strings are no answers, and reading them takes quadratic time."""

_SCALES = {"k": 10**3, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALES |= {"千": 10**3, "万": 10**4, "亿": 10**8, "万亿": 10**12}

_NUMBER = regex.compile(
    r"""
    (?<! [A-Za-z0-9_^] | [0-9][.,/] | [A-Za-z]- )           # not within a word, a number or an exponent
    (?> (?: (?<==\s?)(?P<sign>-)\s | (?<![A-Za-z0-9_)\]}])(?P<sign>[-+]) )?   # a sign, no minus between two terms
        (?:[A-Z]{0,3}[$€£¥₹]\s?)? (?P<inner_sign>[-+])?
        (?:(?P<units>[0-9]+)\s(?=[0-9]+\s?/\s?[0-9]))?      # the 1 of 1 1/2
        (?P<digits>[0-9]{1,3}(?:[ '][0-9]{3})+(?![ ']?[0-9])(?:\.[0-9]+)?
          |[0-9]+(?:,[0-9]+)*(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)
        (?P<exponent>[eE][-+]?[0-9]{1,3}(?![0-9]))?
        (?:\s?/\s?(?P<divisor>[0-9]+(?:,[0-9]+)*))?
    )
    (?! [0-9] | [.,/][0-9] | [eE][-+]?[0-9] | \s?\^ | \s?(?:折|成(?![为了立])) )
    (?: \s?(?P<percent>%|percent\b) | \s?(?P<scale>thousand|million|billion|trillion)\b
      | (?P<scale>k)\b | \s?(?P<scale>万亿|[万亿]|千(?![克米瓦卡])) )?
    """,
    regex.VERBOSE | regex.IGNORECASE,
)
_GROUPING = str.maketrans("", "", ", '")
_GROUPED = regex.compile(r"[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}(?:\.[0-9]+)?")
_UNIT = regex.compile(r"(?!(?:st|nd|rd|th)\b|:)(?:\s*+(?:[^\s\d]|(?<=\^)\d)++){0,3}+\s*")

_CHOICE = regex.compile(r"\((\w)\)")
_LATEX = [
    (regex.compile(r"(?<=\d)\s*(?=\\[dt]?frac)"), " "),
    (regex.compile(r"\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)\s*(\d))"), r"\1\3/\2\4"),
    (regex.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}"), r" \1"),
    (regex.compile(r"\{,\}|\\,(?=\d{3})"), ","),
    (regex.compile(r"(?<=\d,?)\\!\s*(?=,?\d)"), ""),
    (regex.compile(r"\\([$%])"), r"\1"),
]
_BEFORE_FRACTION = regex.compile("(?<=[0-9])(?=[\u00bc-\u00be\u2150-\u215e])")
_SUPERSCRIPT = regex.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_DASHES = str.maketrans({"\u2212": "-", "\u2013": "-", "\u2044": "/"})
_SIGN_WORD = regex.compile(r"(?<![\d)\]}]\s*)(?:\b(?:negative|minus)\s+|负\s?)(?=[$€£¥]?\.?\d)", regex.IGNORECASE)
_DECIMAL_COMMA = regex.compile(r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+|\d+)(?:,(\d+))?(?![\d,]|\.\d)")
_LEADING_MINUS = regex.compile(r"^\W*?-\s+(?=[0-9.$€£¥₹])")
EDGES = " \t\n*`'\"“”‘’$"
_STOPS = ".,;:!?。、"


@dataclass(frozen=True)
class Margin:
    """How far numbers may lie apart: `absolute`, or `relative` times the wanted one, whichever is more."""

    absolute: Fraction = Fraction(0)
    relative: Fraction = Fraction(0)

    @classmethod
    def of(cls, absolute: float, relative: float) -> Self:
        """Return the margin that the decimals spell, exactly."""
        return cls(Fraction(str(absolute)), Fraction(str(relative)))

    def around(self, wanted: Fraction) -> Fraction:
        """Return how far another number may lie from the wanted one."""
        return max(self.absolute, self.relative * abs(wanted))


@dataclass(frozen=True)
class Number:
    """A number as it was read, exactly; where a percent sign followed it, `value` is what stands before the sign."""

    value: Fraction
    percent: bool
    text: str

    def equals(self, wanted: "Number", margin: Margin) -> bool:
        """Return whether the two are one number; a percent sign that one side alone has is read both ways."""
        values = {self.value}
        if self.percent != wanted.percent:
            values.add(self.value / 100 if self.percent else self.value * 100)
        return any(abs(value - wanted.value) <= margin.around(wanted.value) for value in values)


def plain(text: str) -> str:
    """Return the text in one way of writing: as `unified`, and the LaTeX around numbers taken off."""
    text = unified(text)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return _SIGN_WORD.sub("-", text)


def with_decimal_point(text: str) -> str:
    """Return a text that writes 1.000,5 with its numbers as 1000.5."""
    return _DECIMAL_COMMA.sub(lambda found: found[1].replace(".", "") + (f".{found[2]}" if found[2] else ""), text)


def unified(text: str) -> str:
    """Return the text with one character for each meaning: NFKC, one minus sign, `^` for superscripts."""
    text = _BEFORE_FRACTION.sub(" ", text)
    text = _SUPERSCRIPT.sub(lambda found: "^" + found.group(), text)
    return unicodedata.normalize("NFKC", text).translate(_DASHES)


def folded(text: str) -> str:
    """Return a text without regard to case, spaces, enclosing quotes, closing punctuation and (A) for A."""
    text = " ".join(text.casefold().split()).strip(EDGES).rstrip(_STOPS + EDGES)
    choice = _CHOICE.fullmatch(text)
    return choice.group(1) if choice else text


def after_equals(answer: str) -> str:
    """Return what stands after the last equals sign, a minus drawn to its number."""
    return _LEADING_MINUS.sub("-", answer.rsplit("=", 1)[-1].strip())


def single_number(answer: str) -> Number | None:
    """Return the number of an answer, after its last equals sign; None where there is none, or several.

    What stands after the last sign of an equation that is false, like 4 = 5, is none.
    """
    found = list(_NUMBER.finditer(after_equals(answer)))
    return _read(found[0]) if len(found) == 1 and not is_false(answer) else None


def claimed_number(answer: str) -> Number | None:
    """Return the single number of an answer, None where its words make it another one or none: not 7, half of 7."""
    number = single_number(answer)
    if number is None:
        return None
    side = after_equals(answer)
    start = side.find(number.text)
    before = answer.rpartition("=")[0] + side[:start]
    return None if qualified(before, side[start + len(number.text) :]) else number


def last_number(text: str) -> Number | None:
    """Return the last number of a text, None where its clause makes it another one or none."""
    found = _last(_NUMBER, text)
    if found is None or qualified_in_clause(text, found.start(), found.end()):
        return None
    return _read(found)


def _last(pattern: regex.Pattern[str], text: str) -> regex.Match[str] | None:
    """Return the last match from left to right; one sought from the right could be part of a longer one."""
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0] if found else None


def quantity(answer: str) -> Number | None:
    """Read an answer that is a number, alone or followed by a unit; anything else is a text."""
    side = after_equals(answer).strip(EDGES.replace("$", ""))
    found = _NUMBER.match(side)
    return _read(found) if found and _UNIT.fullmatch(side, pos=found.end()) else None


def _read(found: regex.Match[str]) -> Number | None:
    """Return the value of a match, or None where its commas group no thousands, or it divides by zero."""
    parts = [found["digits"], found["divisor"] or "1"]
    if len(found.group()) > _LONGEST_NUMBER or any("," in p and not _GROUPED.fullmatch(p) for p in parts):
        return None
    digits, divisor = (part.translate(_GROUPING) for part in parts)
    if int(divisor) == 0:
        return None
    value = Fraction(digits + (found["exponent"] or "")) / int(divisor) + int(found["units"] or 0)
    if "-" in (found["sign"], found["inner_sign"]):
        value = -value
    value *= _SCALES[found["scale"].lower()] if found["scale"] else 1
    return Number(value, found["percent"] is not None, found.group().strip())


def short(text: str) -> str:
    """Return a text as a reason quotes it."""
    return shown(text.strip())

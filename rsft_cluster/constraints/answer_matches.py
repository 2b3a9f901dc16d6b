r"""`AnswerMatches`: the final answer of the completion equals the candidate's reference.

The final answer is, with `extract: auto`, what the first of these gives that the completion has:
1. `hash`: the line after the last `####`, as in GSM8K;
2. `boxed`: the content of the last closed `\boxed{...}`;
3. `phrase`: what follows the last "answer is", "answer:", or their Chinese forms, up to the end of the
   sentence;
4. for numbers `number`, the last number in the text; for texts `whole`, all of it.
The reference is read in the same way, but that steps 1 to 3 failing it is the answer itself.

Numbers are compared exactly, as fractions; how they are written does not count (1,000 = 1000.00; 3/4 =
0.75), nor does their unit. An answer of a marked kind (1 to 3) must hold one number, after its last `=`
sign: of several none is chosen. A percent sign that only one side has is read both ways: 50% equals 50 and
0.5.
"""

import unicodedata
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal, NamedTuple

import regex
from pydantic import Field

from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.errors import ConfigError

Extract = Literal["auto", "hash", "boxed", "phrase", "number", "whole"]
Kind = Literal["auto", "number", "text"]
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
        (?P<digits>[0-9]+(?:,[0-9]+)*(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)
        (?P<exponent>[eE][-+]?[0-9]{1,3}(?![0-9]))?
        (?:\s?/\s?(?P<divisor>[0-9]+(?:,[0-9]+)*))?
    )
    (?! [0-9] | [.,/][0-9] | [eE][-+]?[0-9] | \s?\^ )
    (?: \s?(?P<percent>%|percent\b) | \s?(?P<scale>thousand|million|billion|trillion)\b
      | (?P<scale>k)\b | \s?(?P<scale>万亿|[万亿]|千(?![克米瓦卡])) )?
    """,
    regex.VERBOSE | regex.IGNORECASE,
)
_GROUPED = regex.compile(r"[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}(?:\.[0-9]+)?")
_UNIT = regex.compile(r"(?!(?:st|nd|rd|th)\b|:)(?:\s*+(?:[^\s\d]|(?<=\^)\d)++){0,3}+\s*")

_HASH = regex.compile(r"####\s*")
_PHRASE = regex.compile(
    r"(?:\banswer\W{0,4}?(?:\s+is\b\s*[:=]?|\s*[:=])|答案\s*(?:应?[是为]\s*:?|:))[\s*]*", regex.IGNORECASE
)
_BRACE = regex.compile(r"(?P<box>\\boxed\s*)?\{|\}")
_CHOICE = regex.compile(r"\((\w)\)")
_SENTENCE_END = regex.compile(r"\n|[。!?;]|\.(?=\s|$)")
_LATEX = [
    (regex.compile(r"(?<=\d)\s*(?=\\[dt]?frac)"), " "),
    (regex.compile(r"\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)\s*(\d))"), r"\1\3/\2\4"),
    (regex.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}"), r" \1"),
    (regex.compile(r"\{,\}|\\,(?=\d{3})"), ","),
    (regex.compile(r"\\([$%])"), r"\1"),
]
_BEFORE_FRACTION = regex.compile("(?<=[0-9])(?=[\u00bc-\u00be\u2150-\u215e])")
_SUPERSCRIPT = regex.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_DASHES = str.maketrans({"\u2212": "-", "\u2013": "-", "\u2044": "/"})
_LEADING_MINUS = regex.compile(r"^\W*?-\s+(?=[0-9.$€£¥₹])")
_EDGES = " \t\n*`'\"“”‘’$"
_STOPS = ".,;:!?。、"


@dataclass(frozen=True)
class _Number:
    value: Fraction
    percent: bool
    text: str


class _Answer(NamedTuple):
    text: str
    source: str


class AnswerMatches:
    """Pass completions whose final answer equals the reference; a missing reference is an error.

    `kind: auto` compares as numbers where the reference is a number, alone or with a unit of up to three
    words, and as texts otherwise: without regard to case, spaces, width, enclosing quotes and closing
    punctuation. Numbers may differ by `tolerance`, or by `relative_tolerance` times the reference,
    whichever is more.
    """

    def __init__(
        self,
        *,
        extract: Extract = "auto",
        kind: Kind = "auto",
        tolerance: Tolerance = 0.0,
        relative_tolerance: Tolerance = 0.0,
    ) -> None:
        if kind == "text" and (tolerance or relative_tolerance):
            raise ConfigError("answer_matches: a tolerance has no effect with kind: text")
        if (extract, kind) == ("number", "text"):
            raise ConfigError("answer_matches: extract: number gives no answer of kind: text")
        self._extract: Extract = extract
        self._kind = kind
        self._tolerance = Fraction(str(tolerance))
        self._relative_tolerance = Fraction(str(relative_tolerance))

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate; raises ValueError where a reference is missing or unusable."""
        return [self._judge(candidate) for candidate in candidates]

    def _judge(self, candidate: Candidate) -> Verdict:
        reference = _plain(candidate.reference or "").strip()
        if not reference:
            raise ValueError(f"prompt {candidate.prompt_id!r} has no reference to compare with")
        wanted = (_marked(reference) or _Answer(reference, "whole")).text
        number = self._wanted_number(wanted)
        if number is not None:
            return self._compare_numbers(_plain(candidate.completion), number)
        return self._compare_texts(_plain(candidate.completion), wanted)

    def _wanted_number(self, wanted: str) -> _Number | None:
        if self._kind == "text":
            return None
        number = _quantity(wanted) if self._kind == "auto" else _single_number(wanted)
        if number is None and (self._kind == "number" or self._extract == "number"):
            raise ValueError(f"the reference {_short(wanted)} is not a number")
        return number

    def _compare_numbers(self, completion: str, wanted: _Number) -> Verdict:
        answer = self._answer(completion)
        if answer is not None:
            found, source = _single_number(answer.text), f" {answer.source}"
            missing = f"not a single number {answer.source}: {_short(answer.text)}"
        elif self._extract in ("auto", "number"):
            found, source = _last_number(completion), ", the last number"
            missing = "no number in the completion that can be read"
        else:
            return self._absent()
        if found is None:
            return Verdict.of(False, missing)
        if self._equal(found, wanted):
            return Verdict.of(True, f"{found.text}{source}, equals the reference {wanted.text}")
        return Verdict.of(False, f"{found.text}{source}, differs from the reference {wanted.text}")

    def _compare_texts(self, completion: str, wanted: str) -> Verdict:
        answer = self._answer(completion)
        if answer is None:
            if self._extract not in ("auto", "whole"):
                return self._absent()
            answer = _Answer(completion, "as the whole text")
        if not (folded := _folded(wanted)):
            raise ValueError(f"the reference {_short(wanted)} has nothing to compare with")
        same = _folded(answer.text) == folded
        relation = "equals" if same else "differs from"
        return Verdict.of(same, f"{_short(answer.text)} {answer.source}, {relation} the reference {_short(wanted)}")

    def _answer(self, completion: str) -> _Answer | None:
        if self._extract == "auto":
            return _marked(completion)
        if self._extract == "whole":
            return _Answer(completion, "as the whole text")
        return _MARKERS[self._extract](completion) if self._extract in _MARKERS else None

    def _absent(self) -> Verdict:
        return Verdict.of(False, f"the completion has no {_MARKS[self._extract]}")

    def _equal(self, found: _Number, wanted: _Number) -> bool:
        values = {found.value}
        if found.percent != wanted.percent:
            values.add(found.value / 100 if found.percent else found.value * 100)
        allowed = max(self._tolerance, self._relative_tolerance * abs(wanted.value))
        return any(abs(value - wanted.value) <= allowed for value in values)


def _after_hash(text: str) -> _Answer | None:
    found = _last(_HASH, text)
    return _Answer(text[found.end() :].split("\n", 1)[0].strip(), "after ####") if found else None


def _in_box(text: str) -> _Answer | None:
    """Return the content of the last box whose braces close, in one pass over the braces."""
    openings: list[regex.Match[str]] = []
    last = (-1, -1)
    for brace in _BRACE.finditer(text):
        if brace.group() != "}":
            openings.append(brace)
        elif openings and (opening := openings.pop())["box"] is not None:
            last = max(last, (opening.end(), brace.start()))
    return _Answer(text[slice(*last)].strip(), "in \\boxed") if last[0] >= 0 else None


def _after_phrase(text: str) -> _Answer | None:
    found = _last(_PHRASE, text)
    if found is None:
        return None
    return _Answer(_SENTENCE_END.split(text[found.end() :], maxsplit=1)[0].strip(), "after the answer phrase")


_MARKERS = {"hash": _after_hash, "boxed": _in_box, "phrase": _after_phrase}
_MARKS = {"hash": "####", "boxed": "closed \\boxed{...}", "phrase": '"answer is" or "answer:"'}


def _marked(text: str) -> _Answer | None:
    return next((answer for find in _MARKERS.values() if (answer := find(text)) is not None), None)


def _plain(text: str) -> str:
    """Return the text in one way of writing: NFKC, one minus sign, the LaTeX around numbers taken off."""
    text = _BEFORE_FRACTION.sub(" ", text)
    text = _SUPERSCRIPT.sub(lambda found: "^" + found.group(), text)
    text = unicodedata.normalize("NFKC", text).translate(_DASHES)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


def _folded(text: str) -> str:
    text = " ".join(text.casefold().split()).strip(_EDGES).rstrip(_STOPS + _EDGES)
    choice = _CHOICE.fullmatch(text)
    return choice.group(1) if choice else text


def _side(answer: str) -> str:
    """Return what stands after the last equals sign, a minus drawn to its number."""
    return _LEADING_MINUS.sub("-", answer.rsplit("=", 1)[-1].strip())


def _single_number(answer: str) -> _Number | None:
    found = list(_NUMBER.finditer(_side(answer)))
    return _read(found[0]) if len(found) == 1 else None


def _last_number(text: str) -> _Number | None:
    found = _last(_NUMBER, text)
    return _read(found) if found else None


def _last(pattern: regex.Pattern[str], text: str) -> regex.Match[str] | None:
    """Return the last match from left to right; one sought from the right could be part of a longer one."""
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0] if found else None


def _quantity(answer: str) -> _Number | None:
    """Read an answer that is a number, alone or followed by a unit; anything else is a text."""
    side = _side(answer).strip(_EDGES.replace("$", ""))
    found = _NUMBER.match(side)
    return _read(found) if found and _UNIT.fullmatch(side, pos=found.end()) else None


def _read(found: regex.Match[str]) -> _Number | None:
    """Return the value of a match, or None where its commas group no thousands, or it divides by zero."""
    parts = [found["digits"], found["divisor"] or "1"]
    if len(found.group()) > _LONGEST_NUMBER or any("," in p and not _GROUPED.fullmatch(p) for p in parts):
        return None
    digits, divisor = (part.replace(",", "") for part in parts)
    if int(divisor) == 0:
        return None
    value = Fraction(digits + (found["exponent"] or "")) / int(divisor) + int(found["units"] or 0)
    if "-" in (found["sign"], found["inner_sign"]):
        value = -value
    value *= _SCALES[found["scale"].lower()] if found["scale"] else 1
    return _Number(value, found["percent"] is not None, found.group().strip())


def _short(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 60 else text[:57] + "...")


CASES = (
    Case(Candidate("3 + 4 = 7\n#### 7", reference="7"), passes=True),
    Case(Candidate("3 + 4 = 8\n#### 8", reference="7"), passes=False),
    Case(Candidate(r"so \boxed{\frac{3}{4}}", reference="0.75"), passes=True),
    Case(Candidate("答案是1,000元。", reference="1000"), passes=True),
    Case(Candidate("The answer is Paris.", reference="paris"), passes=True),
    Case(Candidate("It is 7, or 8.", reference="7"), passes=False),
    Case(Candidate("about 7.1", reference="7"), passes=True, params={"tolerance": 0.2}),
)

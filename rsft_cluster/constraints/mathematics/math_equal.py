r"""`MathEqual`: the final answer of the completion is mathematically equal to the candidate's reference.

The final answer is the last claim that is not withdrawn, as for `answer_matches` (after ####, in \boxed{...}, after
"answer is" or 答案是); a completion with none gives its last formula between dollar signs, or else all of it where it
is short, or else its last number. What is thought before the answer does not count. An answer that is the reference
letter for letter equals it; else it is one of these, tried in this order:
1. a time of day, a ratio, or a numeral with its base (`notations`);
2. a quantity (`quantities`): one number among words, with its unit; compared exactly, as fractions. Units, and single
   words for what is counted, count only where both sides have one: 5 cm is 5 and not 5 m;
3. words, like "no solution" or "B": compared as texts;
4. an expression (`algebra`): a formula, equation, inequality, interval, set, tuple or matrix.
(a, b) is a tuple and an open interval alike, [a, b] an interval, a list without brackets a set. Equations and
inequalities are equal when one is a multiple of the other; x = 5 equals 5, and a false equation equals nothing.

A reference that cannot be read is an error. An answer that cannot is no verdict on mathematics, but not the answer
that was asked for either: it fails, and the reason says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import regex

from rsft_cluster.constraints.answers.answers import (
    DecimalMark,
    Margin,
    Tolerance,
    folded,
    last_number,
    short,
    unified,
    with_decimal_point,
)
from rsft_cluster.constraints.answers.arithmetic import is_false
from rsft_cluster.constraints.answers.locating import MARKS, Answer, Extract, locate, marked
from rsft_cluster.constraints.answers.qualifiers import qualified
from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.constraints.mathematics.notation import MAX_CHARACTERS, UnreadableError
from rsft_cluster.constraints.mathematics.notations import Based, Colons, read_notation
from rsft_cluster.constraints.mathematics.quantities import Quantity, read_quantity
from rsft_cluster.constraints.mathematics.typesetting import both_signs, same_writing, spelled_out, undecorated
from rsft_cluster.constraints.parts import answer_of, no_answer

_FORMULA = regex.compile(
    r"(?<!\\)\$\$(?P<inside>[^$]{1,300}+)\$\$|(?<![\\$])\$(?P<inside>[^\s$][^$\n]{0,299}+)(?<![\s\\])\$(?!\d)"
    r"|(?<![\\$])\$[ ]+(?P<inside>\\[^$\n]{0,298}+)(?<!\\)\$(?!\d)"
    r"|\\\((?P<inside>(?:[^\\\n]|\\(?![()])){1,300}+)\\\)|\\\[(?P<inside>(?:[^\\]|\\(?![\[\]])){1,300}+)\\\]"
)
_BETWEEN_AMOUNTS = regex.compile(r"<<|>>|[-+*/=(]\s*\Z|\A[.\d][^\\$]*(?<![\\\p{L}])\p{L}{2,}")
_DIGIT_OUTSIDE = regex.compile(r"\d")
_CONNECTED = regex.compile(r"\s*(?:,|;|,?\s*(?:and|or)|和|或|、)\s*")
_PROSE = regex.compile(r"(?:(?!\b(?:not|no|never|or|and)\b|[不非或])[^\d\\$])*+", regex.IGNORECASE)
_ASIDE = regex.compile(
    r"\s*[,(]?\s*(?:which|i\.e\.|that is|(?:or )?(?:about|approximately)|≈|\\approx|约|即)", regex.IGNORECASE
)
_TEXT = regex.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_CONSTANT = r"(?:pi|inf|infty|infinity|sin|cos|tan|log|exp)\b"
_WORDS = regex.compile(
    rf"(?!{_CONSTANT})[\p{{L}}\s'’.,:-]*(?:\p{{Han}}|\p{{L}}{{3}}|\bno\b)[\p{{L}}\s'’.,:-]*|\(?[a-z]\)?", regex.I
)
_LABELLED = regex.compile(
    r"\s*\((?P<label>[A-Ea-e])\)[.:]?(?:\s|\\[ ,;:!]|~|\\q?quad)+(?P<value>[^\s(].*)", regex.DOTALL
)
_NAMED = regex.compile(
    r"\\?(?:left)?\(\s*(?P<name>[a-zA-Z](?:_\w)?)(?:\s*,\s*(?P<name>[a-zA-Z](?:_\w)?))+\s*(?:\\right)?\)\s*=\s*"
    r"(?P<value>(?:\\left)?\(.*\))\.?"
)
_SEGMENT = r"\|?(?:[A-Z]{2,4}|\\overline\s*\{[A-Z]{2}\})\|?"
_VOLUME = r"[A-Z]{1,3}(?:_\{?\w+\}?)?"
_MEASURED = regex.compile(
    rf"(?:(?P<name>{_SEGMENT}|\\[dt]?frac\s*\{{\s*{_SEGMENT}\s*\}}\s*\{{\s*{_SEGMENT}\s*\}}|{_VOLUME}\s*:\s*{_VOLUME})"
    r"\s*=\s*(?P<value>[^,=]+)(?:\s*,\s*|\s*\Z))+"
)
_BLANKS = regex.compile(r"[\s{}|]")
_BUILDER = regex.compile(
    r"(?:[a-zA-Z]\s*(?:\\in|∈)\s*)?\\?(?:left)?\\?\{\s*[a-zA-Z](?:\s*(?:\\in|∈)\s*(?:\\mathbb\s*\{?\s*R\s*\}?|ℝ|"
    r"R))?\s*(?:\\mid|\\vert|\||:)\s*"
    r"(?P<condition>[^{}]*?)\s*(?:\\right)?\s*\\?\}"
)
_INEQUALITY = regex.compile(r"[<>≤≥≠]|\\(?:leq?|geq?|lt|gt|neq?)(?:slant)?(?![a-zA-Z])")
_OR = regex.compile(r"\s*,?\s*(?:\\(?:text|mathrm|mbox)\s*\{\s*,?\s*or\s*\}|\bor\b|或者?|\\lor\b|\\vee\b|∨)\s*")
_ALL_BUT = regex.compile(
    r"(?:[a-zA-Z]\s*(?:\\in|∈)\s*)?(?:\\mathbb\s*\{?\s*R\s*\}?|ℝ|\\R|R|\(-\\infty\s*,\s*\\infty\))\s*"
    r"(?:\\setminus|\\backslash|∖|\\|-)\s*\\?(?:left)?\\?\{(?P<points>[^{}]*?)\s*\\?\}"
    r"|(?:all\s)?(?:real numbers|reals)\s(?:except|but|other than)\s(?:for\s)?(?P<points>.*)",
    regex.IGNORECASE,
)
_COPULA = regex.compile(
    r".*(?:\b(?:is|are|was|were|be|equals|equal to)\b|[是为])\s*:?\s*(?=\S)", regex.DOTALL | regex.IGNORECASE
)
_NOTHING = regex.compile(r"(?:there (?:is|are) )?no solutions?|无解|\\(?:emptyset|varnothing)|∅|\{\s*\}|\\\{\s*\\\}")


@dataclass(frozen=True)
class _Words:
    text: str


@dataclass(frozen=True)
class Labelled:
    """An option with what it says: (B) 12."""

    label: str
    value: Any


@dataclass(frozen=True)
class Named:
    """A tuple and the names of its values: (p, q) = (3, 2)."""

    names: tuple[str, ...]
    value: Any


class MathEqual:
    """Pass completions whose final answer equals the reference mathematically; a missing reference is an error.

    `extract` is where the answer stands, as in answer_matches. Constants may differ by `tolerance`, or by
    `relative_tolerance` times the reference, whichever is more; without them 0.333 is not 1/3. With `decimal_mark:
    comma` completion and reference write 1.000,5 for 1000.5.
    """

    def __init__(
        self,
        *,
        extract: Extract = "auto",
        tolerance: Tolerance = 0.0,
        relative_tolerance: Tolerance = 0.0,
        decimal_mark: DecimalMark = "point",
    ) -> None:
        self._extract: Extract = extract
        self._decimal_mark = decimal_mark
        self._margin = Margin.of(tolerance, relative_tolerance)

    def prepare(self) -> None:
        """Load what does algebra."""
        _algebra()

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate; raises ValueError where a reference is missing or unreadable."""
        return [self._judge(candidate) for candidate in candidates]

    def _judge(self, candidate: Candidate) -> Verdict:
        reference = self._unified(candidate.reference or "").strip()
        if not reference:
            raise ValueError(f"prompt {candidate.prompt_id!r} has no reference to compare with")
        completion = answer_of(candidate)
        if completion is None:
            return no_answer()
        reference = _formula_of((marked(reference) or Answer(reference, "")).text)
        answer = self._answer(self._unified(completion))
        if answer is not None and same_writing(_formula_of(answer.text), reference):
            return Verdict.of(True, f"{short(answer.text)} {answer.source}, equals the reference letter for letter")
        try:
            wanted = _read(reference)
        except UnreadableError as error:
            raise ValueError(f"the reference {short(reference)} cannot be compared with: {error}") from error
        if answer is None:
            return Verdict.of(False, f"the completion has no {MARKS.get(self._extract, 'answer that stands')}")
        text = _formula_of(answer.text)
        try:
            found = _read_claim(text)
        except UnreadableError as error:
            return Verdict.of(False, f"{short(text)} {answer.source}: {error}")
        same = _equal(found, wanted, self._margin)
        relation = "equals" if same else "differs from"
        return Verdict.of(same, f"{short(text)} {answer.source}, {relation} the reference {short(reference)}")

    def _unified(self, text: str) -> str:
        text = unified(text)
        return with_decimal_point(text) if self._decimal_mark == "comma" else text

    def _answer(self, completion: str) -> Answer | None:
        if self._extract == "number":
            return _with_last_number(completion)
        if self._extract == "whole":
            return Answer(completion.strip(), "as the whole text")
        located = locate(completion, self._extract)
        if located.claim or self._extract != "auto":
            return located.claim
        whole = None if located.withdrawn else _short_whole(completion)
        return _last_formula(located.rest) or whole or _with_last_number(located.rest)


def _equal(found: Any, wanted: Any, margin: Margin) -> bool:  # noqa: PLR0911 one case a kind of answer
    match found, wanted:
        case Labelled(), _Words():
            return found.label == wanted.text.strip("()")
        case Labelled(), _:
            return _equal(found.value, wanted, margin)
        case _, Labelled():
            return _equal(found, _Words(wanted.label), margin) or _equal(found, wanted.value, margin)
        case Named(), Named():
            return found.names == wanted.names and _equal(found.value, wanted.value, margin)
        case Named(), _:
            return _equal(found.value, wanted, margin)
        case _, Named():
            return _equal(found, wanted.value, margin)
        case Quantity(), Quantity():
            return found.agrees(wanted) and found.number.equals(wanted.number, margin)
        case Colons(), Colons():
            return found.agrees(wanted)
    found, wanted = _quotient(found), _quotient(wanted)
    if any(isinstance(side, _Words | Colons | Based) for side in (found, wanted)):
        return found == wanted
    return _algebra().equal(_as_expression(found), _as_expression(wanted), margin)


def _quotient(thing: Any) -> Any:
    if isinstance(thing, Colons) and (value := thing.quotient()) is not None:
        return _algebra().constant(value)
    return thing


def _read_claim(text: str) -> Any:
    """Return an answer as `_read` does; of a sentence, where it is unreadable, what stands after its last "is"."""
    try:
        return _read(text)
    except UnreadableError:
        found = _COPULA.match(text)
        if found is None or qualified(found.group(), ""):
            raise
        return _read(_formula_of(text[found.end() :].strip()))


@lru_cache(maxsize=4096)
def _read(text: str) -> Any:
    """Return an answer as what it is, an expression of algebra where nothing simpler; raises UnreadableError."""
    if len(text) > MAX_CHARACTERS:
        raise UnreadableError(f"longer than {MAX_CHARACTERS} characters")
    text = undecorated(text)
    if found := _LABELLED.fullmatch(text):
        return Labelled(found["label"].casefold(), _read(found["value"]))
    notation = read_notation(text)
    if notation is not None:
        return notation
    quantity = read_quantity(text)
    if quantity is not None:
        return quantity
    words = folded(_TEXT.sub(r"\1", text))
    if _NOTHING.fullmatch(words):
        return _Words("no solution")
    return _Words(words) if _WORDS.fullmatch(words) else _expression(spelled_out(text))


def _expression(text: str) -> Any:
    """Return what algebra reads; raises UnreadableError."""
    if is_false(text):
        raise UnreadableError("its sides differ")
    if names := _MEASURED.fullmatch(text):
        return Named(
            tuple(_BLANKS.sub("", name) for name in names.captures("name")), _read(", ".join(names.captures("value")))
        )
    if named := _NAMED.fullmatch(text):
        return Named(tuple(named.captures("name")), _expression(named["value"]))
    if builder := _BUILDER.fullmatch(text):
        text = builder["condition"]
    if _INEQUALITY.search(text) and len(parts := _OR.split(text)) > 1:
        return _algebra().joined([_algebra().parsed(part) for part in parts])
    if all_but := _ALL_BUT.fullmatch(text):
        return _algebra().parsed_all_but(all_but["points"])
    readings = [_algebra().parsed(reading) for reading in both_signs(text)]
    return readings[0] if len(readings) == 1 else _algebra().both(*readings)


def _as_expression(thing: Any) -> Any:
    if not isinstance(thing, Quantity):
        return thing
    number = thing.number
    return _algebra().constant(number.value / 100 if number.percent else number.value, thing.name)


def _algebra() -> Any:
    """Return the module that does algebra: sympy takes a quarter of a second to load, and `rsft check` needs none."""
    from rsft_cluster.constraints.mathematics import algebra  # noqa: PLC0415

    return algebra


def _formula_of(text: str) -> str:
    """Return the formula between dollar signs that an answer is, with the words around it left out; else the answer."""
    formulas = [found for found in _FORMULA.finditer(text) if not _is_amount(found)]
    if not formulas:
        return text
    first, last = formulas[0], formulas[-1]
    between = [text[one.end() : other.start()] for one, other in pairwise(formulas)]
    if not all(_CONNECTED.fullmatch(part) for part in between):
        between, last = [], first
    before, after = text[: first.start()], text[last.end() :]
    if not (_PROSE.fullmatch(before) and (_PROSE.fullmatch(after) or _ASIDE.match(after))):
        return text
    if between:
        return ", ".join(formula["inside"] for formula in formulas)
    with_unit = first["inside"] + after
    return with_unit if read_quantity(with_unit) else first["inside"]


def _last_formula(completion: str) -> Answer | None:
    """Return the last formula, but where a later number stands outside of one."""
    formulas = [found for found in _FORMULA.finditer(completion) if not _is_amount(found)]
    if not formulas or _DIGIT_OUTSIDE.search(completion, formulas[-1].end()):
        return None
    return Answer(formulas[-1]["inside"], "in the last formula")


def _is_amount(found: regex.Match[str]) -> bool:
    """Return whether what stands between two dollar signs is prose between two amounts."""
    return found.group().startswith("$") and _BETWEEN_AMOUNTS.search(found["inside"]) is not None


def _short_whole(completion: str) -> Answer | None:
    text = completion.strip()
    try:
        _read(text)
    except UnreadableError:
        return None
    return Answer(text, "as the whole text")


def _with_last_number(completion: str) -> Answer | None:
    """Return the last number with what is written together with it, so that 2√3 is not read as 3."""
    number = last_number(completion)
    if number is None or (start := completion.rfind(number.text)) < 0:
        return None
    end = start + len(number.text)
    while start and not completion[start - 1].isspace():
        start -= 1
    while end < len(completion) and not completion[end].isspace():
        end += 1
    return Answer(completion[start:end], "with the last number")


CASES = (
    Case(Candidate("The area is \\boxed{2\\sqrt{3}}.", reference="√12"), passes=True),
    Case(Candidate("so 48 + 24 = 72.\n#### 72", reference="72"), passes=True),
    Case(Candidate("The answer is $x = 0.75$.", reference="\\frac{3}{4}"), passes=True),
    Case(Candidate("\\boxed{x^2 + 2x + 1}", reference="(x+1)^2"), passes=True),
    Case(Candidate("答案是三百二十元。", reference="320"), passes=True),
    Case(Candidate("\\boxed{(5, \\infty)}", reference="x > 5"), passes=True),
    Case(Candidate("\\boxed{2} or \\boxed{3}", reference="{2, 3}"), passes=True),
    Case(Candidate("\\boxed{x<2 \\text{ or } x>3}", reference="(-\\infty,2)\\cup(3,\\infty)"), passes=True),
    Case(Candidate("The answer is negative twenty-five.", reference="-25"), passes=True),
    Case(Candidate("<think>\\boxed{5}</think>The answer is 7.", reference="5"), passes=False),
    Case(Candidate("\\boxed{0}", reference="a + 3z = 0"), passes=False),
    Case(Candidate("\\boxed{2 + 2 = 5}", reference="5"), passes=False),
    Case(Candidate("\\boxed{110_2}", reference="110"), passes=False),
    Case(Candidate("\\boxed{2:00}", reference="5:00"), passes=False),
    Case(Candidate("The answer is almost 7.", reference="7"), passes=False),
    Case(Candidate("0.33", reference="1/3"), passes=True, params={"tolerance": 0.01}),
    Case(Candidate("0.333", reference="1/3"), passes=False),
    Case(Candidate("\\boxed{2\\sqrt{3}}", reference="3"), passes=False),
    Case(Candidate("\\boxed{[0, 1)}", reference="(0, 1)"), passes=False),
    Case(Candidate("\\boxed{9^{9^{9^9}}}", reference="9"), passes=False),
    Case(Candidate("The answer is -5.", reference="5"), passes=False),
    Case(Candidate("I do not know.", reference="5"), passes=False),
)

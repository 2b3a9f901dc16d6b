"""From the text of a judge to its answer.

An answer bears the question's nonce, so a score that stands in the judged text, and that the judge quotes, is not taken
for its own. An answer that cannot be read, is cut off, or is ambiguous raises: it is asked for again, and is never a
score.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

MAX_REASON = 200
"""Characters of the judge's own reason."""
_MAX_OBJECTS = 64
"""Opening braces, the first and then from the last on, at which an object is looked for."""
_END_OF_THOUGHT = re.compile(r"</think(?:ing)?\s*>", re.IGNORECASE)
_THOUGHT = re.compile(r"<think(?:ing)?\s*>", re.IGNORECASE)

AnswerAs = Literal["json", "line"]


class UnreadableError(ValueError):
    """An answer without the value that was asked for."""


@dataclass(frozen=True)
class Answer:
    """The answer of a judge as a number, and its reason."""

    value: float
    reason: str


@dataclass(frozen=True)
class Form:
    """The form of an answer: its key, the values in words, and how a value becomes a number."""

    key: str
    expected: str
    parse: Callable[[object], float]
    """Raises UnreadableError."""


def numeric(low: float, high: float) -> Form:
    """Return the form of a number on a scale."""
    expected = f"a number from {low:g} to {high:g}"

    def parse(value: object) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not low <= number <= high:
            raise UnreadableError(f"the score is {str(value)[:50]!r}, not {expected}")
        return number

    return Form("score", expected, parse)


def choice(key: str, values: Mapping[str, float]) -> Form:
    """Return the form of one of several words."""
    expected = " or ".join(filter(None, [", ".join([*values][:-1]), [*values][-1]]))
    numbers = {word.lower(): number for word, number in values.items()}

    def parse(value: object) -> float:
        number = numbers.get(str(value).strip().lower())
        if number is None:
            raise UnreadableError(f"the {key} is {str(value)[:50]!r}, not {expected}")
        return number

    return Form(key, expected, parse)


def format_instruction(form: Form, nonce: str, answer_as: AnswerAs) -> str:
    """Return the instruction that asks for an answer in a form."""
    if answer_as == "line":
        return (
            f"First give your reason in one or two sentences. Then end with exactly one line of this shape, where "
            f"... is {form.expected}:\n{form.key.capitalize()} {nonce}: ..."
        )
    return (
        f"Answer with one JSON object and nothing else, where {form.key} is {form.expected}:\n"
        f'{{"id": "{nonce}", "reason": "one or two sentences", "{form.key}": ...}}'
    )


def read(text: str, form: Form, nonce: str) -> Answer:
    """Return the answer in a text; raises UnreadableError where there is none, or more than one."""
    text = without_thoughts(text)
    values = [*_objects(text, form.key, nonce), *_lines(text, form.key, nonce)]
    if not values:
        raise UnreadableError(f"there is no {form.key} with the id {nonce}")
    answers = [Answer(form.parse(value), " ".join(reason.split())[:MAX_REASON]) for value, reason in values]
    if len({answer.value for answer in answers}) > 1:
        raise UnreadableError(f"there are several: {form.key} {' and '.join(f'{a.value:g}' for a in answers[:4])}")
    return answers[0]


def without_thoughts(text: str) -> str:
    """Return what follows the last thought: up to its last closing tag, or from an opening one that is not closed."""
    closed = [*_END_OF_THOUGHT.finditer(text)]
    text = text[closed[-1].end() :] if closed else text
    opened = _THOUGHT.search(text)
    return text[: opened.start()] if opened else text


def _objects(text: str, key: str, nonce: str) -> Iterator[tuple[object, str]]:
    """Yield value and reason of each JSON object with the nonce."""
    for parsed in _parsed(text):
        if isinstance(parsed, dict) and str(parsed.get("id")).strip() == nonce and key in parsed:
            reason = parsed.get("reason", "")
            yield parsed[key], reason if isinstance(reason, str) else ""


def _parsed(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder(strict=False)
    first = text.find("{")
    starts = [first] if first >= 0 else []
    start = len(text)
    while len(starts) < _MAX_OBJECTS and (start := text.rfind("{", first + 1, start)) >= 0:
        starts.append(start)
    for start in starts:
        try:
            yield decoder.raw_decode(text, start)[0]
        except (ValueError, RecursionError):  # not an object from here on
            continue


def _lines(text: str, key: str, nonce: str) -> Iterator[tuple[object, str]]:
    """Yield value and reason of each line with the nonce; the reason is what stands before."""
    line = re.compile(
        rf"^[ \t*_#>`]*{key}[ \t*_`]+{nonce}[ \t*_`]*[:=][ \t*_`]*([^\n]{{1,50}}?)[ \t*_`.]*$", re.I | re.M
    )
    for match in line.finditer(text):
        yield match[1], text[: min(match.start(), 10 * MAX_REASON)]

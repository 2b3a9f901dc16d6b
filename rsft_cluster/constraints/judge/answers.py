"""From what a judge wrote to what it said.

An answer bears the question's nonce, so a score that stands in the judged text, and that the judge quotes, is none of
its own. What cannot be read, is cut off, or says two things raises: it is asked for again, and is never a score.
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
"""Braces, the first one and those from the end, at which an object is looked for."""
_END_OF_THOUGHT = re.compile(r"</think(?:ing)?\s*>", re.IGNORECASE)
_THOUGHT = re.compile(r"<think(?:ing)?\s*>", re.IGNORECASE)

AnswerAs = Literal["json", "line"]


class UnreadableError(ValueError):
    """An answer that says nothing which was asked for."""


@dataclass(frozen=True)
class Answer:
    """What a judge said, and why."""

    value: float
    reason: str


@dataclass(frozen=True)
class Form:
    """What is asked for: under which key, in words, and how it becomes a number."""

    key: str
    wanted: str
    value: Callable[[object], float]
    """Raises UnreadableError."""


def numeric(low: float, high: float) -> Form:
    """Return the form of a number on a scale."""
    wanted = f"a number from {low:g} to {high:g}"

    def value(said: object) -> float:
        try:
            number = math.nan if isinstance(said, bool) else float(said)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not low <= number <= high:
            raise UnreadableError(f"the score is {str(said)[:50]!r}, not {wanted}")
        return number

    return Form("score", wanted, value)


def choice(key: str, values: Mapping[str, float]) -> Form:
    """Return the form of one of several words."""
    wanted = " or ".join(filter(None, [", ".join([*values][:-1]), [*values][-1]]))
    lowered = {word.lower(): value for word, value in values.items()}

    def value(said: object) -> float:
        found = lowered.get(str(said).strip().lower())
        if found is None:
            raise UnreadableError(f"the {key} is {str(said)[:50]!r}, not {wanted}")
        return found

    return Form(key, wanted, value)


def asked(form: Form, nonce: str, answer_as: AnswerAs) -> str:
    """Return the sentence that asks for an answer in a form."""
    if answer_as == "line":
        return (
            f"First give your reason in one or two sentences. Then end with exactly one line of this shape, where "
            f"... is {form.wanted}:\n{form.key.capitalize()} {nonce}: ..."
        )
    return (
        f"Answer with one JSON object and nothing else, where {form.key} is {form.wanted}:\n"
        f'{{"id": "{nonce}", "reason": "one or two sentences", "{form.key}": ...}}'
    )


def read(text: str, form: Form, nonce: str) -> Answer:
    """Return what an answer says; raises UnreadableError where that is nothing, or more than one thing."""
    text = without_thoughts(text)
    said = [*_objects(text, form.key, nonce), *_lines(text, form.key, nonce)]
    if not said:
        raise UnreadableError(f"there is no {form.key} with the id {nonce}")
    answers = [Answer(form.value(value), " ".join(reason.split())[:MAX_REASON]) for value, reason in said]
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
    for found in _parsed(text):
        if isinstance(found, dict) and str(found.get("id")).strip() == nonce and key in found:
            reason = found.get("reason", "")
            yield found[key], reason if isinstance(reason, str) else ""


def _parsed(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder(strict=False)
    first = text.find("{")
    places = [first] if first >= 0 else []
    place = len(text)
    while len(places) < _MAX_OBJECTS and (place := text.rfind("{", first + 1, place)) >= 0:
        places.append(place)
    for place in places:
        try:
            yield decoder.raw_decode(text, place)[0]
        except (ValueError, RecursionError):  # not an object from here on
            continue


def _lines(text: str, key: str, nonce: str) -> Iterator[tuple[object, str]]:
    """Yield value and reason of each line with the nonce; the reason is what stands before."""
    line = re.compile(
        rf"^[ \t*_#>`]*{key}[ \t*_`]+{nonce}[ \t*_`]*[:=][ \t*_`]*([^\n]{{1,50}}?)[ \t*_`.]*$", re.I | re.M
    )
    for match in line.finditer(text):
        yield match[1], text[: min(match.start(), 10 * MAX_REASON)]

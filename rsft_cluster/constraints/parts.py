"""The parts of a completion: what the policy thinks, and what it answers.

A thought stands between `<think>` and `</think>`, or tags like them. A completion that opens one and never closes it
has no answer.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

import regex

from rsft_cluster.constraints.base import Candidate, Verdict

Part = Literal["answer", "thinking", "all"]

_TAG = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?)"
_OPENING = regex.compile(rf"<(?:seed:)?{_TAG}\s*>|\[THINK\]|◁think▷", regex.IGNORECASE)
_CLOSING = regex.compile(rf"</(?:seed:)?{_TAG}\s*>|\[/THINK\]|◁/think▷", regex.IGNORECASE)
_LONGEST_TAG = 20


class Parts(NamedTuple):
    """Both parts of a completion."""

    thinking: str
    answer: str | None
    """None where the thinking never ends."""
    thinking_at: int
    """Place of the thinking, in characters of the completion."""
    answer_at: int


def split(completion: str, closing: str | None = None) -> Parts:
    """Return thinking and answer: up to the last closing tag, and after it.

    Where `closing` names the tag the completion begins in its thought, and has no answer without that tag. Else
    any known tag counts; without one all is answer, up to a thought that is opened and never closed.
    """
    if closing is not None:
        before, mark, after = completion.rpartition(closing)
        return Parts(before, after, 0, len(before) + len(mark)) if mark else Parts(completion, None, 0, len(completion))
    at = max((found.end() for found in _CLOSING.finditer(completion)), default=0)
    opened = _OPENING.search(completion, at)
    if opened is None:
        return Parts(completion[:at], completion[at:], 0, at)
    answer = completion[at : opened.start()]
    return Parts(completion[:at] + completion[opened.start() :], answer if answer.strip() else None, 0, at)


def split_opened(completion: str) -> Parts:
    """Return thinking and answer where the completion itself begins with an opening tag; else all is answer.

    Whatever follows, what was answer stays answer: so a place in it can be called fatal.
    """
    start = len(completion) - len(completion.lstrip())
    opened = _OPENING.match(completion[start : start + _LONGEST_TAG])
    if opened is None:
        return Parts("", completion, 0, 0)
    begin = start + opened.end()
    closed = _CLOSING.search(completion, begin)
    if closed is None:
        return Parts(completion[begin:], None, begin, len(completion))
    return Parts(completion[begin : closed.start()], completion[closed.end() :], begin, closed.end())


def answer_of(candidate: Candidate) -> str | None:
    """Return the answer of a candidate, None where its thinking never ends."""
    return split(candidate.completion).answer


def no_answer() -> Verdict:
    """Return the verdict of a completion that never ends its thinking."""
    return Verdict.of(False, "the thinking never ends, so there is no answer")


def judged(completion: str, part: Part, judge: Callable[[str], Verdict]) -> Verdict:
    """Return the verdict on one part of a completion; places in its reason count from where the part begins."""
    if part == "all":
        return judge(completion)
    parts = split_opened(completion)
    text, place = (parts.answer, parts.answer_at) if part == "answer" else (parts.thinking, parts.thinking_at)
    if text is None:
        return no_answer()
    verdict = judge(text)
    return replace(verdict, fatal_at=verdict.fatal_at + place) if place and verdict.fatal_at is not None else verdict

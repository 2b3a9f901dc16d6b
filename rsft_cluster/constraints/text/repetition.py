"""`Repetition`: the completion does not go round in circles.

Two measures. The share of its n-grams of words that stood there before, 1 - distinct / all, is seq-rep-n of Welleck et
al. (2020, Neural Text Generation with Unlikelihood Training, arXiv 1908.04319). And the longest run: how often in a row
the same line, character or phrase stands.
Words are runs of letters and digits, single characters in Chinese and Japanese; case does not count.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import regex
from pydantic import Field

from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.constraints.parts import Part, judged
from rsft_cluster.constraints.text._text import Word, ended_at, folded_words, run_numbers, shown, words

Times = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, le=1)]


_MAX_UNIT = 10
_DRAWN = regex.compile(r"[\s\-=_*#~+|.·•:/\\\u2010-\u2015\u2500-\u259f…]+")
"""What rules, tables and leaders are drawn with."""


class _Run(NamedTuple):
    """A unit that stands too often in a row: its kind and text, and the place with which that is so."""

    kind: str
    text: str
    fatal_at: int


class Repetition:
    """Pass completions that repeat themselves neither in all nor in a row.

    At most `max_rate` of the n-grams of `ngram` words are repeated, and no phrase of up to `max_phrase` words, no line
    and no character stands more than `max_phrases`, `max_lines`, `max_characters` times in a row, nor does any unit of
    up to 10 characters ("ha", "!?", an emoji) more than `max_units` times; None allows any number. Spaces, empty lines
    and lines drawn with `-=_*#` and their like do not count. Judged is one `part`: the answer, the thinking, or all.
    """

    def __init__(
        self,
        *,
        ngram: Annotated[int, Field(ge=1, le=100)] = 4,
        max_rate: Rate | None = 0.3,
        max_phrases: Times | None = 5,
        max_phrase: Annotated[int, Field(ge=1, le=100)] = 20,
        max_lines: Times | None = 3,
        max_characters: Times | None = None,
        max_units: Times | None = 29,
        part: Part = "answer",
    ) -> None:
        self._ngram, self._max_rate = ngram, max_rate
        self._max_phrases, self._max_phrase = max_phrases, max_phrase
        self._part: Part = part
        self._max_lines, self._max_characters = max_lines, max_characters
        self._max_units = max_units

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate; the reason names what is repeated."""
        return [judged(candidate.completion, self._part, self._judge) for candidate in candidates]

    def _judge(self, text: str) -> Verdict:
        found = words(text)
        for run in self._runs(text, found):
            reason = f"the {run.kind} {shown(run.text)} over and over, up to character {run.fatal_at}"
            return Verdict(0.0, passed=False, reason=reason, fatal_at=run.fatal_at)
        rate = repeated_rate(folded_words(found), self._ngram)
        passed = self._max_rate is None or rate <= self._max_rate
        return Verdict.of(passed, f"{rate:.1%} of the {self._ngram}-grams are repeated")

    def _runs(self, text: str, found: Sequence[Word]) -> Iterator[_Run]:
        if self._max_characters is not None:
            yield from _characters(text, self._max_characters)
        if self._max_units is not None:
            yield from _units(text, self._max_units)
        if self._max_lines is not None:
            yield from _lines(text, self._max_lines)
        if self._max_phrases is not None:
            yield from _phrases(text, found, self._max_phrases, self._max_phrase)


def repeated_rate(units: Sequence[str], n: int) -> float:
    """Return the share of n-grams that stood there before; 0 where there are none."""
    numbers = run_numbers(units, n)
    return 1 - len(set(numbers)) / len(numbers) if numbers else 0.0


def _characters(text: str, at_most: int) -> Iterator[_Run]:
    last = _last_of_run([ord(c) for c in text], 1, at_most, [not c.isspace() for c in text])
    if last is not None:
        yield _Run("character", text[last], last)


def _units(text: str, at_most: int) -> Iterator[_Run]:
    """Yield the first unit of a few characters, but what a line is drawn with, that stands too often in a row."""
    if len(text) <= at_most:
        return
    array = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    for size in range(1, min(_MAX_UNIT, len(text) // (at_most + 1)) + 1):
        for last in _ends_of_runs(array, size, at_most):
            unit = text[last - size + 1 : last + 1]
            if not _DRAWN.fullmatch(unit):
                yield _Run("unit", unit, last)
                return


def _ends_of_runs(array: np.ndarray, size: int, at_most: int) -> list[int]:
    """Return where each run of a unit of `size` is first longer than `at_most` times."""
    needed = size * at_most
    breaks = np.flatnonzero(array[size:] != array[:-size])
    starts = np.concatenate([[-1], breaks])
    lengths = np.diff(np.concatenate([starts, [len(array) - size]])) - 1
    return [int(start) + needed + size for start in starts[lengths >= needed]]


def _lines(text: str, at_most: int) -> Iterator[_Run]:
    lines, start = [], 0
    for line in text.split("\n"):
        end = start + len(line)
        if line.strip():
            lines.append((line.strip(), end))
        start = end + 1
    last = _last_of_run(run_numbers([line for line, _ in lines], 1), 1, at_most)
    if last is not None:
        yield _Run("line", *lines[last])


def _phrases(text: str, found: Sequence[Word], at_most: int, max_phrase: int) -> Iterator[_Run]:
    units = run_numbers(folded_words(found), 1)
    for size in range(1, max_phrase + 1):
        last = _last_of_run(units, size, at_most)
        if last is not None:
            phrase = text[found[last - size + 1].start() : found[last].end()]
            yield _Run("phrase", phrase, ended_at(found, last))
            return


def _last_of_run(units: Sequence[int], size: int, at_most: int, counts: Sequence[bool] | None = None) -> int | None:
    """Return where a block of `size` units ends that stands once more than `at_most` times in a row.

    That is so where each of `size * at_most` units in a row is the same as the one `size` before it.
    """
    needed = size * at_most
    if len(units) < needed + size:
        return None
    array = np.asarray(units)
    same = array[size:] == array[:-size]
    if counts is not None:
        same &= np.asarray(counts)[size:]
    ends = np.cumsum(same)
    full = np.flatnonzero(ends[needed - 1 :] - np.concatenate([[0], ends[:-needed]]) == needed)
    return int(full[0]) + needed - 1 + size if len(full) else None


CASES = (
    Case(Candidate("The cat sat on the mat. It was warm there, and the cat slept."), passes=True),
    Case(Candidate("I do not know. " * 6), passes=False),
    Case(Candidate("很好很好很好很好很好很好"), passes=False),
    Case(Candidate("人生就像一盒巧克力，你永远不知道下一颗是什么味道。"), passes=True),
    Case(Candidate("yes\nyes\nyes\nyes\n"), passes=False),
    Case(Candidate("a b c d e f a b c d e f a b c d e f"), passes=False),
    Case(Candidate("a b c d e f a b c d e f a b c d e f"), passes=True, params={"max_rate": None}),
    Case(Candidate("No" + "o" * 20), passes=False, params={"max_characters": 10}),
    Case(Candidate("ha" * 30), passes=False),
    Case(Candidate("I said !" + "?!" * 30), passes=False),
    Case(Candidate("ha" * 30), passes=True, params={"max_units": None}),
    Case(Candidate("hahaha " + "-" * 80), passes=True),
    Case(Candidate("| a | b |\n" + "|---|---" * 20 + "|\n"), passes=True),
    Case(Candidate(f"<think>{'no ' * 20}</think>yes"), passes=True),
    Case(Candidate(f"<think>{'no ' * 20}</think>yes"), passes=False, params={"part": "thinking"}),
    Case(Candidate(""), passes=True),
)

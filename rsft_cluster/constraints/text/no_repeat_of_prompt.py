"""`NoRepeatOfPrompt`: the completion does not parrot the prompt.

What is copied are runs of words that stand in the same order in the prompt; single characters in Chinese and Japanese.
Case and punctuation do not count.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.constraints.parts import Part, judged
from rsft_cluster.constraints.text._text import Word, ended_at, folded_words, run_numbers, shown, words
from rsft_cluster.schemas import Message

RunLength = Annotated[int, Field(ge=1, le=1000)]


class NoRepeatOfPrompt:
    """Pass completions that copy at most `max_run` words in a row, and at most `max_rate` of their words in all.

    A word counts as copied where it lies in a run of at least `min_run` words of the prompt. The prompt is the `last`
    message, or `all` of them: the system's own, too. Judged is one `part`: the answer, the thinking, or all.
    """

    def __init__(
        self,
        *,
        max_run: RunLength = 20,
        max_rate: Annotated[float, Field(ge=0, le=1)] = 0.5,
        min_run: RunLength = 5,
        messages: Literal["last", "all"] = "last",
        part: Part = "answer",
    ) -> None:
        self._max_run, self._max_rate, self._min_run = max_run, max_rate, min_run
        self._all = messages == "all"
        self._part: Part = part

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate; the reason shows where a copied run begins, or gives the share."""
        return [judged(one.completion, self._part, partial(self._judge, one)) for one in candidates]

    def _judge(self, candidate: Candidate, text: str) -> Verdict:
        messages = [m.content for m in candidate.messages] if self._all else [candidate.prompt]
        prompts = [folded_words(words(message)) for message in messages]
        found = words(text)
        units = folded_words(found)
        size = self._max_run + 1
        if starts := _copied(units, prompts, size):
            return _run(found, starts[0], size)
        num_copied = len(
            {i for start in _copied(units, prompts, self._min_run) for i in range(start, start + self._min_run)}
        )
        rate = num_copied / len(units) if units else 0.0
        return Verdict(1 - rate, rate <= self._max_rate, f"{rate:.0%} of {len(units)} words copied from the prompt")


def _copied(units: Sequence[str], prompts: Sequence[Sequence[str]], size: int) -> list[int]:
    """Return where runs of so many units begin that stand in one of the prompts as well."""
    before = [unit for i, prompt in enumerate(prompts) for unit in (*prompt, f" {i}")]
    numbers = run_numbers([*before, *units], size)
    known, own = set(numbers[: len(before)]), numbers[len(before) :]
    return [i for i, number in enumerate(own) if number in known]


def _run(found: Sequence[Word], start: int, size: int) -> Verdict:
    first, last = found[start].start(), start + size - 1
    text = found[start].string[first : found[last].end()]
    reason = f"more than {size - 1} words in a row copied from the prompt at character {first}: {shown(text)}"
    return Verdict(0.0, passed=False, reason=reason, fatal_at=ended_at(found, last))


_QUESTION = (Message("user", "What does the warranty cover when my screen breaks?"),)
_QUESTION_ZH = (Message("user", "请问手机屏幕摔坏了在不在保修范围之内？"),)

CASES = (
    Case(Candidate("It covers defects, not falls.", messages=_QUESTION), passes=True),
    Case(Candidate("What does the warranty cover when my screen breaks?", messages=_QUESTION), passes=False),
    Case(Candidate("You ask what the warranty covers.", messages=_QUESTION), passes=True),
    Case(
        Candidate("The warranty cover when my screen breaks is nothing at all.", messages=_QUESTION),
        passes=False,
        params={"max_run": 5},
    ),
    Case(Candidate("摔坏不属于保修。", messages=_QUESTION_ZH), passes=True),
    Case(Candidate("手机屏幕摔坏了在不在保修范围之内？不在。", messages=_QUESTION_ZH), passes=False),
)

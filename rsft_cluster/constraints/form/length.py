"""`length`: the completion is neither too short nor too long, in tokens, words or characters.

Counts only; it knows nothing of what is said. Tokens are those that were sampled, the end-of-sequence token
included. A word is a run of letters and digits; Chinese and Japanese, written without spaces, count one a
character.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.constraints.parts import Part, judged
from rsft_cluster.constraints.text._text import words
from rsft_cluster.errors import ConfigError

Count = Annotated[int, Field(ge=0)]
Unit = Literal["tokens", "words", "characters"]


class Length:
    """Passes candidates of at least `min` and at most `max` units; both ends are included.

    Words and characters are those of one `part` of the completion, the answer by default; tokens those of all.
    """

    def __init__(
        self, *, min: Count = 0, max: Count | None = None, unit: Unit = "tokens", part: Part | None = None
    ) -> None:
        if max is not None and min > max:
            raise ConfigError(f"length: min {min} is above max {max}, so nothing can pass")
        if unit == "tokens" and part not in (None, "all"):
            raise ConfigError(f"length: tokens are counted of the whole completion; part {part} goes with other units")
        self._min, self._max, self._unit = min, max, unit
        self._part: Part = part or "answer"

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate; the reason gives the count."""
        if self._unit == "tokens":
            return [self._one(candidate.num_tokens) for candidate in candidates]
        return [judged(candidate.completion, self._part, self._counted) for candidate in candidates]

    def _counted(self, text: str) -> Verdict:
        return self._one(len(words(text)) if self._unit == "words" else len(text))

    def _one(self, count: int) -> Verdict:
        if count < self._min:
            return Verdict.of(False, f"{count} {self._unit}, fewer than {self._min}")
        if self._max is not None and count > self._max:
            return Verdict.of(False, f"{count} {self._unit}, more than {self._max}")
        return Verdict.of(True, f"{count} {self._unit}")


CASES = (
    Case(Candidate("5", num_tokens=2), passes=True, params={"max": 2}),
    Case(Candidate("5 apples", num_tokens=3), passes=False, params={"max": 2}),
    Case(Candidate("It isn't 3.5, is it?"), passes=True, params={"max": 5, "unit": "words"}),
    Case(Candidate("我有3只cats。"), passes=False, params={"max": 4, "unit": "words"}),
    Case(Candidate(""), passes=False, params={"min": 1, "unit": "characters"}),
)

"""`length`: the completion is neither too short nor too long, in tokens, words or characters.

Counts only; it knows nothing of what is said. Tokens are those that were sampled, the end-of-sequence token
included. A word is a run of letters and digits; Chinese and Japanese, written without spaces, count one a
character.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.constraints.text._text import words
from rsft_cluster.errors import ConfigError

Count = Annotated[int, Field(ge=0)]
Unit = Literal["tokens", "words", "characters"]


class Length:
    """Passes candidates of at least `min` and at most `max` units; both ends are included."""

    def __init__(self, *, min: Count = 0, max: Count | None = None, unit: Unit = "tokens") -> None:
        if max is not None and min > max:
            raise ConfigError(f"length: min {min} is above max {max}, so nothing can pass")
        self._min, self._max, self._unit = min, max, unit

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate; the reason gives the count."""
        return [self._one(_count(candidate, self._unit)) for candidate in candidates]

    def _one(self, count: int) -> Verdict:
        if count < self._min:
            return Verdict.of(False, f"{count} {self._unit}, fewer than {self._min}")
        if self._max is not None and count > self._max:
            return Verdict.of(False, f"{count} {self._unit}, more than {self._max}")
        return Verdict.of(True, f"{count} {self._unit}")


def _count(candidate: Candidate, unit: str) -> int:
    if unit == "tokens":
        return candidate.num_tokens
    if unit == "words":
        return len(words(candidate.completion))
    return len(candidate.completion)


CASES = (
    Case(Candidate("5", num_tokens=2), passes=True, params={"max": 2}),
    Case(Candidate("5 apples", num_tokens=3), passes=False, params={"max": 2}),
    Case(Candidate("It isn't 3.5, is it?"), passes=True, params={"max": 5, "unit": "words"}),
    Case(Candidate("我有3只cats。"), passes=False, params={"max": 4, "unit": "words"}),
    Case(Candidate(""), passes=False, params={"min": 1, "unit": "characters"}),
)

"""`length`: the completion is neither too short nor too long, in tokens, words or characters.

Counts only; it knows nothing of what is said. Tokens are those that were sampled, the end-of-sequence token
included. A word is a run of letters and digits; Chinese and Japanese, written without spaces, count one a
character.
"""

from typing import Annotated, Literal

import regex
from pydantic import Field

from rsft_cluster.constraints.base import Candidate, Verdict
from rsft_cluster.errors import ConfigError

Count = Annotated[int, Field(ge=0)]
Unit = Literal["tokens", "words", "characters"]

_IDEOGRAPHS = r"\p{Han}\p{Hiragana}\p{Katakana}"
_WORD = regex.compile(
    rf"(?V1)[{_IDEOGRAPHS}]|[[\p{{L}}\p{{M}}\p{{N}}_]--[{_IDEOGRAPHS}]]+(?:['’.,-]\p{{L}}+|[.,]\p{{N}}+)*"
)


def length(candidate: Candidate, *, min: Count = 0, max: Count | None = None, unit: Unit = "tokens") -> Verdict:
    """Pass candidates of at least `min` and at most `max` units; both ends are included."""
    if max is not None and min > max:
        raise ConfigError(f"length: min {min} is above max {max}, so nothing can pass")
    count = _count(candidate, unit)
    if count < min:
        return Verdict.of(False, f"{count} {unit}, fewer than {min}")
    if max is not None and count > max:
        return Verdict.of(False, f"{count} {unit}, more than {max}")
    return Verdict.of(True, f"{count} {unit}")


def _count(candidate: Candidate, unit: Unit) -> int:
    if unit == "tokens":
        return candidate.num_tokens
    if unit == "words":
        return sum(1 for _ in _WORD.finditer(candidate.completion))
    return len(candidate.completion)

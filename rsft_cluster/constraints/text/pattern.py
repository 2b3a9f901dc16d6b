"""`Pattern`: the completion matches regular expressions, or matches none of them.

Patterns are compiled when the constraint is built, so a wrong one fails with the config. Matching has a time
limit: a pattern that backtracks without end on some completion is an error of that verdict, never a score.
"""

from collections.abc import Sequence
from typing import Annotated

import regex
from pydantic import Field

from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.constraints.parts import Part, judged
from rsft_cluster.constraints.text._text import shown
from rsft_cluster.errors import ConfigError


class Pattern:
    """Pass completions in which every `must` pattern and no `must_not` pattern is found.

    Patterns are those of the `regex` package, a superset of Python's `re`; flags for lines and dots are
    written inline: `(?m)`, `(?s)`. With `full_match` a pattern has to span the whole
    `part` of the completion that is judged: the answer, the thinking, or all.
    """

    def __init__(
        self,
        *,
        must: str | Sequence[str] | None = None,
        must_not: str | Sequence[str] | None = None,
        ignore_case: bool = False,
        full_match: bool = False,
        timeout_s: Annotated[float, Field(gt=0)] = 1.0,
        part: Part = "answer",
    ) -> None:
        flags = regex.IGNORECASE if ignore_case else regex.RegexFlag(0)
        self._must = _compile("must", must, flags)
        self._must_not = _compile("must_not", must_not, flags)
        if not self._must and not self._must_not:
            raise ConfigError("pattern: give at least one pattern, in must or in must_not")
        self._full_match = full_match
        self._part: Part = part
        self._timeout_s = timeout_s

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate; the reason names the pattern and what it matched."""
        return [judged(candidate.completion, self._part, self._judge) for candidate in candidates]

    def _judge(self, text: str) -> Verdict:
        for pattern in self._must:
            if self._find(pattern, text) is None:
                return Verdict.of(False, f"nothing matches {pattern.pattern!r}")
        for pattern in self._must_not:
            if (found := self._find(pattern, text)) is not None:
                what = f"{shown(found.group())} at character {found.start()}"
                return Verdict.of(False, f"{what} matches {pattern.pattern!r}, which it must not")
        return Verdict.of(
            True, f"all of {len(self._must)} patterns found, none of {len(self._must_not)} forbidden ones"
        )

    def _find(self, pattern: regex.Pattern[str], text: str) -> regex.Match[str] | None:
        find = pattern.fullmatch if self._full_match else pattern.search
        try:
            return find(text, timeout=self._timeout_s)
        except TimeoutError as error:
            raise TimeoutError(
                f"pattern {pattern.pattern!r} took over {self._timeout_s:g} s on {len(text)} characters"
            ) from error


def _compile(name: str, patterns: str | Sequence[str] | None, flags: regex.RegexFlag) -> list[regex.Pattern[str]]:
    compiled = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns or []:
        try:
            compiled.append(regex.compile(pattern, flags))
        except regex.error as error:
            raise ConfigError(f"pattern: {name} {pattern!r} is no regular expression: {error}") from error
    return compiled


CASES = (
    Case(Candidate("call 555-1234"), passes=True, params={"must": r"\d{3}-\d{4}"}),
    Case(Candidate("call me"), passes=False, params={"must": r"\d{3}-\d{4}"}),
    Case(Candidate("他们都很懒"), passes=False, params={"must_not": "他们都.*懒"}),
    Case(Candidate("HELLO"), passes=True, params={"must": "hello", "ignore_case": True}),
    Case(Candidate("hello there"), passes=False, params={"must": "hello", "full_match": True}),
)

"""`Format`: the completion keeps to its tags, like `<think>...</think><answer>...</answer>` (DeepSeek-R1, 2025).

Every tag opens and closes exactly once, in the order given, none within another, with something between.
"""

from collections.abc import Sequence

import regex

from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.constraints.text._text import shown
from rsft_cluster.errors import ConfigError

_NAME = regex.compile(r"[\w.-]+")


class Format:
    """Pass completions with each of the `tags` once, in order, not empty; with `only_tags` nothing but spaces outside.

    With `opened_by_prompt` the chat template has written the first opening tag already: the completion begins in it.
    """

    def __init__(
        self,
        *,
        tags: Sequence[str] = ("think", "answer"),
        only_tags: bool = False,
        opened_by_prompt: bool = False,
    ) -> None:
        if wrong := [tag for tag in tags if not _NAME.fullmatch(tag)]:
            raise ConfigError(f"format: tags holds {wrong[0]!r}; give names without brackets, like think")
        if not tags or len(set(tags)) < len(tags):
            raise ConfigError(f"format: tags are one or more, each another, not {list(tags)!r}")
        self._expected = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
        self._only_tags, self._num_given = only_tags, int(opened_by_prompt)
        self._mark = regex.compile(rf"</?(?:{'|'.join(map(regex.escape, tags))})>")

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate; the reason names the first tag that is wrong, and what was due."""
        return [self._judge(candidate.completion) for candidate in candidates]

    def _judge(self, text: str) -> Verdict:
        due, position = self._expected[self._num_given :], 0
        for found in self._mark.finditer(text):
            if wrong := self._wrong(found.group(), due, text[position : found.start()].strip()):
                return _failed(wrong, found.end() - 1)
            position, due = found.end(), due[1:]
        if due:
            return _failed(f"{due[0]} is missing", len(text))
        if self._only_tags and (rest := text[position:].strip()):
            return _failed(f"{shown(rest)} after the last tag", text.index(rest, position))
        return Verdict.of(True, f"all of {len(self._expected) // 2} tags, once and in order")

    def _wrong(self, mark: str, due: Sequence[str], between: str) -> str:
        """Return what is wrong with the next tag, after the text `between` it and the one before; "" if nothing is."""
        if not due:
            return f"{mark} after the last tag"
        if mark != due[0]:
            return f"{mark} where {due[0]} is due"
        closes = mark.startswith("</")
        if closes and not between:
            return f"nothing before {mark}"
        return f"{shown(between)} before {mark}" if between and self._only_tags and not closes else ""


def _failed(what: str, place: int) -> Verdict:
    return Verdict(0.0, passed=False, reason=f"{what}, at character {place}", fatal_at=place)


CASES = (
    Case(Candidate("<think>2 + 3</think><answer>5</answer>"), passes=True),
    Case(Candidate("<think>2 + 3</think> so <answer>5</answer>!"), passes=True),
    Case(Candidate("<think>2 + 3</think> so <answer>5</answer>"), passes=False, params={"only_tags": True}),
    Case(Candidate("<think>2 + 3</think>\n<answer>5</answer>\n"), passes=True, params={"only_tags": True}),
    Case(Candidate("<answer>5</answer><think>2 + 3</think>"), passes=False),
    Case(Candidate("<think>2</think><think>3</think><answer>5</answer>"), passes=False),
    Case(Candidate("<think> </think><answer>5</answer>"), passes=False),
    Case(Candidate("<think>2 + 3<answer>5</answer></think>"), passes=False),
    Case(Candidate("<think>想一想</think><answer>5"), passes=False),
    Case(Candidate("想一想</think><answer>5</answer>"), passes=True, params={"opened_by_prompt": True}),
    Case(Candidate("<方案>甲</方案>"), passes=True, params={"tags": ["方案"]}),
)

"""When a completion is over: an end token, or a stop string in its text.

Text is decoded as it grows, a few tokens at a time, so the cost of a token does not grow with the completion and
a character whose bytes are spread over several tokens is seen once it is whole. Plain Python, no tensors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

INCOMPLETE = "\ufffd"
"""The text that a tokenizer decodes the first bytes of an unfinished character to."""


@dataclass(frozen=True, slots=True)
class StopRule:
    """The tokens and strings that end a completion."""

    end_token_ids: frozenset[int]
    strings: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]


class Ending:
    """Watches one completion for its end."""

    __slots__ = ("_context", "_pending", "_rule", "_tail", "_tail_length")

    def __init__(self, rule: StopRule) -> None:
        self._rule = rule
        self._tail_length = max((len(stop) for stop in rule.strings), default=1) - 1
        self._tail = ""
        """End of the text so far, as long as a stop string that is still incomplete could be."""
        self._context: list[int] = []
        """Tokens already in the text, decoded again because the next one's spacing may depend on them."""
        self._pending: list[int] = []
        """Tokens that have not made whole characters yet."""

    def reached(self, token: int) -> bool:
        """Return whether the completion is over with this token."""
        if token in self._rule.end_token_ids:
            return True
        return bool(self._rule.strings) and self._completes_a_string(token)

    def _completes_a_string(self, token: int) -> bool:
        self._pending.append(token)
        before = self._rule.decode(self._context)
        after = self._rule.decode(self._context + self._pending)
        text = self._tail + after[len(before) :]
        if any(stop in text for stop in self._rule.strings):
            return True
        if len(after) > len(before) and not after.endswith(INCOMPLETE):
            self._tail = text[-self._tail_length :] if self._tail_length else ""
            self._context, self._pending = self._pending, []
        return False

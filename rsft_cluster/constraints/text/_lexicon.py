"""Word lists, found in texts however they are written there; English and Chinese alike.

Words of an alphabet count only as whole words ("class" is not in "classic"). Words with characters of a
script that sets no spaces (Chinese, Japanese, Thai ...), or that joins particles to words (Korean), count
wherever they stand. Text and words are compared after Unicode NFKC, invisible characters removed, so that
full-width or broken-up spellings do not slip through.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import regex

from rsft_cluster.constraints.text._text import UNSPACED
from rsft_cluster.errors import ConfigError

_LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--[{UNSPACED}]]"
_INSIDE = rf"(?:(?<={_LETTER})(?={_LETTER}))"
_SPACED_WORDS = rf"(?!{_INSIDE})\L<spaced>(?!{_INSIDE})"
_UNSPACED_WORDS = r"\L<unspaced>"
_HAS_UNSPACED = regex.compile(rf"[{UNSPACED}]")
_HAN = regex.compile(r"\p{Han}")
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
_JOINED = regex.compile(r"(?s:.)[\p{M}\p{Default_Ignorable_Code_Point}]*+")
_SPACE = regex.compile(r"\s+")
_GAP = regex.compile(
    rf"(?V1)(?<=(?<!{_LETTER}){_LETTER}|[{UNSPACED}])(?:[^\p{{L}}\p{{M}}\p{{N}},;:!?。、\"'()<>]|_){{1,3}}+"
    rf"(?={_LETTER}(?!{_LETTER})|[{UNSPACED}])"
)
"""Up to three spaces or symbols between two letters that stand alone, or two characters of an unspaced script."""


_LOOK_ALIKES = str.maketrans(
    "\u0430\u0441\u0501\u0435\u04bb\u0456\u0458\u043a\u04cf\u043e\u0440\u0455\u0442\u0445\u0443\u0432\u043c\u043d\u043f"
    "\u03b1\u03b5\u03b9\u03ba\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7\u03c9\u03b7\u0131\u0269\u026a\u0251\u03f2\u0261"
    "013457@$!",
    "acdehijklopstxybmhnaeikvoptuxwniiiacgoieastasi",
)
"""Cyrillic, Greek and other letters, then digits and signs, to the Latin letters that they look like."""
_MIXED = regex.compile(
    r"(?<![\p{L}\p{N}@$])(?=[\p{L}\p{N}@$!]*\p{Latin})(?=[\p{L}\p{N}@$!]*[^\p{Latin}])[\p{L}\p{N}@$!]*[\p{L}\p{N}@$]"
)
_MAYBE = regex.compile(r"[a-zA-Z][013457@$!]\w|[013457@$][a-zA-Z]|[a-zA-Z][013457@$](?!\w)")
_JOINER = regex.compile(r"[-/\u00b7\u2010-\u2015]|\.\p{L}")
_JOINT = regex.compile(r"(?<=\p{L})[-./\u00b7\u2010-\u2015](?=\p{L})")


class Folded:
    """A text in one way of writing, and where each place of it lies in the text as given."""

    def __init__(self, given: str, *, ignore_case: bool) -> None:
        self._given = given
        self._ignore_case = ignore_case
        self.text = fold(given, ignore_case=ignore_case)

    def place(self, position: int) -> int:
        """Return where a position of the folded text lies in the given one; its end is the end."""
        if position >= len(self.text):
            return len(self._given)
        lengths = range(len(self._given) + 1)
        return bisect_right(lengths, position, key=self._folded_length) - 1

    def after(self, position: int) -> int:
        """Return the place with which all that the folded text has before a position is there for good.

        It is that of the character there, with the marks that join it: before them it might become another one.
        """
        joined = _JOINED.match(self._given, self.place(position))
        return joined.end() - 1 if joined else len(self._given)

    def _folded_length(self, num_given: int) -> int:
        return len(fold(self._given[:num_given], ignore_case=self._ignore_case))


class Disguised:
    """A folded text with plain letters for those that look like them, and a space for what joins words.

    Greek and Cyrillic letters, digits and signs count as Latin letters within a word that has Latin ones.
    """

    def __init__(self, folded: Folded) -> None:
        self._folded = folded
        self.text = disguised(folded.text)
        self.is_plain = self.text == folded.text

    def place(self, position: int) -> int:
        """Return where a position lies in the given text."""
        return self._folded.place(position)


class Squeezed:
    """A folded text without the gaps within words that are spelled out, like `b.a.d` or `坏 人`."""

    def __init__(self, folded: Folded) -> None:
        gaps = list(_GAP.finditer(folded.text))
        self._folded = folded
        self._removed = list(accumulate((len(gap.group()) for gap in gaps), initial=0))
        self._starts = [gap.start() - removed for gap, removed in zip(gaps, self._removed, strict=False)]
        self.text = _GAP.sub("", folded.text)

    def place(self, position: int) -> int:
        """Return where a position of the squeezed text lies in the given one."""
        return self._folded.place(position + self._removed[bisect_right(self._starts, position)])


@dataclass(frozen=True, slots=True)
class Found:
    """A word of a lexicon in a text."""

    word: str
    """As the lexicon spells it."""
    place: int
    """Its first character in the text as given."""
    ends_at: int | None
    """The character with which it is there for good: its last one where that is Chinese, otherwise the one after it,
    which might have made it part of a longer word; the end of the text, where it ends with the word. None for a word
    that is spelled out: more letters might make it another one."""


class Lexicon:
    """Words, at least one, ready to be found."""

    def __init__(self, words: Iterable[str], *, ignore_case: bool, name: str) -> None:
        """Prepare the words; raises ConfigError, saying `name`, where one has no character that shows."""
        folded = {fold(word, ignore_case=ignore_case).strip(): word for word in words}
        if "" in folded:
            raise ConfigError(f"{name} holds {folded['']!r}, which is no word")
        self._words = folded
        self._pattern = _pattern(folded)
        self._plain = {disguised(key): word for key, word in folded.items()}
        self._plain_pattern = _pattern(self._plain)

    def find(self, text: Folded | Squeezed | Disguised) -> Found | None:
        """Return the first of the words in a text, None where there is none."""
        if isinstance(text, Disguised):
            if text.is_plain and self._plain.keys() == self._words.keys():
                return None
            found = self._plain_pattern.search(text.text)
            return Found(self._plain[found.group()], text.place(found.start()), None) if found else None
        found = self._pattern.search(text.text)
        if found is None:
            return None
        key, ends_at = found.group(), None
        if isinstance(text, Folded):
            ends_at = text.place(found.end() - 1) if _HAN.fullmatch(key[-1]) else text.after(found.end())
        return Found(self._words[key], text.place(found.start()), ends_at)


def fold(text: str, *, ignore_case: bool) -> str:
    """Return a text in one way of writing: NFKC, nothing invisible, one space for several."""
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    if ignore_case:
        text = unicodedata.normalize("NFKC", text.casefold())
    return _SPACE.sub(" ", text)


def disguised(text: str) -> str:
    """Return a folded text with Latin letters for their look-alikes, and spaces for what joins words; of one length."""
    if not text.isascii() or _MAYBE.search(text):
        text = _MIXED.sub(lambda word: word.group().translate(_LOOK_ALIKES), text)
    return _JOINT.sub(" ", text) if _JOINER.search(text) else text


def read_lines(name: str, path: str) -> list[str]:
    """Return the lines of a UTF-8 file but empty ones and comments, which start with `#`; raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} {path!r} cannot be read: {error}") from error
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]


def _pattern(words: Iterable[str]) -> regex.Pattern[str]:
    """Return a pattern for any of the words; one for the empty string would match everywhere."""
    unspaced = [w for w in words if _HAS_UNSPACED.search(w)]
    spaced = [w for w in words if not _HAS_UNSPACED.search(w)]
    kinds: dict[str, Sequence[str]] = {_SPACED_WORDS: spaced, _UNSPACED_WORDS: unspaced}
    any_word = "|".join(pattern for pattern, some in kinds.items() if some)
    return regex.compile(f"(?V1){any_word}", spaced=spaced, unspaced=unspaced, ignore_unused=True)

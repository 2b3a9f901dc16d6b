"""`Words`: forbidden words are absent, required words are present; English and Chinese alike.

Words of an alphabet count only as whole words ("class" is not in "classic"). Words with characters of a
script that sets no spaces (Chinese, Japanese, Thai ...), or that joins particles to words (Korean), count
wherever they stand. Text and words are compared after Unicode NFKC, invisible characters removed, so that
full-width or broken-up spellings do not slip through.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path

import regex

from rsft_cluster.constraints.base import Candidate, Verdict
from rsft_cluster.errors import ConfigError

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--[{_UNSPACED}]]"
_INSIDE = rf"(?:(?<={_LETTER})(?={_LETTER}))"
_SPACED_WORDS = rf"(?!{_INSIDE})\L<spaced>(?!{_INSIDE})"
_UNSPACED_WORDS = r"\L<unspaced>"
_HAS_UNSPACED = regex.compile(rf"[{_UNSPACED}]")
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
_SPACE = regex.compile(r"\s+")


class Words:
    """Pass completions with none of the `forbidden` and all of the `required` words or phrases.

    The `_file` parameters name UTF-8 files, a word a line, `#` starting a comment line; they are read where
    the constraint is built, so every node must reach them.
    """

    def __init__(
        self,
        *,
        forbidden: Sequence[str] = (),
        required: Sequence[str] = (),
        forbidden_file: str | None = None,
        required_file: str | None = None,
        ignore_case: bool = True,
    ) -> None:
        self._ignore_case = ignore_case
        self._forbidden = self._fold_all("forbidden", [*forbidden, *_lines("forbidden_file", forbidden_file)])
        self._required = self._fold_all("required", [*required, *_lines("required_file", required_file)])
        if not self._forbidden and not self._required:
            raise ConfigError("words: give at least one word, forbidden or required")
        self._any_forbidden = _finder(self._forbidden) if self._forbidden else None
        self._each_required = {word: _finder([word]) for word in self._required}

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate; the reason names the word, and where it stands."""
        return [self._judge(candidate.completion) for candidate in candidates]

    def _judge(self, text: str) -> Verdict:
        folded = self._fold(text)
        if self._any_forbidden and (found := self._any_forbidden.search(folded)):
            word, place = self._forbidden[found.group()], self._position(text, found.start())
            return Verdict.of(False, f"forbidden word {word!r} at character {place}")
        for key, finder in self._each_required.items():
            if not finder.search(folded):
                return Verdict.of(False, f"required word {self._required[key]!r} is missing")
        return Verdict.of(True, "no forbidden word, no required word missing")

    def _fold(self, text: str) -> str:
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
        if self._ignore_case:
            text = unicodedata.normalize("NFKC", text.casefold())
        return _SPACE.sub(" ", text)

    def _fold_all(self, name: str, words: Sequence[str]) -> dict[str, str]:
        folded = {self._fold(word).strip(): word for word in words}
        if "" in folded:
            raise ConfigError(f"words: {name} holds {folded['']!r}, which is no word")
        return folded

    def _position(self, text: str, folded_position: int) -> int:
        """Return where a position of the folded text lies in the text itself."""
        lengths = range(len(text) + 1)
        return bisect_right(lengths, folded_position, key=lambda n: len(self._fold(text[:n]))) - 1


def _finder(words: Iterable[str]) -> regex.Pattern[str]:
    """Return a pattern for any of the words; one for the empty string would match everywhere."""
    unspaced = [w for w in words if _HAS_UNSPACED.search(w)]
    spaced = [w for w in words if not _HAS_UNSPACED.search(w)]
    kinds = {_SPACED_WORDS: spaced, _UNSPACED_WORDS: unspaced}
    any_word = "|".join(pattern for pattern, some in kinds.items() if some)
    return regex.compile(f"(?V1){any_word}", spaced=spaced, unspaced=unspaced, ignore_unused=True)


def _lines(name: str, path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"words: {name} {path!r} cannot be read: {error}") from error
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]

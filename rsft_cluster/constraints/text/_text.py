"""What several constraints share: a text's words, its prose without code and links, how a piece of it is shown."""

from collections.abc import Iterable, Sequence
from unicodedata import normalize

import regex

IDEOGRAPHS = r"\p{Han}\p{Hiragana}\p{Katakana}"
UNSPACED = rf"{IDEOGRAPHS}\p{{Hangul}}\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}"
"""Scripts that set no spaces between words, and Korean, which joins particles to them; inside of a regex set."""

_WORD = regex.compile(
    rf"(?V1)[{IDEOGRAPHS}]|[[\p{{L}}\p{{M}}\p{{N}}_]--[{IDEOGRAPHS}]]+(?:['’.,-]\p{{L}}+|[.,]\p{{N}}+)*"
)
_HAN = regex.compile(r"\p{Han}")
_CODE = regex.compile(r"(?s:```.*?(?:```|\Z))|`[^`\n]*+`")
_FORMULA = regex.compile(
    r"\$\$?[^$\n]{1,300}+\$\$?|\\\((?:[^\\\n]|\\(?![()])){1,300}+\\\)|\\\[(?:[^\\]|\\(?![\[\]])){1,300}+\\\]"
)
_COMMAND = regex.compile(r"\\(?:begin|end)\s?\{[A-Za-z]+\*?\}|\\[A-Za-z]+")
_NAME = regex.compile(r"(?<![A-Za-z])[A-Za-z]{1,3}(?![A-Za-z])")
_LINK = regex.compile(r"(?:https?://|www\.)[!-~]++", regex.IGNORECASE)

Word = regex.Match[str]


def words(text: str) -> list[Word]:
    """Return the words: runs of letters and digits; Chinese and Japanese, written without spaces, one a character."""
    return list(_WORD.finditer(text))


def folded_words(found: Sequence[Word]) -> list[str]:
    """Return the words as they are compared: without regard to case, and to forms of Unicode."""
    return [normalize("NFKC", word.group().casefold()) for word in found]


def run_numbers(units: Sequence[str], size: int) -> list[int]:
    """Return a number for each run of `size` units: the same one exactly for the same run.

    Runs of twice a length are pairs of runs, so it takes no longer for long ones (Karp, Miller and Rosenberg 1972).
    """
    numbers, length = _numbers(units), 1
    while length < size:
        step = min(length, size - length)
        numbers = _numbers(zip(numbers, numbers[step:], strict=False))
        length += step
    return numbers


def _numbers(units: Iterable[object]) -> list[int]:
    known: dict[object, int] = {}
    return [known.setdefault(unit, len(known)) for unit in units]


def ended_at(found: Sequence[Word], index: int) -> int:
    """Return the place of the character with which a word is there for good, whatever follows.

    That is a Chinese character itself; other words could go on until another one begins, or the text ends.
    """
    word = found[index]
    if _HAN.fullmatch(word.group()):
        return word.start()
    return found[index + 1].start() if index + 1 < len(found) else len(word.string)


def without_code(text: str) -> str:
    """Return the text without what stands in backquotes, one or three; three that never close go to the end."""
    return _CODE.sub(" ", text)


def without_latex(text: str) -> str:
    """Return the text without commands of LaTeX, and without the names of unknowns in formulas; words in them stay."""
    if "\\" not in text and "$" not in text:
        return text
    text = _FORMULA.sub(lambda formula: _NAME.sub(" ", _COMMAND.sub(" ", formula.group())), text)
    return _COMMAND.sub(" ", text)


def without_links(text: str) -> str:
    """Return the text without web addresses."""
    return _LINK.sub(" ", text)


def shown(text: str, *, limit: int = 60) -> str:
    """Return a piece of a text as a reason shows it: quoted, on one line, not long."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")

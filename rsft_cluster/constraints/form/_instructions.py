"""The 25 verifiable instructions of IFEval (Zhou et al. 2023, arXiv 2311.07911, table 1), under its ids and arguments.

Each is a function of a text that is not blank, and of arguments by keyword, to whether the text follows. They mean what
the paper's own checks mean, but for this: a word is what `length` counts, where a sentence ends says `_sentences`, and
a line of dashes is no bullet. Full-width letters and digits count as narrow ones. Relations are also "at most" and
"exactly".
"""

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal
from unicodedata import category, normalize
from unicodedata import name as name_of

import regex
from pydantic import Field, ValidationError, validate_call

from rsft_cluster.constraints.form._sentences import count_sentences
from rsft_cluster.constraints.text._languages import LANGUAGES, languages
from rsft_cluster.constraints.text._lexicon import Folded, Lexicon
from rsft_cluster.constraints.text._text import words

Check = Callable[[str], bool]
Count = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1)]
Relation = Literal["at least", "less than", "at most", "exactly"]

_RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "at least": operator.ge, "less than": operator.lt, "at most": operator.le, "exactly": operator.eq,
}  # fmt: skip
_PLACEHOLDER = regex.compile(r"\[[^\[\]\n]*+\]")
_BULLET = regex.compile(r"^[ \t]*+(?:\*(?!\*)|-(?!-))", regex.MULTILINE)
_HIGHLIGHT = regex.compile(r"\*\*([^\n*]*+)\*\*|\*([^\n*]*+)\*")
_TITLE = regex.compile(r"<<([^\n<>]*+)>>")
_FENCE = regex.compile(r"```(?:json)?|```", regex.IGNORECASE)
_QUOTES = str.maketrans(dict.fromkeys("“”„‟″＂", '"') | dict.fromkeys("‘’‚‛′＇", "'"))
_CLOSING_QUOTES = "\"'”’»›」』﹂﹄〞"
_QUOTED = frozenset(('""', "“”", "„“", "„”", "””", "«»", "»«", "‹›", "「」", "『』", "﹁﹂", "﹃﹄", "〝〞", "＂＂"))
_FULL_WIDTH = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if chr(code) not in "！，．：；？＂＇｛｝"}
)
"""Letters, digits and brackets; marks that end a sentence or a clause keep their Chinese form."""
_COMMAS = frozenset(c for c in map(chr, range(0x10000)) if category(c) == "Po" and name_of(c, "").endswith("COMMA"))
"""Of every script: the Arabic and the ideographic one, too."""
_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

_AS_GIVEN = ("detectable_format:json_format",)
"""Instructions to which full-width characters are others."""

CHECKS: dict[str, Callable[..., bool]] = {}
"""Instruction id -> check."""


class InstructionError(ValueError):
    """An instruction that is not known, or whose arguments do not fit."""


def bind_instruction(instruction: Mapping[str, Any]) -> tuple[str, Check]:
    """Return the id and the check of `{id, **arguments}`; arguments that are null count as not given.

    Raises InstructionError; arguments are tried on a text, so a check that is returned does not raise.
    """
    arguments = {name: _plain(value) for name, value in instruction.items() if value is not None and name != "id"}
    name = instruction.get("id")
    if name not in CHECKS:
        raise InstructionError(f"no instruction has the id {name!r}; there are {', '.join(CHECKS)}")
    check = CHECKS[name]

    def bound(text: str) -> bool:
        return check(text if name in _AS_GIVEN else _plain(text), **arguments)

    try:
        bound("x")
    except ValidationError as error:
        first = error.errors()[0]
        raise InstructionError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:
        raise InstructionError(f"{name}: {error}") from error
    return name, bound


def _instruction(name: str) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    def declare(check: Callable[..., bool]) -> Callable[..., bool]:
        CHECKS[name] = validate_call(check)
        return check

    return declare


@_instruction("keywords:existence")
def _keywords(text: str, *, keywords: Texts) -> bool:
    return all(_folded(keyword) in _folded(text) for keyword in keywords)


@_instruction("keywords:frequency")
def _keyword_frequency(text: str, *, keyword: Text, frequency: Count, relation: Relation) -> bool:
    return _RELATIONS[relation](_folded(text).count(_folded(keyword)), frequency)


@_instruction("keywords:forbidden_words")
def _forbidden_words(text: str, *, forbidden_words: Texts) -> bool:
    lexicon = Lexicon(forbidden_words, ignore_case=True, name="forbidden_words")
    return lexicon.find(Folded(text, ignore_case=True)) is None


@_instruction("keywords:letter_frequency")
def _letter_frequency(
    text: str,
    *,
    letter: Annotated[str, Field(min_length=1, max_length=1)],
    let_frequency: Count,
    let_relation: Relation,
) -> bool:
    return _RELATIONS[let_relation](text.lower().count(letter.lower()), let_frequency)


@_instruction("language:response_language")
def _response_language(text: str, *, language: str) -> bool:
    if language not in LANGUAGES:
        raise InstructionError(f"language {language!r} is not known; there are {', '.join(sorted(LANGUAGES))}")
    return _is_mostly(text, language)


@_instruction("length_constraints:number_sentences")
def _num_sentences(text: str, *, num_sentences: Count, relation: Relation) -> bool:
    return _RELATIONS[relation](count_sentences(text), num_sentences)


@_instruction("length_constraints:number_paragraphs")
def _num_paragraphs(text: str, *, num_paragraphs: Count) -> bool:
    return _parts(text.split("***")) == num_paragraphs


@_instruction("length_constraints:number_words")
def _num_words(text: str, *, num_words: Count, relation: Relation) -> bool:
    return _RELATIONS[relation](len(words(text)), num_words)


@_instruction("length_constraints:nth_paragraph_first_word")
def _first_word(
    text: str, *, num_paragraphs: Count, nth_paragraph: Annotated[int, Field(ge=1)], first_word: Text
) -> bool:
    paragraphs = [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]
    if len(paragraphs) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    wanted = [word.group().casefold() for word in words(first_word)]
    found = [word.group().casefold() for word in words(paragraphs[nth_paragraph - 1])]
    return found[: len(wanted)] == wanted


@_instruction("detectable_content:number_placeholders")
def _num_placeholders(text: str, *, num_placeholders: Count) -> bool:
    return len(_PLACEHOLDER.findall(text)) >= num_placeholders


@_instruction("detectable_content:postscript")
def _postscript(text: str, *, postscript_marker: Text = "P.S.") -> bool:
    return "".join(_folded(postscript_marker).split()) in "".join(_folded(text).split())


@_instruction("detectable_format:number_bullet_lists")
def _num_bullets(text: str, *, num_bullets: Count) -> bool:
    return len(_BULLET.findall(text)) == num_bullets


@_instruction("detectable_format:constrained_response")
def _constrained_response(text: str, *, options: Texts | None = None) -> bool:
    return any(option in text for option in options or _ANSWERS)


@_instruction("detectable_format:number_highlighted_sections")
def _num_highlights(text: str, *, num_highlights: Count) -> bool:
    return sum("".join(inner).strip() != "" for inner in _HIGHLIGHT.findall(text)) >= num_highlights


@_instruction("detectable_format:multiple_sections")
def _num_sections(text: str, *, section_spliter: Text, num_sections: Count) -> bool:
    return len(regex.findall(rf"{regex.escape(section_spliter.strip())}\s?\d", text)) >= num_sections


@_instruction("detectable_format:json_format")
def _json_format(text: str) -> bool:
    text = text.strip()
    if (opening := _FENCE.match(text)) and text.endswith("```"):
        text = text[opening.end() : -3]
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


@_instruction("detectable_format:title")
def _title(text: str) -> bool:
    return any(title.strip() for title in _TITLE.findall(text))


@_instruction("combination:two_responses")
def _two_responses(text: str) -> bool:
    responses = text.split("******")
    return _parts(responses) == 2 and len({response.strip() for response in responses if response.strip()}) == 2


@_instruction("combination:repeat_prompt")
def _repeat_prompt(text: str, *, prompt_to_repeat: Text) -> bool:
    return _folded(text).startswith(_folded(prompt_to_repeat))


@_instruction("startend:end_checker")
def _end(text: str, *, end_phrase: Text) -> bool:
    phrase = _folded(end_phrase)
    return any(_folded(end).endswith(phrase) for end in (text, text.strip().rstrip(_CLOSING_QUOTES)))


@_instruction("startend:quotation")
def _quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] + text[-1] in _QUOTED


@_instruction("change_case:capital_word_frequency")
def _capital_words(text: str, *, capital_frequency: Count, capital_relation: Relation) -> bool:
    return _RELATIONS[capital_relation](sum(word.group().isupper() for word in words(text)), capital_frequency)


@_instruction("change_case:english_capital")
def _english_capital(text: str) -> bool:
    return text.isupper() and _is_mostly(text, "en")


@_instruction("change_case:english_lowercase")
def _english_lowercase(text: str) -> bool:
    return text.islower() and _is_mostly(text, "en")


@_instruction("punctuation:no_comma")
def _no_comma(text: str) -> bool:
    return _COMMAS.isdisjoint(text)


def _plain(value: Any) -> Any:
    """Return texts with narrow letters, digits and brackets for full-width ones."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.translate(_FULL_WIDTH) if isinstance(value, str) else value


def _folded(text: str) -> str:
    """Return a text without regard to case, to spaces around it, to shapes of quotes, and to forms of Unicode."""
    return normalize("NFC", text.strip().translate(_QUOTES).casefold())


def _is_mostly(text: str, language: str) -> bool:
    """Return whether most words are of a language; a text without words is of any."""
    found = languages(text, expected=[language])
    return not found or found.most_common(1)[0][0] == language


def _parts(parts: Sequence[str]) -> int:
    """Return the number of parts, empty ones at the ends left out; 0 where another one is empty."""
    inner = [part.strip() for part in parts]
    inner = inner[not inner[0] : len(inner) - (not inner[-1])]
    return len(inner) if all(inner) else 0

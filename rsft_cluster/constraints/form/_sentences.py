"""How many sentences a text has.

A sentence ends with `.!?` before a space, or with 。！？. A full stop after an abbreviation, an initial or a list's
number ends none, unless what follows begins a sentence: "in the U.S. He" but "the U.S. Army", "Plan A. Plan B." but
"George W. Bush", "at 3 p.m. They" but "at 3 p.m. today".
"""

import regex

_END = regex.compile(r"[.!?]++[\"'”’»)\]]*+(?=\s|$)|[。！？]++", regex.MULTILINE)
_LETTER = regex.compile(r"[\p{L}\p{N}]")
_BEFORE = regex.compile(r"(?:(?P<previous>[\p{L}\p{M}'’-]+\.?)[ \t]+)?(?P<word>(?:\p{L}+\.)*[\p{L}\p{M}]+)\Z")
_LIST_NUMBER = regex.compile(r"(?:\A|\n)[ \t]*(?:\d{1,3}|\p{L})\Z")
_NEXT = regex.compile(r"\s+[\"'“‘«(\[]*(?P<word>[\p{L}\p{N}'’]+)")
_WINDOW = 60

_BEFORE_NAME = frozenset({
    "mr", "mrs", "ms", "mx", "messrs", "dr", "prof", "st", "gen", "col", "capt", "cpt", "lt", "sgt", "maj", "cmdr",
    "adm", "rev", "fr", "hon", "gov", "sen", "rep", "pres", "mt", "ft", "vs", "e.g", "i.e", "cf", "viz", "approx",
    "ca",
})  # fmt: skip
"""Never the last word of a sentence."""
_BEFORE_NUMBER = frozenset({
    "no", "nos", "fig", "figs", "eq", "sec", "vol", "vols", "ch", "p", "pp", "art", "jan", "feb", "mar", "apr",
    "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec",
})  # fmt: skip
_ABBREVIATIONS = frozenset({
    "al", "inc", "ltd", "co", "corp", "jr", "sr", "bros", "dept", "est",
})  # fmt: skip
"""The last word of a sentence where a capital follows, as p.m. and Ph.D. are."""
_TIMES = frozenset({
    "a.m", "p.m", "b.c", "a.d", "b.c.e", "c.e", "ph.d", "m.d", "b.a", "m.a", "b.sc", "m.sc", "etc",
})  # fmt: skip
_OPENERS = frozenset({
    "a", "an", "the", "this", "that", "these", "those", "it", "its", "he", "she", "they", "we", "you", "i", "his",
    "her", "their", "our", "your", "my", "there", "here", "what", "who", "when", "where", "why", "how", "which",
    "in", "on", "at", "by", "for", "from", "with", "to", "of", "as", "if", "then", "so", "but", "and", "or", "yet",
    "also", "however", "therefore", "thus", "hence", "moreover", "finally", "first", "second", "next", "after",
    "before", "while", "although", "because", "since", "once", "now", "today", "yes", "no", "not", "all", "some",
    "many", "most", "each", "every", "both", "either", "neither", "let", "is", "are", "was", "were", "do", "does",
    "did", "can", "could", "will", "would", "may", "please", "thank", "thanks", "another", "other", "one", "two",
    "three",
})  # fmt: skip
"""Words that begin a sentence rather than a name."""
_LABELS = frozenset({
    "plan", "option", "part", "vitamin", "group", "section", "appendix", "type", "class", "grade", "team",
    "exhibit", "figure", "table", "step", "answer", "choice", "point", "room", "column", "row", "hepatitis",
    "model", "version", "case", "level", "block", "item", "phase", "stage", "series", "hall", "gate", "line",
    "unit", "zone", "area", "schedule", "form", "question", "variant", "sample", "set",
})  # fmt: skip
"""Words that a single letter after them completes."""
_JOINING = frozenset({
    "by", "and", "from", "with", "of", "to", "named",
})  # fmt: skip


def count_sentences(text: str) -> int:
    """Return the number of sentences that hold a letter or a digit."""
    num, start = 0, 0
    for end in _END.finditer(text):
        if _ends(text, start, end):
            num += _LETTER.search(text, start, end.end()) is not None
            start = end.end()
    return num + (_LETTER.search(text, start) is not None)


def _ends(text: str, start: int, mark: regex.Match[str]) -> bool:
    if mark.group().rstrip("\"'”’»)]") != ".":
        return True
    begin = max(start, mark.start() - _WINDOW)
    sentence = text[begin : mark.start()]
    if _LIST_NUMBER.search(sentence):
        return False
    before, following = _BEFORE.search(sentence), _NEXT.match(text, mark.end())
    if before is None or following is None:
        return True
    return _ends_between(before["word"], before["previous"] or "", following["word"])


def _ends_between(word: str, previous: str, following: str) -> bool:
    """Return whether a full stop between two words ends a sentence; `previous` is the word before the first one."""
    low, capital = word.casefold(), following[0].isupper()
    opens = capital and following.casefold() in _OPENERS
    if low in _BEFORE_NAME:
        return False
    if low in _BEFORE_NUMBER and following[0].isdigit():
        return False
    if low in _ABBREVIATIONS or low in _TIMES:
        return capital
    if "." in word:
        return opens
    if len(word) == 1 and word.isupper():
        return not _is_initial(previous, following, opens=opens)
    return True


def _is_initial(previous: str, following: str, *, opens: bool) -> bool:
    """Return whether a single capital stands for a name, or else closes its sentence."""
    low = previous.rstrip(".").casefold()
    if low in _BEFORE_NAME:
        return True
    if opens or not following[0].isupper():
        return False
    if not previous or low in _JOINING or (previous.endswith(".") and len(low) == 1):
        return True
    return previous[0].isupper() and low not in _LABELS and low != following.casefold()

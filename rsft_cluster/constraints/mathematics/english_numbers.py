"""English numerals in an answer, written in digits: twenty-five -> 25, negative seven -> -7, three quarters -> 3/4."""

import regex

_ONES = {
    word: value
    for value, word in enumerate((
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
        "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    ))
}  # fmt: skip
_TENS = {
    word: 10 * value
    for value, word in enumerate(("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"), 2)
}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10,
}  # fmt: skip
_WORD = "|".join([*_ONES, *_TENS, *_SCALES, "hundred"])
_NUMERAL = regex.compile(
    rf"(?<![\w.-])(?P<minus>(?:negative|minus)\s+)?(?P<first>{_WORD})(?:(?:[\s-]+|\s+and\s+)(?P<more>{_WORD})){{0,12}}+"
    rf"(?:[\s-]+(?P<part>(?:{'|'.join(_PARTS)})s?))?(?![\w-])",
    regex.IGNORECASE,
)
_ANY = regex.compile(rf"\b(?:{_WORD})\b", regex.IGNORECASE)


def english_in_digits(text: str) -> str:
    """Return the text with every English numeral written in digits; one that is not well formed stays."""
    return _NUMERAL.sub(_written, text) if _ANY.search(text) else text


def _written(found: regex.Match[str]) -> str:
    words = [found["first"], *found.captures("more")]
    value = _value([word.casefold() for word in words])
    if value is None:
        return found.group()
    sign = "-" if found["minus"] else ""
    part = found["part"]
    if part is None:
        return f"{sign}{value}"
    return f"{sign}{value}/{_PARTS.get(part.casefold()) or _PARTS[part.casefold().removesuffix('s')]}"


def _value(words: list[str]) -> int | None:
    """Return the value of a numeral; None where its words are in no order that counts."""
    total = group = 0
    last, last_scale = 10**3, 10**12
    for word in words:
        if word in _SCALES:
            if not group or _SCALES[word] >= last_scale:
                return None
            total, group, last, last_scale = total + group * _SCALES[word], 0, 10**3, _SCALES[word]
        elif word == "hundred":
            if not 0 < group < 10:
                return None
            group, last = group * 100, 100
        else:
            value = _ONES.get(word, _TENS.get(word, 0))
            size = 10 if word in _TENS else 1
            if last <= size or (last == 10 and value > 9):
                return None
            group, last = group + value, size
    return total + group

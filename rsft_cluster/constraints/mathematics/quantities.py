r"""A quantity: one number among nothing but words, with its unit, as an answer gives it in text or LaTeX.

`5`, `$5.00`, `1,000 apples`, `about 72`, `x = 5`, `48 + 24 = 72`, `5\text{ cm}^2`, `90°`, `三百二十元` are
quantities. What holds anything mathematical beside the number (`2\sqrt{3}`, `3x`, `not 5`, `5 or 6`) is none: it is
left to algebra.
"""

from dataclasses import dataclass

import regex

from rsft_cluster.constraints.answers.answers import EDGES, Number, after_equals, plain, single_number
from rsft_cluster.constraints.mathematics.chinese_numbers import in_digits

_UNITS = {
    "mm": "mm millimeter millimetre 毫米", "cm": "cm centimeter centimetre 厘米", "dm": "dm decimeter decimetre 分米",
    "m": "m meter metre 米", "km": "km kilometer kilometre 千米 公里", "ft": "ft foot feet", "in": "inch inche",
    "yd": "yd yard", "mi": "mi mile", "mg": "mg milligram 毫克", "g": "g gram 克", "kg": "kg kilogram 千克 公斤",
    "t": "ton tonne 吨", "lb": "lb pound", "oz": "oz ounce", "ml": "ml milliliter millilitre 毫升",
    "l": "l liter litre 升", "s": "s sec second 秒", "min": "min minute 分钟", "h": "h hr hour 小时", "d": "day 天",
    "week": "week 周 星期", "month": "month 月", "year": "yr year 年", "degree": "degree deg ° 度", "rad": "radian rad",
    "cent": "cent ¢", "dollar": "dollar usd 美元", "yuan": "yuan rmb 元", "euro": "euro", "celsius": "°c celsius",
    "fahrenheit": "°f fahrenheit", "km/h": "km/h kmph", "m/s": "m/s", "mph": "mph",
}  # fmt: skip
_KNOWN = {word: unit for unit, words in _UNITS.items() for word in words.split()}

_LATEX_SPACE = regex.compile(r"\\,(?!\d{3})|\\[;:!]|\\ |~|\\q?quad\b|\\(?:left|right|displaystyle)\b|\\[()\[\]]")
_DEGREE = regex.compile(r"\s*(?:\^\s*(?:\\circ\b|\{\s*\\circ\s*\})|\\degree\b)")
_LETTER = regex.compile("[a-z]", regex.IGNORECASE)
_POWER = regex.compile(r"\^\s*\{\s*([23])\s*\}")
_NAME = regex.compile(r"(?:[a-zA-Z]\w*|\\[a-z]+)\s*(?:_\s*(?:\w|\{[^{}]*\}))?\s*(?:\([^()]*\))?'*")
_VARIABLE = regex.compile(r"[a-zA-Z]")
_ARITHMETIC = regex.compile(r"[^\p{L}=]*")
_WORD = r"(?:\p{Han}++|\p{L}[\p{L}'’]++(?:-\p{L}++)*+|\b[aAI]\b(?=\s))"
_SENTENCE = regex.compile(rf"(?:{_WORD}[\s,:]*+)++[a-zA-Z]?\s*+")
_WORDS = regex.compile(rf"(?:\s*+(?:{_WORD}|[.,:;!?*\"'“”‘’`、。$]))*+\s*+")
_UNIT = regex.compile(
    r"""(?P<unit>
        \s*+ (?:(?:square|sq|cubic)\.?\s+|平方|立方)?
        (?: km/h | m/s | °[cf]?(?!\w) | ¢ | \p{Han}{1,2}+ | \p{Latin}{3,}+ )
      | \s*+ (?: [mcdk]m | [mk]g | ml | lb | ft | in | oz | yd | mi | hr ) \b
      | \s++ [mgslht] \b
    )? \.? (?:\^(?P<power>[23]))? (?P<rest>.*+)""",
    regex.DOTALL | regex.IGNORECASE | regex.VERBOSE,
)
_MATHEMATICAL = regex.compile(
    r"\b(?:pi|sqrt|sin|cos|tan|cot|sec|csc|log|ln|lg|exp|inf|infinity|no|not|never|without|minus|negative|plus|times|over|"
    r"and|or|to|than|least|most|between|squared|cubed|root|factorial|if|unless|except|versus|per(?=cent)|"
    r"dozen|hundred|thousand|million|billion|half|third|quarter|modulo|mod)\b"
    r"|[不非或和与至到半百千万亿十]|小于|大于|至少|至多|超过|不足",
    regex.IGNORECASE,
)


@dataclass(frozen=True)
class Quantity:
    """A number, and what it is the number of, as far as that is known."""

    number: Number
    unit: str | None = None
    """Of the known physical units and currencies; None for any other, and for none."""
    name: str | None = None
    """The x of x = 5."""

    def agrees(self, other: "Quantity") -> bool:
        """Return whether units and names are the same, or one side leaves them out."""
        pairs = ((self.unit, other.unit), (self.name, other.name))
        return all(mine == theirs for mine, theirs in pairs if mine and theirs)


def read_quantity(answer: str) -> Quantity | None:
    """Return the quantity that an answer (as `unified`) is, or None."""
    text = _POWER.sub(r"^\1", _DEGREE.sub("°", _LATEX_SPACE.sub(" ", answer)))
    text = plain(in_digits(text)).strip(EDGES)
    left, equals, _ = text.rpartition("=")
    left, side = left.rsplit("=", 1)[-1].strip(EDGES), after_equals(text)
    if equals and not any(defining.fullmatch(left) for defining in (_NAME, _ARITHMETIC, _SENTENCE)):
        return None
    number = single_number(side)
    if number is None or number.text not in side:
        return None
    before, _, after = side.partition(number.text)
    unit = _UNIT.fullmatch(after)
    assert unit is not None, "all groups of it are optional, and the rest takes everything"
    symbol = _symbol(unit["unit"] or "", unit["power"])
    if after.startswith("!") or (symbol is None and (unit["power"] or _LETTER.match(after))):
        return None
    words = after if symbol is None else unit["rest"]
    if not all(_WORDS.fullmatch(part) and not _MATHEMATICAL.search(part) for part in (before, words)):
        return None
    return Quantity(number, symbol, left if equals and _VARIABLE.fullmatch(left) else None)


def _symbol(unit: str, power: str | None) -> str | None:
    """Return the symbol of a known unit, None of any other."""
    word = unit.casefold().strip(" .")
    for prefix, named in (("square", "2"), ("sq", "2"), ("平方", "2"), ("cubic", "3"), ("立方", "3")):
        if word.startswith(prefix):
            return _symbol(word.removeprefix(prefix), named)
    symbol = _KNOWN.get(word) or _KNOWN.get(word.removesuffix("s"))
    return f"{symbol}^{power}" if symbol and power else symbol

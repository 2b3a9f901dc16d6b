r"""A quantity: one number among nothing but words, with its unit, as an answer gives it in text or LaTeX.

`5`, `$5.00`, `1,000 apples`, `about 72`, `x = 5`, `48 + 24 = 72`, `5\text{ cm}^2`, `90°`, `三百二十元` are
quantities. What holds anything mathematical beside the number (`2\sqrt{3}`, `3x`, `not 5`, `5 or 6`) is none: it is
left to algebra.
"""

from dataclasses import dataclass

import regex

from rsft_cluster.constraints.answers.answers import EDGES, Number, after_equals, plain, single_number
from rsft_cluster.constraints.answers.arithmetic import is_false
from rsft_cluster.constraints.answers.qualifiers import qualified
from rsft_cluster.constraints.mathematics.chinese_numbers import in_digits
from rsft_cluster.constraints.mathematics.english_numbers import english_in_digits
from rsft_cluster.constraints.mathematics.typesetting import modulus as modulus_of

_UNITS = {
    "mm": "mm millimeter millimetre 毫米", "cm": "cm centimeter centimetre 厘米", "dm": "dm decimeter decimetre 分米",
    "m": "m meter metre 米", "km": "km kilometer kilometre 千米 公里", "ft": "ft foot feet", "in": "inch inche",
    "yd": "yd yard", "mi": "mi mile", "mg": "mg milligram 毫克", "g": "g gram 克", "kg": "kg kilogram 千克 公斤",
    "t": "ton tonne 吨", "lb": "lb pound", "oz": "oz ounce", "ml": "ml milliliter millilitre 毫升",
    "l": "l liter litre 升", "s": "s sec second 秒", "min": "min minute 分钟", "h": "h hr hour 小时", "d": "day 天",
    "week": "week 周 星期", "month": "month 月", "year": "yr year 年", "degree": "degree deg ° 度", "rad": "radian rad",
    "cent": "cent ¢", "dollar": "dollar usd 美元 $", "yuan": "yuan rmb 元 ¥", "euro": "euro €", "pound sterling": "£",
    "newton": "N newton", "joule": "J joule", "kilojoule": "kJ kilojoule", "pascal": "Pa pascal",
    "kilopascal": "kPa kilopascal", "watt": "W watt", "kilowatt": "kW kilowatt", "volt": "V volt",
    "ampere": "ampere amp", "hertz": "Hz hertz", "kelvin": "K kelvin", "coulomb": "coulomb", "ohm": "ohm Ω",
    "mole": "mol mole",
    "calorie": "cal calorie", "kilocalorie": "kcal kilocalorie", "bit": "bit", "byte": "byte", "electronvolt": "eV",
    "celsius": "°c celsius",
    "fahrenheit": "°f fahrenheit", "km/h": "km/h kmph", "m/s": "m/s", "mph": "mph",
}  # fmt: skip
_KNOWN = {word.casefold(): unit for unit, words in _UNITS.items() for word in words.split()}
_NO_UNITS = frozenset((
    "total", "left", "more", "altogether", "all", "remaining", "remain", "each", "exactly", "only", "overall",
    "combined", "together", "ways", "way", "units", "unit", "here", "now", "then", "respectively", "extra", "too", "so",
    "approximately", "about", "roughly", "times", "in", "for", "of", "the", "is", "which", "because", "since",
))  # fmt: skip
"""Words after a number that are no name of what is counted."""

_LATEX_SPACE = regex.compile(r"\\,(?!\d{3})|\\[;:!]|\\ |~|\\q?quad\b|\\(?:left|right|displaystyle)\b|\\[()\[\]]")
_DEGREE = regex.compile(r"\s*(?:\^\s*(?:\\circ\b|\{\s*\\circ\s*\})|\\degree\b)")
_LETTER = regex.compile("[a-z]", regex.IGNORECASE)
_POWER = regex.compile(r"\^\s*\{\s*([23])\s*\}")
_NAME = regex.compile(r"(?:[a-zA-Z]\w*|\\[a-z]+)\s*(?:_\s*(?:\w|\{[^{}]*\}))?\s*(?:\([^()]*\))?'*")
_UNKNOWN = regex.compile(r"(?:[a-zA-Z]|\\[a-z]+)(?:_\w+)?(?:\([^()]*\))?'*")
_NAME_MARKS = regex.compile(r"[\s{}]")
_COUNTED = regex.compile(r"\p{Latin}{2,}")
_DIGIT = regex.compile(r"\d")
_ARITHMETIC = regex.compile(r"[^\p{L}=]*")
_WORD = r"(?:\p{Han}++|\p{L}[\p{L}'’]++(?:-\p{L}++)*+|\b[aAI]\b(?=\s))"
_SENTENCE = regex.compile(rf"(?:{_WORD}[\s,:]*+)++[a-zA-Z]?\s*+")
_WORDS = regex.compile(rf"(?:\s*+(?:{_WORD}|[.,:;!?*\"'“”‘’`、。$]))*+\s*+")
_UNIT = regex.compile(
    r"""(?P<unit>
        \s*+ (?:(?:square|sq|cubic)\.?\s+|平方|立方)?
        (?: km/h | m/s | °[cf]?(?!\w) | [¢$€£¥Ω] | \p{Han}{1,2}+ | \p{Latin}{3,}+ )
      | \s*+ (?: [mcdk]m | [mk]g | ml | lb | ft | in | oz | yd | mi | hr | (?-i:k?Pa|[kM]?Hz|k[JW]|eV) ) \b
      | \s*+ m (?=\^[23]\b) | \s++ (?: [mgslht] | (?-i:[NJWVK]) ) \b
    )? \.? (?:\^(?P<power>[23]))? (?P<rest>.*+)""",
    regex.DOTALL | regex.IGNORECASE | regex.VERBOSE,
)
_MATHEMATICAL = regex.compile(
    r"\b(?:pi|sqrt|sin|cos|tan|cot|sec|csc|log|ln|lg|exp|inf|infinity|no|not|never|without|minus|negative|plus|times|over|"
    r"and|or|to|than|least|most|between|squared|cubed|root|factorial|if|unless|except|versus|per(?=cent)|"
    r"dozen|hundred|thousand|million|billion|half|third|quarter|modulo|mod)\b"
    r"|n['’]t\b|[不非或和与至到半百千万亿十减]|小于|大于|至少|至多|超过|不足",
    regex.IGNORECASE,
)


@dataclass(frozen=True)
class Quantity:
    """A number, and what it is the number of, as far as that is known."""

    number: Number
    unit: str | None = None
    """Of the known physical units and currencies; None for any other, and for none."""
    name: str | None = None
    """The x of x = 5, the a_1 of a_1 = 5; None for words."""
    counted: str | None = None
    """The word for what is counted, where it is one that is no known unit; the modulus of 7 mod 10."""

    def agrees(self, other: "Quantity") -> bool:
        """Return whether units and names are the same, or one side leaves them out."""
        mine, theirs = self.unit or self.counted, other.unit or other.counted
        pairs = ((mine, theirs), (self.name, other.name))
        return all(mine == theirs for mine, theirs in pairs if mine and theirs)


def read_quantity(answer: str) -> Quantity | None:
    """Return the quantity that an answer (as `unified`) is, or None."""
    answer, modulus = modulus_of(answer)
    text = in_digits(_POWER.sub(r"^\1", _DEGREE.sub("°", _LATEX_SPACE.sub(" ", answer))))
    text = plain(text if _DIGIT.search(text) else english_in_digits(text)).strip(EDGES)
    left, equals, _ = text.rpartition("=")
    left, side = left.rsplit("=", 1)[-1].strip(EDGES), after_equals(text)
    if equals and not any(defining.fullmatch(left) for defining in (_NAME, _ARITHMETIC, _SENTENCE)):
        return None
    number = single_number(side)
    if number is None or is_false(text) or number.text not in side:
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
    if qualified(text[: len(text) - len(side)] + before, after):
        return None
    counted = f"mod {modulus}" if modulus else None if symbol else _counted(words)
    return Quantity(number, symbol, _name(left) if equals else None, counted)


def changes(words: str) -> bool:
    """Return whether words after a value make it another one: squared, or more, 以上."""
    return _MATHEMATICAL.search(words) is not None or qualified("", words) is not None


def _name(left: str) -> str | None:
    """Return the unknown on the left of an equation in one way of writing; None for words and arithmetic."""
    name = _NAME_MARKS.sub("", left)
    return name if _UNKNOWN.fullmatch(name) else None


def _counted(words: str) -> str | None:
    """Return what is counted, where that is a single word."""
    word = words.strip(" \t\n.,:;!?*\"'“”‘’`、。$").casefold()
    if not _COUNTED.fullmatch(word) or word in _NO_UNITS or word.endswith("ly"):
        return None
    return word.removesuffix("s") if not word.endswith("ss") else word


def _symbol(unit: str, power: str | None) -> str | None:
    """Return the symbol of a known unit, None of any other."""
    word = unit.casefold().strip(" .")
    for prefix, named in (("square", "2"), ("sq", "2"), ("平方", "2"), ("cubic", "3"), ("立方", "3")):
        if word.startswith(prefix):
            return _symbol(word.removeprefix(prefix), named)
    symbol = _KNOWN.get(word) or _KNOWN.get(word.removesuffix("s"))
    return f"{symbol}^{power}" if symbol and power else symbol

"""Shapes of phone numbers, by region, and what around them says that a number is none."""

from typing import Literal

import regex

Region = Literal["us", "cn", "jp", "kr", "gb", "fr"]

_NORTH_AMERICAN = (
    r"(?:1[ .-]?)?(?:\([2-9][0-9]{2}\)[ .-]?|[2-9][0-9]{2}[.-])[2-9][0-9]{2}[ .-][0-9]{4}"
    r"|(?:1[ .-])?[2-9][0-9]{2}[ ][2-9][0-9]{2}[.-][0-9]{4}"
    r"|(?<=(?:phone|tel|telephone|cell|mobile|fax|call|ring|text|dial|whatsapp|reach|number|contact|at)(?:\s(?:me|us|is|at|on|number))*+[:.]?\s?)"
    r"(?:1[ .-])?[2-9][0-9]{2}[ ][2-9][0-9]{2}[ ][0-9]{4}"
)
_SHAPES: dict[Region, str] = {
    "us": _NORTH_AMERICAN,
    "cn": r"(?:86[ -]?)?1[3-9][0-9](?:[ -]?[0-9]{4}){2}"
    r"|(?:\(0(?:10|2[0-9]|[3-9][0-9]{2})\)[ -]?|0(?:10|2[0-9]|[3-9][0-9]{2})[ -])[1-9][0-9]{2,3}[ -]?[0-9]{4}",
    "jp": r"0[5789]0[- ][0-9]{4}[- ][0-9]{4}|0[1-9][0-9]{0,2}-[0-9]{2,4}-[0-9]{4}"
    r"|0120-[0-9]{3}-[0-9]{3}|0[789]0[1-9][0-9]{7}",
    "kr": r"01[016789][- ][0-9]{3,4}[- ][0-9]{4}|0(?:2|[3-6][0-9])-[0-9]{3,4}-[0-9]{4}",
    "gb": r"07[0-9]{3}[ -]?[0-9]{3}[ -]?[0-9]{3}|0[12][0-9]{1,2}[ -][0-9]{3,4}[ -][0-9]{4}|01[0-9]{3}[ -][0-9]{6}",
    "fr": r"0[1-9](?:[ .-][0-9]{2}){4}",
}  # fmt: skip
REGIONS: tuple[Region, ...] = tuple(_SHAPES)
_INTERNATIONAL = r"(?<![0-9)=*/<>][ ]{0,2}|(?<![A-Za-z])[A-Za-z][ ]{0,2})\+[1-9](?:[ ().-]{0,2}[0-9]){7,14}"
_UNIT = (
    r"(?:[KMGT]?i?B|bits?|bytes?|words?|tokens?|items?|rows?|lines?|records?|users?|people|persons?|times|steps?|copies|"
    r"samples|units?|points?|pixels?|votes|views|[kmcn]?m|km2|kg|g|mg|s|ms|ns|sec(?:ond)?s?|minutes?|hours?|days?|years?|"
    r"meters?|metres?|miles|dollars?|usd|euros?|yuan|rmb|cents?|percent|million|billion|mod)\b|[元个人次字米克吨秒年万亿件条名只台]"
)
_NO_MORE = rf"(?![0-9A-Za-z]|[-.,/][0-9])(?!\s?(?:[=*×÷%^<>≤≥]|[+/]\s?[0-9]|-\s[0-9]|{_UNIT}))"
_NOTHING_BEFORE = r"(?<![0-9A-Za-z+_])(?<![0-9][-.,/]|[=*×÷^<>$¥€£]\s?|[-+/]\s|[0-9)]\s?[-+/]\s?)"


def pattern(regions: tuple[Region, ...]) -> regex.Pattern[str]:
    """Return a pattern for international numbers, and those that regions write without a code.

    A number that goes on, that is added, multiplied or compared, or that counts something is no phone number.
    """
    own = "|".join(f"(?:{_SHAPES[region]})" for region in regions)
    kinds = [_INTERNATIONAL, *([f"{_NOTHING_BEFORE}(?:{own})"] if own else ())]
    return regex.compile(rf"(?:{'|'.join(kinds)}){_NO_MORE}", regex.IGNORECASE)

"""Chinese numerals in an answer, written in digits: 三百二十 -> 320, 百分之五十 -> 50%, 三分之二 -> 2/3.

Only numerals that stand as a quantity are read: at the end of the answer, before punctuation or before a measure word
(三百二十元, 五个苹果). The 一 of 一共 and of 唯一, the 三 of 三角形 and of 第三 stay as they are.
"""

import regex

_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_MYRIADS = {"万": 10**4, "亿": 10**8}
_CHARACTERS = "零〇一二两三四五六七八九十百千万亿"
_LONGEST = 40
"""Characters of a numeral; longer runs are no numbers, and reading them would take quadratic time."""

_MEASURES = (
    "平方|立方|千米|千克|公里|公斤|公顷|厘米|毫米|分米|毫升|小时|分钟|星期|美元|元|块|个|只|条|张|本|支|枝|头|辆|"
    "名|位|人|岁|天|日|周|年|月|次|倍|度|米|克|吨|升|斤|里|秒|分|件|份|颗|棵|朵|双|对|箱|袋|瓶|杯|盒|页|种|组|排|层|票"
)
_BELOW_MYRIAD = regex.compile(
    r"""(?P<zero>[零〇])? (?:(?P<thousands>{d})千)? (?P<zero>[零〇])? (?:(?P<hundreds>{d})百)? (?P<zero>[零〇])?
        (?:(?P<tens>{d}?)十)? (?P<ones>{d})?""".replace("{d}", "[一二两三四五六七八九]"),
    regex.VERBOSE,
)
_WHOLE = rf"[{_CHARACTERS}]{{1,{_LONGEST}}}+(?:点[零〇一二三四五六七八九]{{1,{_LONGEST}}}+)?"
_NUMERAL = regex.compile(
    rf"""
    (?<! [第唯统单同另其{_CHARACTERS}] )
    (?P<minus>负)?
    (?: (?P<percent>百分之) (?: (?P<share>{_WHOLE}) | (?=[0-9]) )
      | (?: (?P<units>{_WHOLE}) 又 )? (?P<below>{_WHOLE}) 分之 (?P<above>{_WHOLE})
      | (?P<whole>{_WHOLE}) )
    (?P<arabic> (?<=百分之) [0-9]{{1,{_LONGEST}}}+ (?:\.[0-9]{{1,{_LONGEST}}}+)? )?
    (?= \s* (?: $ | [^\w\s] | {_MEASURES} ) )
    """,
    regex.VERBOSE,
)


def in_digits(text: str) -> str:
    """Return the text with every Chinese numeral that stands as a quantity written in digits."""
    return _NUMERAL.sub(_written, text)


def _written(found: regex.Match[str]) -> str:
    sign = "-" if found["minus"] else ""
    parts = [found[name] for name in ("percent", "share", "units", "below", "above", "whole")]
    percent, share, units, below, above, whole = parts
    if percent:
        value = found["arabic"] or (
            _decimal(share.replace("百", "一百") if share == "百" else share) if share else None
        )
        return found.group() if value is None else f"{sign}{value}%"
    if below:
        over, under = _decimal(above), _decimal(below)
        mixed = f"{_decimal(units)} " if units else ""
        return found.group() if over is None or under is None or "None" in mixed else f"{sign}{mixed}{over}/{under}"
    value = _decimal(whole)
    return found.group() if value is None else f"{sign}{value}"


def _decimal(numeral: str) -> str | None:
    """Return a numeral with its decimals in digits, None where it is not well formed."""
    whole, _, decimals = numeral.partition("点")
    value = _whole(whole)
    if value is None:
        return None
    return f"{value}.{''.join(str(_DIGITS[c]) for c in decimals)}" if decimals else str(value)


def _whole(numeral: str) -> int | None:
    """Return the value of a whole numeral: digit by digit (二〇二四), or with its tens and myriads."""
    if all(c in _DIGITS for c in numeral):
        return int("".join(str(_DIGITS[c]) for c in numeral))
    for sign in ("亿", "万"):
        high, found, low = numeral.rpartition(sign)
        if found:
            above = _whole(high) if high else None
            below = _below_myriad(low, _MYRIADS[sign] // 10) if "万" not in low else _whole(low)
            return None if above is None or below is None else above * _MYRIADS[sign] + below
    return _below_myriad(numeral, 1)


def _below_myriad(numeral: str, lone: int) -> int | None:
    """Return a value up to 9999; `lone` is what a digit alone counts (the 二 of 一万二 is two thousand)."""
    found = _BELOW_MYRIAD.fullmatch(numeral)
    if found is None:
        return None
    ones = _DIGITS[found["ones"]] if found["ones"] else 0
    if len(numeral) == 1 and found["ones"]:
        return ones * lone
    tens = 1 if found["tens"] == "" else _DIGITS[found["tens"] or "零"]
    above = 1000 * _DIGITS[found["thousands"] or "零"] + 100 * _DIGITS[found["hundreds"] or "零"]
    # "Three hundred two" is short for 320 in Chinese; a zero before the two would say that it is 302.
    short_of = 1 if found["zero"] or found["tens"] is not None else 10 if found["hundreds"] else 100
    return above + 10 * tens + ones * short_of

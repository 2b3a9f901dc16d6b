"""Words around a number that make it another one, a bound, or none: not 7, more than 7, half of 7, 7 or more."""

import regex

_DENIAL = (
    r"\b(?:not|never|neither|nor|cannot|without|except|excluding|unless|instead\sof|rather\sthan|other\sthan|unlike|"
    r"(?:different|far)\sfrom|(?:any(?:thing|\s\w+)?|every(?:thing|\s\w+)?|all|nothing|none)\s(?:\w+\s)?but|wrong|incorrect|"
    r"false|impossible|unequal)\b|n['’]t\b|不是|并非|绝非|不等于|不为|不会是|不可能|没有|除了?(?!以)|≠|!=|\\neq?\b|\\not\b"
)
"""Anywhere before the number."""
_BOUND = (
    r"\b(?:(?:more|less|fewer|greater|larger|smaller|higher|lower|bigger|older|longer|shorter|further|better)\sthan|"
    r"no\s(?:more|less|fewer)|at\s(?:least|most|minimum|maximum)|up\sto|over|under|above|below|beyond|beneath|exceed(?:s|ing)?|"
    r"surpass(?:es|ing)?|between|from|almost|nearly|near|just\s(?:over|under|above|below|short\sof|shy\sof)|close\sto|"
    r"short\sof|shy\sof|hardly|within|until|before|after|a\s(?:minimum|maximum)\sof|upwards?\sof|no|"
    r"approaching|approaches|tends\sto|anywhere|lower|upper)\s*$"
    r"|(?:[<>≤≥]|\\(?:leq?|geq?|lt|gt)(?:slant)?\b)\s*$"
    r"|(?:不到|不足|不满|不超过|不少于|不多于|不大于|不小于|未到|未满|超过|大于|小于|多于|少于|高于|低于|至少|至多|最多|最少|起码|不止|"
    r"接近|将近|几乎|近|差点|差一点)\s*(?:是|为)?\s*$"
)
_CHANGE = (
    r"\b(?:half|halves|twice|thrice|doubled?|tripled?|quadruple|squared?|cubed?|root|roots|factorial|reciprocal|inverse|"
    r"opposite|negation|negated|plus|minus|times|log|ln|logarithm|sine?|cos(?:ine)?|tan(?:gent)?|sqrt|mod|modulo|multiples?|"
    r"factors?|divisors?|powers?|third|thirds|quarters?|fourths?|fifths?|tenths?|fraction|percent(?:age)?|absolute|"
    r"multiplied|divided|divisible|times|ten\stimes|sum|difference|product|quotient|ratio|digits?|complement|dozens?)"
    r"(?:\s(?:value|root))?(?:\s(?:of|by|to|and|from|for))?(?:\s(?:the|a|an))?\s*$"
    r"|(?:[加减乘除]|除以|乘以|减去|加上|[两二三四五六七八九十百\d]倍的|一半的|平方|根号|负的)\s*$"
)
_BEFORE = regex.compile(f"{_DENIAL}|{_BOUND}|{_CHANGE}", regex.IGNORECASE)
_AFTER = regex.compile(
    r"\A[\s\"'”’*$)\]}]*(?:,\s*)?(?:(?:\w+\s){0,2}?or\s(?:more|less|fewer|higher|lower|greater|above|below|over|under|better|later|"
    r"so\smore|\w+\s(?:more|less))|and\s(?:a\shalf|more|above|up|upwards?|over|under|below|beyond|a\sbit|some|change|a\squarter|"
    r"\w+\s(?:half|third|quarter|tenths?|hundredths?))|(?:at\s)?(?:the\s)?(?:least|most|minimum|maximum)\b|squared|cubed|factorial|"
    r"percent\soff|plus|minus|times\b(?!\s*[.)]?\s*$)|fold|-?ish\b|odd\b|something\b|too\s(?:many|few|much|high|low|big|small)|"
    r"(?:more|less|fewer|greater|larger|smaller|higher|lower|short|shy|away|off)\s(?:than|of|from)\b|to\sthe\b|"
    r"(?:to|through)\s\d|(?:is|was|are|seems)\s(?:\w+\s)?(?:wrong|incorrect|false|impossible|not)\b|(?:is|was|are|does|do|would|can)n['’]t\b|"
    r"cannot\b|halved\b|doubled\b|tripled\b|dozens?\b|(?:hundred|thousand|million|billion)(?:ths?)\b|-?(?:th|st|nd|rd)s?\s(?:of|root)\b|"
    r"\+|[<>≤≥≠!]=?|\\(?:leq?|geq?|lt|gt|neq?)\b|"
    r"以上|以下|以内|以外|之外|之内|及以|的?(?:[两二三四五六七八九十几百\d]+|一)?(?:倍|半)(?:的|多)|的[^,，。]{0,4}(?:倍|一?半|平方|立方|倒数|相反数|"
    r"阶乘|次方|根|绝对值|分之)|多(?!少|边)|余|折|成(?!为|了|立)|不对|是?错|不正确|或(?:者|以)|至\d|到\d|不到|不等|次方|的数以外|左边)",
    regex.IGNORECASE,
)
_CLAUSE = regex.compile(r"[,;.!?，；。！？、\n]|\b(?:so|then|thus|hence|therefore|but|which|and)\b", regex.IGNORECASE)
_WORDS_AROUND = 60


def qualified(before: str, after: str) -> str | None:
    """Return the words by which the number between two texts is another one or none; None where it stands as it is."""
    found = _BEFORE.search(before) or _AFTER.match(after)
    return found.group().strip() if found else None


def qualified_in_clause(text: str, start: int, end: int) -> str | None:
    """Return the same of a number in running text, judged by the clause it stands in."""
    before = text[max(0, start - _WORDS_AROUND) : start]
    clause = max((mark.end() for mark in _CLAUSE.finditer(before)), default=0)
    return qualified(before[clause:], text[end : end + _WORDS_AROUND])

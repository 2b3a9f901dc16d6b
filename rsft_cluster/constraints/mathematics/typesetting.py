r"""How an answer is typeset is taken off before it is read: fonts, colours, frames, approximations.

What is short is spelled out: repeating decimals become fractions, binomials products, a plus-minus two values, cases a
list.
"""

from fractions import Fraction

import regex

_INSIDE = r"\{(?P<inside>(?:[^{}]++|\{(?:[^{}]++|\{(?:[^{}]++|\{[^{}]*+\})*+\})*+\})*+)\}"
_FRAMES = regex.compile(
    r"\\(?:boldsymbol|mathbf|bm|textbf|textit|textsl|emph|underline|mathit|mathsf|mathtt|boxed|fbox|framebox|"
    r"displaystyle|pmb|bf|mathop|mathring|tag\*?)\s*" + _INSIDE
)
_COLOURS = regex.compile(r"\\(?:textcolor|colorbox)\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}\s*" + _INSIDE)
_COLOUR = regex.compile(r"\\color\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}")
_TEXT = regex.compile(r"\\(?:textnormal|textrm|textsf|texttt|textup|hbox|mbox)(?=\s*\{)")
_SWITCH = regex.compile(
    r"\\(?:bf|rm|it|sf|tt|large|Large|small|normalsize|displaystyle|textstyle|mathstrut|limits|nolimits)\b\s*"
)
_LETTER = regex.compile(r"\\(?:mathrm|text)\s*\{\s*([eixyz]|d)\s*\}")
_DOUBLED = regex.compile(
    r"\\\\(?=(?:left|right|[dt]?frac|sqrt|text|mathrm|mathbf|pi|boxed|infty|cup|cdot|times|leq?|geq?)(?![a-zA-Z]))"
)
_GLUED = regex.compile(r"\\q?quad(?=[a-zA-Z]_)")
_SPACING = regex.compile(r"\\(?:phantom|hspace|vspace|hphantom|vphantom)\*?\s*\{[^{}]*\}|\\(?:,|;|:|!|>)(?=\s*$)")
_APPROXIMATELY = regex.compile(r"(?:\\(?:approx|simeq|doteq|cong)(?![a-zA-Z])|≈|≃|≅)")
_NAMES_ALONE = regex.compile(r"[\s$]*(?:\\?[a-zA-Z]+(?:_\{?\w+\}?)?(?:\([^()]*\))?)?[\s$]*")
_THOUSANDS = [
    (regex.compile(r"(?<=\d),?\\!\s*,?\s*(?=\d{3}(?!\d))"), ""),
    (regex.compile(r"(?<=\d)\{,\}(?=\d{3}(?!\d))"), ""),
    (
        regex.compile(r"(?<![\d.])(\d{1,3})((?:[ '](?=\d{3}(?!\d))\d{3})+)(?![ ']?\d)"),
        lambda f: f[1] + regex.sub(r"\D", "", f[2]),
    ),
]
_REPEATING = regex.compile(r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{\s*(\d+)\s*\}|(\d))(?![\d.])")
_BINOMIAL = regex.compile(r"\\[dt]?binom\s*(?:\{([^{}]*)\}|(\w))\s*\{\s*([0-9])\s*\}")
_NUMERIC = regex.compile(r"\s*\d+\s*")
_CASES = regex.compile(
    r"\\begin\s*\{(cases|array|aligned|align\*?|gathered)\}(?:\s*\{[clr| ]*\})?(.*?)\\end\s*\{\1\}", regex.DOTALL
)
_ARRAY = regex.compile(
    r"(?:\\left\s*)?[\[(]\s*\\begin\s*\{array\}(?:\s*\{[clr| ]*\})?(.*?)\\end\s*\{array\}\s*(?:\\right\s*)?[\])]",
    regex.DOTALL,
)
_RELATION = regex.compile(r"=|<|>|\\[lg]eq?\b|\\[lg]t\b|[≤≥]")
_ROW = regex.compile(r"\s*\\\\(?:\s*\[[^\]]*\])?\s*")
_MODULUS = regex.compile(r"\s*\(?\s*(?:\\pmod|\\p?mod|\\bmod|\bmod)\s*\{?\s*(\d+)\s*\}?\s*\)?\s*$")
_AND = regex.compile(
    r"\s*,\s*(?:\\(?:text|mathrm|mbox)\s*\{\s*(?:and|or)\s*\}|(?:and|or)\b)\s*|\s+and\s+(?=[\d({\\$-])",
    regex.IGNORECASE,
)
_BLANK = regex.compile(r"\\(?:left|right|displaystyle|[Bb]igg?[lr]?|[,;:!> ]|q?quad)(?![a-zA-Z])|[\s$~]|\\[()\[\]]")
_FRACTION = regex.compile(r"\\[dtc]frac")
_EDGES = ".,;:。，"


def undecorated(text: str) -> str:
    """Return the text of an answer without what changes nothing but its looks."""
    if "\\" in text:
        text = _GLUED.sub(" ", text if "\\begin" in text else _DOUBLED.sub(r"\\", text))
        text = _SWITCH.sub("", _COLOUR.sub("", text))
    for _ in range(4):
        if "\\" not in text or (plain := _COLOURS.sub(r"\g<inside>", _FRAMES.sub(r" \g<inside> ", text))) == text:
            break
        text = plain
    if "\\" in text:
        text = _LETTER.sub(r"\1", _SPACING.sub("", _TEXT.sub(r"\\text", text)))
    for pattern, replacement in _THOUSANDS:
        text = pattern.sub(replacement, text)
    return _AND.sub(", ", _exactly(text)).strip()


def spelled_out(text: str) -> str:
    """Return an answer with its short forms written in full: repeating decimals, small binomials, cases."""
    if "\\" not in text:
        return text
    text = _BINOMIAL.sub(_product, _REPEATING.sub(_fraction, text))
    text = _ARRAY.sub(
        lambda found: found.group() if _RELATION.search(found[1]) else rf"\begin{{pmatrix}}{found[1]}\end{{pmatrix}}",
        text,
    )
    return _CASES.sub(lambda found: _listed(found[2]) if _RELATION.search(found[2]) else found.group(), text)


def modulus(text: str) -> tuple[str, str]:
    """Return an answer without the modulus that it names, and that modulus."""
    found = _MODULUS.search(text)
    return (text[: found.start()], found[1]) if found and found.start() else (text, "")


def both_signs(text: str) -> list[str]:
    r"""Return the two readings of a \pm, upper signs and lower ones; the text alone where it has none."""
    if "\\pm" not in text and "±" not in text:
        return [text]
    text = text.replace("±", "\\pm ")
    return [
        regex.sub(r"\\mp(?![a-zA-Z])", lower, regex.sub(r"\\pm(?![a-zA-Z])", upper, text))
        for upper, lower in (("+", "-"), ("-", "+"))
    ]


def same_writing(one: str, other: str) -> bool:
    """Return whether two answers are the same letter for letter, spaces and sizes of fractions aside."""
    written = [_BLANK.sub("", _FRACTION.sub(r"\\frac", text)).strip(_EDGES) for text in (one, other)]
    return written[0] == written[1] != ""


def _exactly(text: str) -> str:
    """Return what stands before an approximation; where that is a name or nothing, the approximation is the value."""
    found = _APPROXIMATELY.search(text)
    if found is None:
        return text
    before = text[: found.start()]
    return (
        f"{before}={text[found.end() :]}"
        if _NAMES_ALONE.fullmatch(before) and before.strip(" $")
        else (text[found.end() :] if not before.strip(" $") else before.rstrip(" $(,"))
    )


def _fraction(found: regex.Match[str]) -> str:
    whole, fixed, repeated = found[1] or "0", found[2], found[3] or found[4]
    scale = 10 ** len(fixed)
    value = Fraction(int(whole + fixed), scale) + Fraction(int(repeated), scale * (10 ** len(repeated) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _product(found: regex.Match[str]) -> str:
    above, below = found[1] or found[2], int(found[3])
    if _NUMERIC.fullmatch(above):
        return found.group()
    factors = "".join(f"({above}-{i})" for i in range(below)) or "1"
    divisor = 1
    for i in range(2, below + 1):
        divisor *= i
    return rf"\frac{{{factors}}}{{{divisor}}}"


def _listed(rows: str) -> str:
    return ", ".join(filter(None, (row.replace("&", "").strip(" ,") for row in _ROW.split(rows))))

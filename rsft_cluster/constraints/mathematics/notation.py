r"""Mathematics as people type it, in the LaTeX that a parser reads: 2√3, x**2, sqrt(3), 2.5e3, {1, 2}, 5\text{ cm}.

Only notation; nothing is evaluated. Raises UnreadableError for what is too long, too deep or too large to be given to
a parser, and for commands and characters that answers do not need.
"""

import regex

from rsft_cluster.constraints.mathematics.quantities import changes

MAX_CHARACTERS = 300
_MAX_DEPTH = 10
_MAX_DIGITS = 60
_MAX_POWERS = 24


class UnreadableError(ValueError):
    """A text is no mathematics that is read here."""


_WORDS_OF = {
    "√": r"\sqrt ", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "×": r"\cdot ", "·": r"\cdot ",
    "⋅": r"\cdot ", "∗": r"\cdot ", "÷": r"\div ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∈": r"\in ",
    "±": r"\pm ", "∅": r"\emptyset ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "φ": r"\phi ",
    "∖": r"\setminus ", "、": ",", "或": ",", "和": ",", "°": "",
}  # fmt: skip
_SYMBOLS = str.maketrans(_WORDS_OF)

_ROOT = regex.compile(
    r"(?:\\sqrt|(?<![\\\p{L}])sqrt)\s*(?:(?P<group>\((?P<inside>(?:[^()]++|(?&group))*+)\))|(?P<bare>[0-9]+(?:\.[0-9]+)?))"
)
_REPLACED = [
    (regex.compile(r"\\[dtc]frac"), r"\\frac"),
    (regex.compile(r"\\(?:left|right|displaystyle|limits|big|Big)(?![a-zA-Z])|(?<!\\)\\[()\[\]!;:]|\$"), ""),
    (regex.compile(r"\{,\}|(?<=\d)\\,(?=\d{3})"), ""),
    (regex.compile(r"(?<!\\)\\[, ]|~|\\q?quad(?![a-zA-Z])"), " "),
    (regex.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\}|\\degree)"), ""),
    (regex.compile(r"\*\*"), "^"),
    (regex.compile(r"\*"), r" \\cdot "),
    (regex.compile(r"<=|\\leqslant(?![a-zA-Z])"), r"\\le "),
    (regex.compile(r">=|\\geqslant(?![a-zA-Z])"), r"\\ge "),
    (regex.compile(r"!="), r"\\ne "),
    (regex.compile(r"(?<![\d.\w])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?![\w.])"), r"\1\\cdot 10^{\2}"),
    (regex.compile(r"(?<=[)\]])\s*U\s*(?=[(\[])"), r"\\cup "),
    (regex.compile(r"(?<![\d.^])(\d+)\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}"), r"(\1+\\frac{\2}{\3})"),
    (regex.compile(r"\^\s*\(((?:[^()])*+)\)"), r"^{\1}"),
    (regex.compile(r"\^\s*(-?\d+)"), r"^{\1}"),
    (regex.compile(r"(?<![\\\p{L}])(pi|infty|sin|cos|tan|cot|sec|csc|log|ln|exp)(?![\p{L}{])"), r"\\\1 "),
    (regex.compile(r"(?<![\\\p{L}])(?:infinity|inf|oo)(?!\p{L})"), r"\\infty "),
    (regex.compile(r"\\(?:var)?nothing"), r"\\emptyset"),
    (regex.compile(r"\\(?:text|mathrm|mbox)\s*\{\s*(,?\s*(?:and|or))\s*\}|(?<=[\s\d)}])(and|or)(?=[\s\d({\\$])"), ","),
]
_UNIT = regex.compile(
    r"""(?: (?<=\S)\s* \\(?:text|mathrm|mbox)\s*\{[^{}]*\}
          | (?<=[\d})\]])\s* (?: (?<!\\)\b(?:\p{Latin}{4,}|[mckd]m|[mk]g|ml) | \p{Han}{1,4} ) )
        (?: \s*\^\s*\{?\s*[23]\s*\}? )? \s*$""",
    regex.VERBOSE,
)
_BRACES = regex.compile(r"\{(?P<inside>[^{}]*,[^{}]*)\}")
_COMMAND = regex.compile(r"\\(?:[a-zA-Z]+|.)")
_FUNCTIONS = (
    r"sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|sqrt|frac|binom|lfloor|rfloor|lceil|rceil|[lr]?vert"
)
_SIGNS = (
    "pi|infty|cup|cap|cdot|times|div|leq?|geq?|neq?|lt|gt|in|pm|emptyset|setminus|begin|end|mathbb|text|mathbf|mathrm"
)
_LETTERS = "theta|alpha|beta|gamma|phi|lambda|mu|omega|sigma|rho|epsilon|delta"
_ALLOWED = regex.compile(rf"\\(?:{_FUNCTIONS}|{_SIGNS}|{_LETTERS}|[{{}}\\%])")
_BINOMIAL = regex.compile(r"\\binom(?!\{\d{1,3}\}\{\d{1,3}\})")
_ENVIRONMENT = regex.compile(r"\\(?:begin|end)\s*\{(?!(?:[pbvB]?matrix)\})")
_ALIEN = regex.compile(r"[^A-Za-z0-9\s+\-*/^_=<>()\[\]{}|,;:.!&%\\']")
_PROSE = regex.compile(r"(?<!\\)(?<![A-Za-z])[A-Za-z]{4,}")
_LONG_NUMBER = regex.compile(rf"[0-9]{{{_MAX_DIGITS + 1}}}")
_LARGE_EXPONENT = regex.compile(r"[0-9]{4}|!")
_POWER_OF_GROUP = regex.compile(r"[)}\]|!]\s*\^")
_YEAR = regex.compile(r"-?[0-9]{4}")
_VARIABLE = regex.compile(r"[A-Za-z]")
_GROUP = r"(?P<group>\{(?P<inside>(?:[^{}]++|(?&group))*+)\})"
_POWER = regex.compile(rf"\^\s*{_GROUP}")
_POWER_OF_POWER = regex.compile(rf"\^\s*(?:{_GROUP}|\w)\s*\^")


def as_latex(text: str) -> str:
    """Return an answer (as `unified`) as LaTeX fit for the parser; raises UnreadableError."""
    if len(text) > MAX_CHARACTERS:
        raise UnreadableError(f"longer than {MAX_CHARACTERS} characters")
    latex = text.translate(_SYMBOLS).strip(" \t\n*`'\"“”‘’$.。,")
    for pattern, replacement in _REPLACED:
        latex = pattern.sub(replacement, latex)
    for _ in range(_MAX_DEPTH):
        latex = _ROOT.sub(lambda found: rf"\sqrt{{{found['inside'] or found['bare']}}}", latex)
    latex = latex.strip()
    if unit := _UNIT.search(latex):
        if changes(unit.group()):
            raise UnreadableError(f"{unit.group().strip()!r} is no unit")
        latex = latex[: unit.start()].strip()
    if braces := _BRACES.fullmatch(latex):
        latex = rf"\{{{braces['inside']}\}}"
    _check(latex)
    return latex


def _check(latex: str) -> None:
    if not latex:
        raise UnreadableError("empty")
    for command in _COMMAND.findall(latex):
        if not _ALLOWED.fullmatch(command):
            raise UnreadableError(f"{command} is not read in an answer")
    if alien := _ALIEN.search(latex):
        raise UnreadableError(f"{alien.group()!r} is not read in an answer")
    if prose := _PROSE.search(latex.replace("matrix", "")):
        raise UnreadableError(f"{prose.group()!r} is prose")
    if _ENVIRONMENT.search(latex) or _BINOMIAL.search(latex):
        raise UnreadableError("only matrices, and binomials of small numbers, are read in an answer")
    if _LONG_NUMBER.search(latex) or latex.count("^") > _MAX_POWERS or latex.count("!") > 3:
        raise UnreadableError("holds a number or a power that is too large to compare")
    if _depth(latex) > _MAX_DEPTH or latex.count("|") > _MAX_DEPTH:
        raise UnreadableError(f"nested deeper than {_MAX_DEPTH}")
    if _POWER_OF_POWER.search(latex):
        raise UnreadableError("a power follows a power, without brackets")
    single = not _POWER_OF_GROUP.search(latex) and "!" not in latex
    for power in _POWER.finditer(latex, overlapped=True):
        if not (single and _YEAR.fullmatch(power["inside"])):
            _check_power(power["inside"])


def _check_power(exponent: str) -> None:
    """Refuse powers of powers of numbers: 9^{9^9} has 370 million digits, and the parser compares ends of intervals."""
    without_commands = _COMMAND.sub("", exponent)
    if _LARGE_EXPONENT.search(exponent) or ("^" in exponent and not _VARIABLE.search(without_commands)):
        raise UnreadableError("holds a number or a power that is too large to compare")


def _depth(latex: str) -> int:
    depth = deepest = 0
    for character in latex:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest

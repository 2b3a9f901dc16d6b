r"""`Choice`: the completion picks one of the options given, and that is the reference.

What it picks is told by the first of these that it has:
1. the whole text, where that is an option and nothing else;
2. options in `\boxed{...}`;
3. options that follow "answer is", "answer:", "choose", 答案是, 选 and their like;
4. options set off from the text: (B), **B**, "B." where the text begins, B alone on its line;
5. options anywhere, as whole words; single letters only in the case that the options have.
Options joined to it ("B or C") are picked, too. Several different ones there are no answer, and one that is denied or
called wrong is none ("not B", "B is wrong", 不选B). What is thought before the answer does not count.
"""

from collections.abc import Iterable, Iterator, Sequence
from unicodedata import normalize

import regex

from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.constraints.parts import answer_of, no_answer
from rsft_cluster.constraints.text._text import UNSPACED, shown
from rsft_cluster.errors import ConfigError

_EDGES = " \t\r\n*_`'\"“”‘’「」()[]{}<>.,:;!?。、$"
_DENIED = (
    r"(?<!(?:\b(?:not|never|cannot)|n['’]t)\s(?:to\s|be\s|(?:think|believe)\s(?:that\s|it\sis\s|it['’]s\s)?)?(?:option\s)?"
    r"|\b(?:rul(?:e[sd]?|ing)\sout|eliminat(?:es?|ed|ing)|exclud(?:es?|ed|ing)|reject(?:s|ed)?|discard(?:s|ed)?|except|(?:any|every)thing\sbut|all\sbut|without"
    r"|neither|nor|instead\sof|rather\sthan|unlike)\s(?:for\s)?(?:option\s|choice\s)?"
    r"|[不未没非别](?:应该|应|该|能|会|要|是|选)?|排除(?:选项)?|除了(?:选项)?|并非)"
)
_WRONG = regex.compile(
    r"[\s*_`'\"”’」)\]}]*+(?:,\s*)?(?:(?:is|was|are|seems|looks|would\sbe|must\sbe|can\sbe|could\sbe|has\sto\sbe|being)\s"
    r"(?:also\s|clearly\s|obviously\s|definitely\s|therefore\s|thus\s|just\s|simply\s|the\s|an?\s|my\sfirst\s)*+"
    r"(?:wrong|incorrect|false|invalid|impossible|mistaken|out\b|untrue|ruled\sout|eliminated|excluded|rejected|inaccurate|"
    r"not\b(?!\s(?:wrong|incorrect|false|only|just)))|(?:is|are|was|does|do|can|could|would)n['’]t\b"
    r"(?!\s(?:wrong|incorrect|false|only|just))|(?:cannot|does\snot|do\snot|can\snot|fails?|contradicts?)\b"
    r"|(?:选项|项)?\s?(?:明显|显然|肯定|也|都|就)*(?:是|为)?(?:错|不对|不正确|不成立|不符|不是|不选|不可能|有误|无关|排除|除外|被排除))",
    regex.IGNORECASE,
)
_OPENING = regex.compile(r"[\s*_`'\"“”‘’「(\[{$]*+(?:(?:option\s|选项|\\text\s?\{)[\s*_(]*+)?", regex.IGNORECASE)
_JOINT = regex.compile(r"[\s*_`'\"”’」)\]}]*+(?:[,/、&]|和|或者?|\bor\b|\band\b)(?:\s?(?:or|and)\b)?", regex.IGNORECASE)
_PLACES = {
    "in \\boxed": r"\\boxed\s?\{",
    "after the answer phrase": rf"{_DENIED}(?:\b(?:answer|choice|choose|select|pick|decision|option\s(?=is\b))"
    rf"(?:\s++(?:is|be|should\sbe|would\sbe)\b)?+\s*+:?+|(?:答案|结论|决定|选择?(?!项))\s?[是为选]?+\s*+:?+)",
}


class Choice:
    """Pass completions that pick the reference among the `options` and nothing else; case does not count.

    A reference that is missing, or none of the options, is an error.
    """

    def __init__(self, *, options: Sequence[str] = ("A", "B", "C", "D")) -> None:
        self._options = {_folded(option): option for option in options}
        if len(self._options) < max(2, len(options)) or "" in self._options:
            raise ConfigError(f"choice: options are two or more words, each another, not {list(options)!r}")
        option, strict = _pattern(self._options.values())
        self._option = regex.compile(option, regex.IGNORECASE)
        self._places = [(name, regex.compile(place, regex.IGNORECASE)) for name, place in _PLACES.items()]
        off = rf"\((?={option}\))|\*\*(?={option}\*\*)|\A\s*+(?={option}[.:)])|^[ \t]*+(?={option}[.)]?[ \t]*$)"
        self._places.append(("set off from the text", regex.compile(off, regex.IGNORECASE | regex.MULTILINE)))
        self._places.append(("in the text", regex.compile(rf"{_DENIED}(?={strict})")))

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate; raises ValueError where the reference is missing or no option."""
        return [self._judge(candidate) for candidate in candidates]

    def _judge(self, candidate: Candidate) -> Verdict:
        if not candidate.reference:
            raise ValueError(f"prompt {candidate.prompt_id!r} has no reference to compare with")
        wanted = self._options.get(_folded(candidate.reference))
        if wanted is None:
            raise ValueError(f"the reference {shown(candidate.reference)} is none of {list(self._options.values())}")
        answer = answer_of(candidate)
        if answer is None:
            return no_answer()
        picked, place = self._picked(normalize("NFKC", answer))
        if not picked:
            return Verdict.of(False, f"none of {', '.join(self._options.values())} picked")
        if len(picked) > 1:
            return Verdict.of(False, f"several picked {place}: {', '.join(picked)}")
        relation = "is" if picked[0] == wanted else "is not"
        return Verdict.of(picked[0] == wanted, f"{picked[0]} picked {place}, {relation} the reference {wanted}")

    def _picked(self, text: str) -> tuple[list[str], str]:
        """Return the different options picked, and where."""
        if whole := self._options.get(_folded(text)):
            return [whole], "as the whole text"
        for name, place in self._places:
            if picked := dict.fromkeys(self._read(place, text)):
                return list(picked), name
        return [], ""

    def _read(self, place: regex.Pattern[str], text: str) -> Iterator[str]:
        """Yield the options that stand in such places, and those joined to them; each character is read once."""
        position = 0
        for start in place.finditer(text):
            position = max(position, start.end())
            while (opening := _OPENING.match(text, position)) and (option := self._option.match(text, opening.end())):
                if not _WRONG.match(text, option.end()):
                    yield self._options[_folded(option.group())]
                joint = _JOINT.match(text, option.end())
                position = joint.end() if joint else option.end()
                if joint is None:
                    break


def _folded(text: str) -> str:
    return " ".join(normalize("NFKC", text).casefold().split()).strip(_EDGES)


def _pattern(options: Iterable[str]) -> tuple[str, str]:
    """Return patterns for one of the options, long ones first: in any case, and with single letters as they are.

    A letter in the wrong case counts only where something ends: "a" is an option in "the answer is a." alone.
    """
    any_case, strict = [], []
    for option in sorted(map(regex.escape, options), key=len, reverse=True):
        unspaced = regex.search(f"[{UNSPACED}]", option)
        whole = option if unspaced else rf"(?<!\w(?<![{UNSPACED}])){option}(?!\w(?<![{UNSPACED}]))"
        letter = len(option) == 1 and not unspaced
        ends = r"(?=\s*+(?:[^\w\s]|$|(?:or|and)\b))"
        any_case.append(rf"(?:(?-i:{whole})|{whole}{ends})" if letter else whole)
        strict.append(whole if letter else f"(?i:{whole})")
    return f"(?:{'|'.join(any_case)})", f"(?:{'|'.join(strict)})"


_WORDS = {"options": ["approve", "deny"]}

CASES = (
    Case(Candidate("B", reference="B"), passes=True),
    Case(Candidate("（Ｂ）", reference="B"), passes=True),
    Case(Candidate("Answer: b", reference="B"), passes=True),
    Case(Candidate("A is too small and C too large. The answer is **B**.", reference="B"), passes=True),
    Case(Candidate("因为甲是错的，所以答案是B。", reference="B"), passes=True),
    Case(Candidate("The answer is B or C.", reference="B"), passes=False),
    Case(Candidate("The answer is A. No, the answer is B.", reference="B"), passes=False),
    Case(Candidate("I do not know.", reference="B"), passes=False),
    Case(Candidate("不选B，选C", reference="B"), passes=False),
    Case(Candidate("A and C are out; **B** is right.", reference="B"), passes=True),
    Case(Candidate("I can rule out A. It isn't C. So it must be B.", reference="B"), passes=True),
    Case(Candidate("A选项不对，选B", reference="B"), passes=True),
    Case(Candidate("(B) does not fit.", reference="B"), passes=False),
    Case(Candidate("<think>B. The answer is B.</think>The answer is C.", reference="B"), passes=False),
    Case(Candidate("<think>The answer is B.", reference="B"), passes=False),
    Case(Candidate("We approve it.", reference="approve"), passes=True, params={"options": ["approve", "deny"]}),
    Case(
        Candidate("We do not approve it.", reference="approve"), passes=False, params={"options": ["approve", "deny"]}
    ),
    Case(Candidate("这份申请我不同意。", reference="同意"), passes=False, params={"options": ["同意", "不同意"]}),
    Case(Candidate("这份申请我不同意。", reference="不同意"), passes=True, params={"options": ["同意", "不同意"]}),
)

r"""Where the final answer of a completion stands: the last claim that is not withdrawn, in the part that answers.

A claim is what follows `####` on its line, what `\boxed{...}`, `\fbox{...}` or `<answer>...</answer>` holds, or
what follows "answer is", "answer:" or their Chinese forms in its sentence. Boxes joined by nothing, a comma, "and" or
"or" are one claim of several values. What is thought before the answer claims nothing.

A claim is withdrawn by what follows it ("was wrong", "no: ..."), and a denied one ("the answer is not 7") is none;
where every claim is withdrawn, the answer is sought in what follows the last of them.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import regex

Extract = Literal["auto", "hash", "boxed", "phrase", "number", "whole"]


class Answer(NamedTuple):
    """The text of an answer, and in words where it was found."""

    text: str
    source: str


class Located(NamedTuple):
    """The last claim, None where there is none, and the text in which an unmarked answer may stand."""

    claim: Answer | None
    rest: str
    withdrawn: bool


class _Claim(NamedTuple):
    start: int
    spans: tuple[tuple[int, int], ...]
    """Of what it claims; the end of a phrase is that of its sentence."""
    kind: str
    denied: bool = False


MARKS = {"hash": "####", "boxed": "closed \\boxed{...}", "phrase": '"answer is" or "answer:"'}
_SOURCES = {
    "hash": "after ####", "boxed": "in \\boxed", "phrase": "after the answer phrase", "tag": "in the answer tag",
}  # fmt: skip
_KINDS = {"auto": ("hash", "boxed", "phrase", "tag"), "hash": ("hash",), "boxed": ("boxed",), "phrase": ("phrase",)}
_WINDOW = 200
"""Characters after a claim in which it may be withdrawn."""
_MAX_GROUP = 50

_HASH = regex.compile(r"####\s*(?P<inside>(?:(?!####)[^\n])*+)")
_PHRASE = regex.compile(
    r"(?:\banswer\W{0,4}?"
    r"(?:\s+(?:(?P<denied>(?:is|was|are|were|would|could|can|should|will|does|must)(?:\s*n['’o]t\b|"
    r"\s+never\b)(?:\s+be\b)?|cannot\s+be\b)"
    r"|(?:is|was|are|equals|(?:would|should|must|will|has\sto)\s+be|comes\s+(?:out\s+)?to)\b(?:\s+(?P<denied>not|"
    r"never|neither)\b)?"
    r"(?:\s+(?:therefore|thus|then|simply|hence|indeed|just|now|clearly))?)\s*[:=]?|\s*[:=])"
    r"|答案\s*(?:(?P<denied>(?:并|绝|肯定)?(?:不(?:会|能|应该|应|可能)?是|不为|非))|(?:应该|应|就|只能|便|必|将会?)?[是为]\s*:?|:))[\s*]*",
    regex.IGNORECASE,
)
_SENTENCE_END = regex.compile(r"\n|[。！？?;；]|(?<!\\)!|\.(?=\s|$)")
_TAG = regex.compile(r"<answer>(?P<inside>(?:(?!</?answer>).)*+)(?:</answer>|\Z)", regex.IGNORECASE | regex.DOTALL)
_BRACE = regex.compile(r"(?P<box>\\(?:boxed|fbox|framebox)\s*)?\{|\}")
_JOINED = regex.compile(
    r"(?:\s|\\[,;:! ]|~|\\q?quad\b|[$*.]|\\\[|\\\]|\\\(|\\\)|\\\\)*+"
    r"(?:(?:,|;|&|、|和|或|与|\\(?:text|mathrm|mbox)\s*\{[^{}]{0,40}?\b(?:and|or)\s*\}|(?<=\s)\w{2,}\s+(?:and|or)\b|"
    r",?\s*\b(?:and|or)\b)"
    r"(?:\s|\\[,;:! ]|~|\\q?quad\b|[$*]|\\\[|\\\(|\b(?:and|or)\b|[a-zA-Z](?:_\w)?\s*=)*+)?",
    regex.IGNORECASE,
)
_ASIDE = regex.compile(
    r"(?:as follows|correct|right|verified|confirmed|consistent|reasonable|valid|unique|given|shown|found|obtained|"
    r"above|"
    r"below|in (?:the|its|simplest|lowest)|therefore|based|derived|already|complete|clear|matched|"
    r"supported)\b(?!\W*\d)",
    regex.IGNORECASE,
)
_WITHDRAWN = regex.compile(
    r"\A[^.!?;\n。！？]{0,40}?(?:\b(?:is|was|were|are|seems|looks|turns out)\s(?:\w+\s){0,2}?(?:wrong|incorrect|false|"
    r"mistaken|invalid|"
    r"impossible|a mistake|an error|a typo|too (?:high|low|big|small|large)|my (?:first|initial|earlier|previous|old)|"
    r"(?:just |only )?an? (?:first |initial |wrong |wild )?(?:guess|try|attempt)|not (?:right|correct|true|"
    r"the (?:final |right |correct )?answer|it))|"
    r"(?:is|was)n['’]t (?:right|correct|true|the|it)\b|(?:can|could)(?:not|n['’]t) be (?:right|correct|it)|"
    r"does(?:n['’]t| not) (?:work|fit|check))"
    r"|\b(?:that|this|it)(?:['’]s| is| was| must be| seems| looks) (?:\w+ )?(?:wrong|incorrect|not (?:right|correct)|"
    r"a mistake|an error|mistaken)\b"
    r"|\b(?:that|this|it) (?:can(?:not|['’]t) be|is(?:n['’]t| not)|was(?:n['’]t| not)) (?:right|correct|true|it|"
    r"the answer)\b"
    r"|\b(?:scratch|strike|ignore|forget|disregard) (?:that|this|it)\b|\bI (?:take (?:that|it) back|was (?:wrong|"
    r"mistaken)|made an? (?:\w+ )?(?:mistake|error)|miscalculated)\b"
    r"|\A\W*(?:no|nope|oops|whoops|correction|sorry|wait,? no|hold on,? no|actually,? no)\b\W*?[,.:;!-]|"
    r"\b(?:my mistake|my bad)\b"
    r"|不对|错了|是错的?|有误|算错|更正|收回|作废|不正确|并不是|不是答案|写错|说错",
    regex.IGNORECASE,
)


def locate(text: str, extract: Extract = "auto") -> Located:
    """Return the last claim of a text, of the kind that is asked for; "auto" takes all kinds."""
    claims = sorted(claim for kind in _KINDS.get(extract, ()) for claim in _CLAIMS[kind](text))
    boxes = [claim for claim in claims if claim.kind == "boxed"]
    following, rest = len(text), text
    for claim in reversed(claims):
        if claim.kind == "phrase" and any(box.start < claim.start < box.spans[-1][1] for box in boxes[-2:]):
            continue
        spans = _spans(text, claim, following)
        after = text[spans[-1][1] : min(following, spans[-1][1] + _WINDOW)]
        if claim.kind == "phrase" and len(claims) > 1 and _ASIDE.match(text, spans[0][0], spans[-1][1]):
            continue
        withdrawn = _WITHDRAWN.search(after)
        if not claim.denied and not withdrawn:
            contents = dict.fromkeys(text[slice(*span)].strip() for span in spans)
            return Located(Answer(", ".join(contents), _SOURCES[claim.kind]), "", withdrawn=False)
        if following == len(text):
            rest = text[spans[-1][1] + (withdrawn.end() if withdrawn else 0) :]
        following = claim.start
    return Located(None, rest, withdrawn=following < len(text))


def marked(text: str) -> Answer | None:
    """Return the last claim of a text that is not withdrawn."""
    return locate(text).claim


def _spans(text: str, claim: _Claim, following: int) -> tuple[tuple[int, int], ...]:
    if claim.kind != "phrase":
        return claim.spans
    start = claim.spans[0][0]
    end = _SENTENCE_END.search(text, start, max(start, following))
    return ((start, end.start() if end else max(start, following)),)


def _hashes(text: str) -> Iterator[_Claim]:
    return (_Claim(found.start(), (found.span("inside"),), "hash") for found in _HASH.finditer(text))


def _tags(text: str) -> Iterator[_Claim]:
    return (_Claim(found.start(), (found.span("inside"),), "tag") for found in _TAG.finditer(text))


def _phrases(text: str) -> Iterator[_Claim]:
    for found in _PHRASE.finditer(text):
        yield _Claim(found.start(), ((found.end(), found.end()),), "phrase", denied=found["denied"] is not None)


def _boxes(text: str) -> Iterator[_Claim]:
    """Yield the closed boxes, in one pass over the braces; those that are joined as one."""
    group: list[tuple[int, int]] = []
    start = last_start = 0
    for opening, inside, end in sorted(_closed_boxes(text)):
        if group and inside <= group[-1][1]:
            continue  # within the one before
        joined = group and len(group) < _MAX_GROUP and _JOINED.fullmatch(text, last_start, opening)
        if group and not joined:
            yield _Claim(start, tuple(group), "boxed")
            group = []
        start = start if group else opening
        group.append((inside, end))
        last_start = end + 1
    if group:
        yield _Claim(start, tuple(group), "boxed")


def _closed_boxes(text: str) -> Iterator[tuple[int, int, int]]:
    """Yield where each box that closes begins, where its content does, and where that ends."""
    openings: list[regex.Match[str]] = []
    for brace in _BRACE.finditer(text):
        if brace.group() != "}":
            openings.append(brace)
        elif openings and (opening := openings.pop())["box"] is not None:
            yield opening.start(), opening.end(), brace.start()


_CLAIMS: dict[str, Callable[[str], Iterator[_Claim]]] = {
    "hash": _hashes, "boxed": _boxes, "phrase": _phrases, "tag": _tags,
}  # fmt: skip

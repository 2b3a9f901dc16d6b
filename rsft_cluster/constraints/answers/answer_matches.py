r"""`AnswerMatches`: the final answer of the completion equals the candidate's reference.

The final answer is, with `extract: auto`, the last claim of the completion that is not withdrawn (`locating`): after
`####`, in `\boxed{...}` or `<answer>`, after "answer is" or its Chinese forms; where there is none, for numbers the
last number, for texts all of the text. `hash`, `boxed`, `phrase`, `number` and `whole` ask for one of these alone. What
is thought before the answer does not count. The reference is read in the same way; without a mark it is the answer
itself.

Numbers are compared exactly, as fractions; how they are written does not count (1,000 = 1000.00; 3/4 =
0.75), nor does their unit. A claim must hold one number, after its last `=` sign: of several none is chosen, nor one
that its words deny, bound or change (not 7, 7 or more, half of 7), nor the end of a false equation. A percent sign that
only one side has is read both ways: 50% equals 50 and 0.5.
"""

from collections.abc import Sequence
from typing import Literal

from rsft_cluster.constraints.answers.answers import (
    DecimalMark,
    Margin,
    Number,
    Tolerance,
    claimed_number,
    folded,
    last_number,
    plain,
    quantity,
    short,
    single_number,
    with_decimal_point,
)
from rsft_cluster.constraints.answers.locating import MARKS, Answer, Extract, locate, marked
from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.constraints.parts import answer_of, no_answer
from rsft_cluster.errors import ConfigError

Kind = Literal["auto", "number", "text"]


class AnswerMatches:
    """Pass completions whose final answer equals the reference; a missing reference is an error.

    `kind: auto` compares as numbers where the reference is a number, alone or with a unit of up to three
    words, and as texts otherwise: without regard to case, spaces, width, enclosing quotes and closing
    punctuation. Numbers may differ by `tolerance`, or by `relative_tolerance` times the reference,
    whichever is more. With `decimal_mark: comma` completion and reference write 1.000,5 for 1000.5.
    """

    def __init__(
        self,
        *,
        extract: Extract = "auto",
        kind: Kind = "auto",
        tolerance: Tolerance = 0.0,
        relative_tolerance: Tolerance = 0.0,
        decimal_mark: DecimalMark = "point",
    ) -> None:
        if kind == "text" and (tolerance or relative_tolerance):
            raise ConfigError("answer_matches: a tolerance has no effect with kind: text")
        if (extract, kind) == ("number", "text"):
            raise ConfigError("answer_matches: extract: number gives no answer of kind: text")
        self._extract: Extract = extract
        self._kind = kind
        self._decimal_mark = decimal_mark
        self._margin = Margin.of(tolerance, relative_tolerance)

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate; raises ValueError where a reference is missing or unusable."""
        return [self._judge(candidate) for candidate in candidates]

    def _judge(self, candidate: Candidate) -> Verdict:
        reference = self._plain(candidate.reference or "").strip()
        if not reference:
            raise ValueError(f"prompt {candidate.prompt_id!r} has no reference to compare with")
        answer = answer_of(candidate)
        if answer is None:
            return no_answer()
        wanted = (marked(reference) or Answer(reference, "whole")).text
        number = self._wanted_number(wanted)
        if number is not None:
            return self._compare_numbers(self._plain(answer), number)
        return self._compare_texts(self._plain(answer), wanted)

    def _plain(self, text: str) -> str:
        text = plain(text)
        return with_decimal_point(text) if self._decimal_mark == "comma" else text

    def _wanted_number(self, wanted: str) -> Number | None:
        if self._kind == "text":
            return None
        number = quantity(wanted) if self._kind == "auto" else single_number(wanted)
        if number is None and (self._kind == "number" or self._extract == "number"):
            raise ValueError(f"the reference {short(wanted)} is not a number")
        return number

    def _compare_numbers(self, text: str, wanted: Number) -> Verdict:
        located = locate(text, self._extract)
        answer = Answer(text, "as the whole text") if self._extract == "whole" else located.claim
        if answer is not None:
            found, source = claimed_number(answer.text), f" {answer.source}"
            missing = f"not a single number {answer.source}: {short(answer.text)}"
        elif self._extract in ("auto", "number"):
            found, source = last_number(located.rest), ", the last number"
            missing = "no number in the completion that can be read"
        else:
            return self._absent()
        if found is None:
            return Verdict.of(False, missing)
        if found.equals(wanted, self._margin):
            return Verdict.of(True, f"{found.text}{source}, equals the reference {wanted.text}")
        return Verdict.of(False, f"{found.text}{source}, differs from the reference {wanted.text}")

    def _compare_texts(self, text: str, wanted: str) -> Verdict:
        located = locate(text, self._extract)
        answer = located.claim
        if answer is None:
            if self._extract not in ("auto", "whole") or located.withdrawn:
                return self._absent()
            answer = Answer(text, "as the whole text")
        if not (wanted_folded := folded(wanted)):
            raise ValueError(f"the reference {short(wanted)} has nothing to compare with")
        same = folded(answer.text) == wanted_folded
        relation = "equals" if same else "differs from"
        return Verdict.of(same, f"{short(answer.text)} {answer.source}, {relation} the reference {short(wanted)}")

    def _absent(self) -> Verdict:
        return Verdict.of(False, f"the completion has no {MARKS.get(self._extract, 'answer that stands')}")


CASES = (
    Case(Candidate("3 + 4 = 7\n#### 7", reference="7"), passes=True),
    Case(Candidate("3 + 4 = 8\n#### 8", reference="7"), passes=False),
    Case(Candidate(r"so \boxed{\frac{3}{4}}", reference="0.75"), passes=True),
    Case(Candidate("答案是1,000元。", reference="1000"), passes=True),
    Case(Candidate("The answer is Paris.", reference="paris"), passes=True),
    Case(Candidate("#### 7\nNo, that is wrong: the answer is 8.", reference="7"), passes=False),
    Case(Candidate("The answer is 8. My first guess: \\boxed{7} was wrong.", reference="8"), passes=True),
    Case(Candidate("<think>The answer is 7.</think>It is 8.", reference="7"), passes=False),
    Case(Candidate("<think>The answer is 7.", reference="7"), passes=False),
    Case(Candidate("The answer is less than 7", reference="7"), passes=False),
    Case(Candidate("答案是7的一半", reference="7"), passes=False),
    Case(Candidate("so it is twice 7", reference="7"), passes=False),
    Case(Candidate("\\boxed{3 + 3 = 7}", reference="7"), passes=False),
    Case(Candidate("3,5", reference="3.5"), passes=False),
    Case(Candidate("1.003,5", reference="1003,5"), passes=True, params={"decimal_mark": "comma"}),
    Case(Candidate("It is 7, or 8.", reference="7"), passes=False),
    Case(Candidate("about 7.1", reference="7"), passes=True, params={"tolerance": 0.2}),
)

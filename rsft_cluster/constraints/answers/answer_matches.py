r"""`AnswerMatches`: the final answer of the completion equals the candidate's reference.

The final answer is, with `extract: auto`, what the first of these gives that the completion has:
1. `hash`: the line after the last `####`, as in GSM8K;
2. `boxed`: the content of the last closed `\boxed{...}`;
3. `phrase`: what follows the last "answer is", "answer:", or their Chinese forms, up to the end of the
   sentence;
4. for numbers `number`, the last number in the text; for texts `whole`, all of it.
The reference is read in the same way, but that steps 1 to 3 failing it is the answer itself.

Numbers are compared exactly, as fractions; how they are written does not count (1,000 = 1000.00; 3/4 =
0.75), nor does their unit. An answer of a marked kind (1 to 3) must hold one number, after its last `=`
sign: of several none is chosen. A percent sign that only one side has is read both ways: 50% equals 50 and
0.5.
"""

from collections.abc import Sequence
from typing import Literal

from rsft_cluster.constraints.answers.answers import (
    MARKERS,
    MARKS,
    Answer,
    Extract,
    Margin,
    Number,
    Tolerance,
    folded,
    last_number,
    marked,
    plain,
    quantity,
    short,
    single_number,
)
from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.errors import ConfigError

Kind = Literal["auto", "number", "text"]


class AnswerMatches:
    """Pass completions whose final answer equals the reference; a missing reference is an error.

    `kind: auto` compares as numbers where the reference is a number, alone or with a unit of up to three
    words, and as texts otherwise: without regard to case, spaces, width, enclosing quotes and closing
    punctuation. Numbers may differ by `tolerance`, or by `relative_tolerance` times the reference,
    whichever is more.
    """

    def __init__(
        self,
        *,
        extract: Extract = "auto",
        kind: Kind = "auto",
        tolerance: Tolerance = 0.0,
        relative_tolerance: Tolerance = 0.0,
    ) -> None:
        if kind == "text" and (tolerance or relative_tolerance):
            raise ConfigError("answer_matches: a tolerance has no effect with kind: text")
        if (extract, kind) == ("number", "text"):
            raise ConfigError("answer_matches: extract: number gives no answer of kind: text")
        self._extract: Extract = extract
        self._kind = kind
        self._margin = Margin.of(tolerance, relative_tolerance)

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate; raises ValueError where a reference is missing or unusable."""
        return [self._judge(candidate) for candidate in candidates]

    def _judge(self, candidate: Candidate) -> Verdict:
        reference = plain(candidate.reference or "").strip()
        if not reference:
            raise ValueError(f"prompt {candidate.prompt_id!r} has no reference to compare with")
        wanted = (marked(reference) or Answer(reference, "whole")).text
        number = self._wanted_number(wanted)
        if number is not None:
            return self._compare_numbers(plain(candidate.completion), number)
        return self._compare_texts(plain(candidate.completion), wanted)

    def _wanted_number(self, wanted: str) -> Number | None:
        if self._kind == "text":
            return None
        number = quantity(wanted) if self._kind == "auto" else single_number(wanted)
        if number is None and (self._kind == "number" or self._extract == "number"):
            raise ValueError(f"the reference {short(wanted)} is not a number")
        return number

    def _compare_numbers(self, completion: str, wanted: Number) -> Verdict:
        answer = self._answer(completion)
        if answer is not None:
            found, source = single_number(answer.text), f" {answer.source}"
            missing = f"not a single number {answer.source}: {short(answer.text)}"
        elif self._extract in ("auto", "number"):
            found, source = last_number(completion), ", the last number"
            missing = "no number in the completion that can be read"
        else:
            return self._absent()
        if found is None:
            return Verdict.of(False, missing)
        if found.equals(wanted, self._margin):
            return Verdict.of(True, f"{found.text}{source}, equals the reference {wanted.text}")
        return Verdict.of(False, f"{found.text}{source}, differs from the reference {wanted.text}")

    def _compare_texts(self, completion: str, wanted: str) -> Verdict:
        answer = self._answer(completion)
        if answer is None:
            if self._extract not in ("auto", "whole"):
                return self._absent()
            answer = Answer(completion, "as the whole text")
        if not (wanted_folded := folded(wanted)):
            raise ValueError(f"the reference {short(wanted)} has nothing to compare with")
        same = folded(answer.text) == wanted_folded
        relation = "equals" if same else "differs from"
        return Verdict.of(same, f"{short(answer.text)} {answer.source}, {relation} the reference {short(wanted)}")

    def _answer(self, completion: str) -> Answer | None:
        if self._extract == "auto":
            return marked(completion)
        if self._extract == "whole":
            return Answer(completion, "as the whole text")
        return MARKERS[self._extract](completion) if self._extract in MARKERS else None

    def _absent(self) -> Verdict:
        return Verdict.of(False, f"the completion has no {MARKS[self._extract]}")


CASES = (
    Case(Candidate("3 + 4 = 7\n#### 7", reference="7"), passes=True),
    Case(Candidate("3 + 4 = 8\n#### 8", reference="7"), passes=False),
    Case(Candidate(r"so \boxed{\frac{3}{4}}", reference="0.75"), passes=True),
    Case(Candidate("答案是1,000元。", reference="1000"), passes=True),
    Case(Candidate("The answer is Paris.", reference="paris"), passes=True),
    Case(Candidate("It is 7, or 8.", reference="7"), passes=False),
    Case(Candidate("about 7.1", reference="7"), passes=True, params={"tolerance": 0.2}),
)

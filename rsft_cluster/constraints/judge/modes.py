"""The two modes of judging: by a rubric, or against another answer."""

import math
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from rsft_cluster.config.parts import Part
from rsft_cluster.constraints.base import Candidate, Verdict
from rsft_cluster.constraints.judge.answers import Answer, AnswerAs, choice, numeric
from rsft_cluster.constraints.judge.framing import Question, conversation, question

_ORDERS = {1.0: "first", 0.0: "neither", -1.0: "second"}


class Rubric(Part):
    """Instructions and a scale."""

    instructions: str = Field(min_length=1)
    """What to judge, and what a low and a high score mean; or a question to which yes is the good answer."""
    scale: tuple[float, float] | Literal["yes_no"] = (1.0, 10.0)
    """Lowest and highest score, which become 0 and 1; or `yes_no`."""
    at_least: float | None = None
    """Lowest score that passes, on the scale; `yes_no` has none, as yes passes."""
    with_reference: bool = False
    """Show the judge the reference; a candidate without one is an error."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.scale == "yes_no":
            if self.at_least is not None:
                raise ValueError("at_least belongs to a scale of numbers; with yes_no, yes passes")
            return self
        low, high = self.scale
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"scale is {self.scale}; give two numbers, the lower one first")
        if self.at_least is None or not low <= self.at_least <= high:
            raise ValueError(
                f"at_least is {self.at_least}; give the lowest score that passes, on the scale {self.scale}"
            )
        return self

    def questions(self, candidate: Candidate, answer_as: AnswerAs) -> list[Question]:
        """Return the question about a candidate; raises LookupError without a reference where one is shown."""
        shown = {"prompt": conversation(candidate)}
        if self.with_reference:
            shown["reference"] = _reference(candidate)
        shown["answer"] = candidate.completion
        form = choice("score", {"yes": 1.0, "no": 0.0}) if self.scale == "yes_no" else numeric(*self.scale)
        return [question(self.instructions, shown, form, answer_as)]

    def verdict(self, answers: Sequence[Answer]) -> Verdict:
        """Return the verdict of the answer."""
        (answer,) = answers
        if self.scale == "yes_no":
            return Verdict.of(answer.value == 1.0, _with_reason("yes" if answer.value else "no", answers))
        low, high = self.scale
        passed = self.at_least is not None and answer.value >= self.at_least
        summary = f"{answer.value:g} on {low:g} to {high:g}, at least {self.at_least:g} asked"
        return Verdict((answer.value - low) / (high - low), passed, _with_reason(summary, answers))


class Pairwise(Part):
    """Instructions by which the candidate is compared with another answer, twice, with the order swapped.

    A candidate that wins, or loses, in both orders scores 1, or 0; all else is a tie, 0.5.
    """

    instructions: str = Field(
        default="Which of the two answers to the prompt is better: more correct, more helpful, clearer?", min_length=1
    )
    baseline: str | None = None
    """Attribute of the prompt that holds the other answer; by default it is the reference."""
    ties_pass: bool = False

    def questions(self, candidate: Candidate, answer_as: AnswerAs) -> list[Question]:
        """Return two questions, with the candidate first and second; raises LookupError without a baseline."""
        if self.baseline is not None and self.baseline not in candidate.attributes:
            raise LookupError(f"the prompt has no attribute {self.baseline!r}, which pairwise.baseline names")
        other = _reference(candidate) if self.baseline is None else candidate.attributes[self.baseline]
        form = choice("winner", {"first": 1.0, "second": -1.0, "tie": 0.0})
        prompt = conversation(candidate)
        return [
            question(self.instructions, {"prompt": prompt, "first": first, "second": second}, form, answer_as)
            for first, second in ((candidate.completion, other), (other, candidate.completion))
        ]

    def verdict(self, answers: Sequence[Answer]) -> Verdict:
        """Return the verdict of the answers to both orders."""
        forwards, swapped = answers
        if forwards.value == -swapped.value != 0:
            summary = "better in both orders" if forwards.value > 0 else "worse in both orders"
            return Verdict.of(forwards.value > 0, _with_reason(summary, answers))
        first, second = _ORDERS[forwards.value], _ORDERS[-swapped.value]
        summary = "a tie" if forwards.value == swapped.value == 0 else f"orders disagree: {first}, swapped {second}"
        return Verdict(0.5, self.ties_pass, _with_reason(summary, answers))


def _reference(candidate: Candidate) -> str:
    if candidate.reference is None:
        raise LookupError("the prompt has no reference to judge by")
    return candidate.reference


def _with_reason(summary: str, answers: Sequence[Answer]) -> str:
    reason = next((a.reason for a in answers if a.reason), "")
    return f"{summary}: {reason}" if reason else summary

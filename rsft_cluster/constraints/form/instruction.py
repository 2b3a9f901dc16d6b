"""`Instruction`: the completion follows instructions that can be checked, those of IFEval (arXiv 2311.07911).

Ids and arguments are those of its 25 kinds, see `_instructions`:

    params: {instructions: [{id: "length_constraints:number_words", num_words: 50, relation: less than}]}

or, where each prompt has its own, the same list as JSON in an attribute of the prompt.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.constraints.form._instructions import Check, InstructionError, bind_instruction
from rsft_cluster.constraints.parts import Part, judged
from rsft_cluster.constraints.text._languages import load_model
from rsft_cluster.errors import ConfigError


class Instruction:
    """Pass completions that follow all `instructions`; the score is the share of them that is followed.

    Without `instructions` they are read from the `attribute` of each prompt; a prompt without it is an error. With
    `loose` an instruction is followed also if the text without its first line, last line, or asterisks follows it: the
    paper's loose accuracy. Judged is one `part` of the completion: the answer, the thinking, or all.
    """

    def __init__(
        self,
        *,
        instructions: Sequence[Mapping[str, Any]] = (),
        attribute: str = "instructions",
        loose: bool = False,
        part: Part = "answer",
    ) -> None:
        try:
            self._checks = [bind_instruction(instruction) for instruction in instructions]
        except InstructionError as error:
            raise ConfigError(f"instruction: instructions: {error}") from error
        self._attribute, self._loose = attribute, loose
        self._part: Part = part

    def prepare(self) -> None:
        """Load the language detector, once for all processes."""
        load_model()

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate; raises ValueError where its prompt has no instructions that can be read."""
        return [judged(one.completion, self._part, partial(self._judge, one)) for one in candidates]

    def _judge(self, candidate: Candidate, text: str) -> Verdict:
        checks = self._checks or self._own(candidate)
        texts = _variants(text) if self._loose else [text]
        texts = [text for text in texts if text.strip()]
        missed = [name for name, check in checks if not any(map(check, texts))]
        num_followed = len(checks) - len(missed)
        reason = f"{num_followed} of {len(checks)} instructions followed{', not ' if missed else ''}{', '.join(missed)}"
        return Verdict(num_followed / len(checks), not missed, reason)

    def _own(self, candidate: Candidate) -> list[tuple[str, Check]]:
        """Return the checks that the candidate's prompt asks for."""
        where = f"prompt {candidate.prompt_id!r}, attribute {self._attribute!r}"
        try:
            listed = json.loads(candidate.attributes[self._attribute])
        except KeyError as error:
            raise ValueError(f"{where}: there is none, and the constraint has no instructions of its own") from error
        except ValueError as error:
            raise ValueError(f"{where}: not JSON: {error}") from error
        if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
            raise ValueError(f"{where}: not a list of objects like {{'id': 'punctuation:no_comma'}}")
        return [bind_instruction(one) for one in listed]


def _variants(text: str) -> list[str]:
    """Return the text with and without first line, last line, and asterisks."""
    lines = text.split("\n")
    parts = ["\n".join(part).strip() for part in (lines, lines[1:], lines[:-1], lines[1:-1])]
    return [text, *parts, *(part.replace("*", "") for part in parts)]


def _one(name: str, **arguments: object) -> dict[str, object]:
    return {"instructions": [{"id": name, **arguments}]}


_SHORT = _one("length_constraints:number_words", num_words=5, relation="less than")
_ASKED = {"instructions": '[{"id": "punctuation:no_comma"}, {"id": "startend:end_checker", "end_phrase": "Bye."}]'}

CASES = (
    Case(Candidate("It is a cat."), passes=True, params=_SHORT),
    Case(Candidate("It is not a cat at all."), passes=False, params=_SHORT),
    Case(Candidate("这是一只猫。"), passes=False, params=_SHORT),
    Case(Candidate("No commas here. Bye.", attributes=_ASKED), passes=True),
    Case(Candidate("Well, bye.", attributes=_ASKED), passes=False),
    Case(Candidate("Sure, here:\nno commas"), passes=False, params=_one("punctuation:no_comma")),
    Case(Candidate("Sure, here:\nno commas"), passes=True, params={**_one("punctuation:no_comma"), "loose": True}),
    Case(Candidate("", attributes=_ASKED), passes=False),
)

"""The contract of a constraint.

A constraint is a function of one candidate, parameters by keyword:

    def ends_with_a_digit(candidate: Candidate, *, at_least: int = 1) -> bool:
        return candidate.completion[-at_least:].isdigit()

It returns a bool, a float in [0, 1] (passed at 1.0), or a `Verdict`. Where state or batches pay, it is a class:

    class MaxWords:
        def __init__(self, *, limit: int) -> None:
            self.limit = limit

        def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
            return [Verdict.of(len(c.completion.split()) <= self.limit) for c in candidates]

`__init__` checks parameters and stays cheap: it also runs where the config is checked. Heavy things (a model)
are loaded at the first `judge`. Raising means "cannot tell": the candidate gets an error, never a score. Where `judge`
raises, a batch is judged again one by one; to save that, it may return the error in the place of a verdict.

Constraints run in processes that are killed when a call takes longer than `timeout_s`; a class judges one candidate per
call there, unless it gains from more and sets `batch_size = 64`. Its `prepare()`, if it has one, is called before: it
loads what is slow to load, once for all processes. A class with a deadline of its own sets `longest_s`, the seconds
after which it has certainly ended, and is not killed before. A class that holds a model or talks to a server sets
`isolated = False`: it is built once in the scoring actor, gets a unit's candidates in one call, and bounds its own
time.

A module's `CASES` are its inline tests: candidates that must pass and must fail. They are judged by the tests, by
`rsft constraints test`, and by every scoring worker before it starts.

    CASES = (Case(Candidate("in 1969"), passes=True), Case(Candidate("long ago"), passes=False))
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

from rsft_cluster.schemas import Message


@dataclass(frozen=True, slots=True)
class Candidate:
    """One completion of one prompt, as a constraint sees it."""

    completion: str
    messages: Sequence[Message] = ()
    reference: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    finish_reason: str = "stop"
    """`stop` when the policy ended the completion itself, `length` when it was cut off."""
    num_tokens: int = 0
    index: int = 0
    candidate_id: str = ""
    prompt_id: str = ""

    @property
    def prompt(self) -> str:
        """The content of the last message: what the completion answers."""
        return self.messages[-1].content if self.messages else ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict of a constraint on a candidate: a finite score in [0, 1], passed or not, and why."""

    score: float
    passed: bool
    reason: str = ""
    fatal_at: int | None = None
    """Index of the character of the completion that made it wrong whatever followed; None where the constraint does not
    know. Training can unlearn exactly that (`training.unlikelihood`), and adaptive sampling never again draws what
    begins so: it has to hold whatever follows."""

    def __post_init__(self) -> None:
        if self.fatal_at is not None and self.fatal_at < 0:
            raise ValueError(f"fatal_at counts characters from 0, not {self.fatal_at!r}")
        if not (math.isfinite(self.score) and 0.0 <= self.score <= 1.0):
            raise ValueError(f"a score is finite and in [0, 1], not {self.score!r}")

    @classmethod
    def of(cls, passed: bool, reason: str = "") -> Self:  # noqa: FBT001 the verdict is the argument
        """Return the verdict of a yes-or-no constraint."""
        return cls(1.0 if passed else 0.0, passed, reason)


@dataclass(frozen=True, slots=True)
class Case:
    """A candidate with a known verdict, under some parameters of the constraint that it stands beside.

    A module with several constraints keeps a mapping from the attribute to its cases in `CASES`.
    """

    candidate: Candidate
    passes: bool
    params: Mapping[str, Any] = field(default_factory=dict)
    """Parameters that the constraint is built with."""


@runtime_checkable
class BatchConstraint(Protocol):
    """A constraint with state: judges candidates in batches, one verdict each, in order."""

    def judge(self, candidates: Sequence[Candidate]) -> Sequence[Verdict | Exception]:
        """Return one verdict per candidate, in the same order."""
        ...

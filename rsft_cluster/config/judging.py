"""`scoring:`, `acceptance:` and `fairness:`: what is kept of the answers, and why."""

import re
from itertools import product
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rsft_cluster.config.parts import ConstraintField, Part, Plugin, PluginField, Workers


class CanaryConfig(Part):
    """A candidate whose verdict is known; judging it wrongly stops the run."""

    completion: str
    """What is judged."""
    passes: bool
    """Whether it has to pass."""
    constraint: str | None = None
    """The constraint that judges it, by its name; by default all of them together."""
    prompt: str = ""
    """The prompt that it answers."""
    reference: str | None = None
    """The prompt's reference answer."""
    attributes: dict[str, str] = {}
    """The prompt's attributes."""
    finish_reason: Literal["stop", "length"] = "stop"
    """How the completion ended."""
    num_tokens: int = Field(default=1, ge=0)
    """How many tokens it has."""


class ScoringConfig(Part):
    """How candidates are judged."""

    constraints: tuple[ConstraintField, ...] = Field(min_length=1)
    """All of them judge every candidate."""
    workers: Workers = 1
    """Scoring actors: a number, or {min, max}."""
    num_cpus: float = Field(default=1, gt=0)
    """CPUs an actor."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs an actor, for constraints that hold a model; parts of one may be shared (0.25)."""
    max_error_rate: float = Field(default=0.01, ge=0, le=1)
    """The run stops when more than this share of the verdicts are errors."""
    process_memory_bytes: int = Field(default=4 * 2**30, ge=2**28)
    """Memory that a process which runs constraints may take; what asks for more gets an error."""
    audit_share: float = Field(default=0, ge=0, le=1)
    """Share of the candidates that is judged twice; constraints that disagree with themselves are reported."""
    canaries: tuple[CanaryConfig, ...] = ()
    """Judged in every scoring worker before it starts, and again with every unit: one that is wrong stops the run."""

    @model_validator(mode="after")
    def _canaries_are_judged(self) -> Self:
        names = [c.name for c in self.constraints]
        if not any(c.counts for c in self.constraints):
            raise ValueError("no constraint counts: at least one has to be required or to weigh more than 0")
        for i, canary in enumerate(self.canaries):
            if canary.constraint is not None and canary.constraint not in names:
                raise ValueError(f"canaries.{i}.constraint is {canary.constraint!r}; the constraints are {names}")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [c.name for c in self.constraints]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"constraints share the name {twice}; give each its own `name`")
        return self


class AcceptanceConfig(Part):
    """Which candidates become training examples."""

    rule: PluginField = Plugin(use="all_passed")
    """The acceptance rule."""
    max_per_prompt: int | None = Field(default=None, ge=1)
    """The most candidates kept of a prompt; `prefer` decides which."""
    dedupe: bool = True
    """Keep one of several candidates with the same token ids, the one with the lowest index."""
    near_duplicates: float | None = Field(default=None, gt=0, le=1)
    """Drop also a candidate whose text is at least so similar to one of a lower index (1 - edit distance / length)."""
    prefer: Literal["index", "score", "diverse"] = "index"
    """Which ones `max_per_prompt` keeps: the lowest indices, which leaves the rule's target as it is; the best scores,
    ties by index; or, the best-scored first, those farthest from each other by edit distance."""
    drop_all_passed: bool = False
    """Keep nothing of a prompt whose candidates all passed: there is nothing left to learn from it."""
    schedule: dict[str, Annotated[tuple[float, ...], Field(min_length=1)]] = {}
    """Parameters of the rule that change from round to round: a list each, whose last value holds on."""
    min_accepted: int = Field(default=1, ge=1)
    """Fewer accepted candidates than this in a round end the run with exit code 65."""


class FairnessConfig(Part):
    """What decisions may not depend on, and how that is seen to."""

    protected: dict[str, tuple[str, ...]] = Field(min_length=1)
    """Protected attributes of the prompts and their values, like `gender: [female, male]`."""
    decision: str
    """Regular expression whose first group is the decision in a completion."""
    positive: str
    """The decision that is to the applicant's advantage."""
    swaps: Literal["none", "ask", "agree"] = "agree"
    """`ask`: ask each prompt under every combination of protected values; prompts hold `{gender}` where the value
    stands. `agree`: keep candidates of one index, moreover, only if all of them passed and all decisions agree.
    `none`: prompts and their attributes are as given."""
    cells: Literal["none", "demographic_parity", "equalised_odds"] = "none"
    """Weigh acceptance by cell of protected values so that decisions become independent of them, for equalised odds
    given the merit."""
    merit: str | None = None
    """Attribute of the prompts with the right decision, where it is known: needed for equalised odds, otherwise only
    reported on."""
    min_cell: int = Field(default=30, ge=1)
    """Fewer candidates than this in a cell, of those that would be kept without weights, stop the round: weights of so
    few mean nothing."""

    @property
    def combinations(self) -> tuple[dict[str, str], ...]:
        """Every combination of protected values, in a fixed order."""
        return tuple(dict(zip(self.protected, values, strict=True)) for values in product(*self.protected.values()))

    @property
    def num_swaps(self) -> int:
        """How many prompts are made of one."""
        return len(self.combinations) if self.swaps != "none" else 1

    @property
    def decides(self) -> bool:
        """Whether acceptance depends on it; else decisions are only reported on."""
        return self.swaps == "agree" or self.cells != "none"

    def observing(self) -> Self:
        """Return the same without any effect on acceptance."""
        return self.model_copy(update={"swaps": "none", "cells": "none"})

    @model_validator(mode="after")
    def _decision_is_found(self) -> Self:
        try:
            num_groups = re.compile(self.decision).groups
        except re.error as error:
            raise ValueError(f"decision {self.decision!r} is no regular expression: {error}") from error
        if not num_groups:
            raise ValueError(f"decision {self.decision!r} has no group; put parentheses around the decision itself")
        return self

    @model_validator(mode="after")
    def _values_differ(self) -> Self:
        for name, values in self.protected.items():
            if len(set(values)) < 2 or len(set(values)) != len(values):
                raise ValueError(f"protected.{name} needs at least two different values, got {list(values)}")
        return self

    @model_validator(mode="after")
    def _merit_is_known(self) -> Self:
        if self.cells == "equalised_odds" and self.merit is None:
            raise ValueError("cells: equalised_odds needs `merit`, the attribute with the right decision")
        return self

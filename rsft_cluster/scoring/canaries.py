"""Canaries: candidates with a known verdict, judged in every scoring actor before it starts and beside every unit.

Two kinds: those of the config (`scoring.canaries`), judged under the run's own parameters, and the inline cases that
constraints bring along. A constraint that cannot work where it runs is found out before it has judged anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rsft_cluster.config import ScoringConfig
from rsft_cluster.config.parts import Constraint
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.constraints.building import cases_of
from rsft_cluster.errors import StageError
from rsft_cluster.schemas import Message


@dataclass(frozen=True)
class Canary:
    """A candidate and what must be said of it."""

    candidate: Candidate
    passes: bool
    number: int | None
    """Of the constraint that judges it; None for all of them together."""
    constraint: str


def configured(scoring: ScoringConfig) -> list[Canary]:
    """Return the canaries of the config."""
    numbers = {c.name: i for i, c in enumerate(scoring.constraints)}
    return [
        Canary(
            Candidate(
                completion=one.completion,
                messages=(Message("user", one.prompt),),
                reference=one.reference,
                attributes=one.attributes,
                finish_reason=one.finish_reason,
                num_tokens=one.num_tokens,
                candidate_id="canary",
                prompt_id="canary",
            ),
            one.passes,
            None if one.constraint is None else numbers[one.constraint],
            one.constraint or "all constraints together",
        )
        for one in scoring.canaries
    ]


def inline(constraints: Sequence[Constraint]) -> tuple[list[Canary], list[Constraint]]:
    """Return the inline cases of constraints, and the constraints with the parameters that these want.

    Numbers go on behind those of `constraints`.
    """
    variants: list[Constraint] = []
    canaries: list[Canary] = []
    for constraint in constraints:
        for case in cases_of(constraint):
            variant = constraint.model_copy(update={"params": dict(case.params), "when": {}})
            if variant not in variants:
                variants.append(variant)
            number = len(constraints) + variants.index(variant)
            canaries.append(Canary(case.candidate, case.passes, number, constraint.name))
    return canaries, variants


def check(canary: Canary, passed: bool | None, reason: str) -> None:  # noqa: FBT001 what was said of it
    """Raise StageError where a canary was judged otherwise than is known of it, or not at all."""
    if passed is canary.passes:
        return
    said = {True: "passed", False: "did not pass", None: "could not be judged"}[passed]
    raise StageError(
        f"canary of {canary.constraint}: {canary.candidate.completion[:200]!r} {said}, "
        f"expected was that it {'passes' if canary.passes else 'does not'}. It was said: {reason}"
    )

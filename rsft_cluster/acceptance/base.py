"""The contract of an acceptance rule.

A rule is a pure function from judged candidates to acceptance probabilities:

    @rule(target="the policy, restricted to candidates that passed", scope="candidate")
    def all_passed(judged: pa.Table) -> pa.Array:
        return passed(judged).cast(pa.float64())

`judged` has the columns of JUDGED, rows in any order. `scope` says how much a rule must see at once: `candidate` where
a row's probability depends on that row alone, `group` where on all candidates of its prompt, `round` where on all of
the round. A candidate is kept when its stored uniform u is below its probability. Probabilities are in [0, 1], and 0
for whatever did not pass, except in `everything`, the control without rejection.

`target` is the distribution that what is kept follows; `{name}` in it stands for a parameter. A rule that chooses a
number by itself (a beta for a wanted rate) returns `Chosen`, and the number is recorded in the manifest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rsft_cluster.config import SamplingConfig

P = ParamSpec("P")
Scope = Literal["candidate", "group", "round"]

JUDGED = pa.schema(
    [
        ("candidate_id", pa.string()),
        ("prompt_id", pa.string()),
        ("index", pa.int32()),
        ("score", pa.float64()),
        ("passed", pa.bool_()),
        ("num_tokens", pa.int32()),
        ("logprob", pa.float64()),
        ("target_logprob", pa.float64()),
        ("survival", pa.float64()),
        ("content", pa.string()),
        ("decision", pa.string()),
        ("attributes", pa.map_(pa.string(), pa.string())),
        ("text", pa.string()),
        ("u", pa.float64()),
    ]
)
"""What a decision may look at. `content` is a digest of the token ids; score and passed are null after an error;
`text` is there where near duplicates or distances are asked for, `decision` and `attributes` where fairness is."""


@dataclass(frozen=True)
class Chosen:
    """Probabilities, and the numbers that a rule chose by looking at the candidates."""

    probabilities: pa.Array
    numbers: Mapping[str, float] = field(default_factory=dict)


Answer = pa.Array | pa.ChunkedArray | Chosen


class Rule(Protocol):
    """An acceptance rule: callable, and it says what it aims at."""

    scope: Scope
    target: str
    suits: Callable[[SamplingConfig], str | None]
    needs: tuple[str, ...]

    def __call__(self, judged: pa.Table, **params: Any) -> Answer:
        """Return one acceptance probability a row."""
        ...


def rule(
    *,
    target: str,
    scope: Scope = "group",
    suits: Callable[[SamplingConfig], str | None] = lambda _: None,
    needs: tuple[str, ...] = (),
) -> Callable[[Callable[P, Answer]], Callable[P, Answer]]:
    """Declare a function as an acceptance rule: the distribution it targets, and how much it must see at once.

    `suits` returns why the rule cannot be used on candidates sampled in that way, or None. `needs` names the columns
    of JUDGED that it cannot do without and that candidates from elsewhere may lack.
    """

    def declare(function: Callable[P, Answer]) -> Callable[P, Answer]:
        declared = cast("Any", function)
        declared.target = target
        declared.scope = scope
        declared.suits = suits
        declared.needs = needs
        return function

    return declare


def passed(judged: pa.Table) -> pa.ChunkedArray:
    """Return which rows passed, errors counting as not passed."""
    return pc.fill_null(judged.column("passed"), False)


def scores(judged: pa.Table) -> pa.ChunkedArray:
    """Return the scores, errors as 0: use only together with `passed`."""
    return pc.fill_null(judged.column("score"), 0.0)


def tilted(log_weights: NDArray[np.float64], keep: NDArray[np.bool_]) -> pa.Array:
    """Return exp(min(0, log weight)) where `keep` is set, else 0."""
    # 0 stands in where nothing is kept: exp of what is not used must not overflow or underflow.
    exponents = np.where(keep, np.minimum(log_weights, 0.0), 0.0)
    return pa.array(np.where(keep, np.exp(exponents), 0.0))

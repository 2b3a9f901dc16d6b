"""The contract of an acceptance rule.

A rule is a pure function from the judged candidates of one or more groups to acceptance probabilities:

    @rule(target="the policy, restricted to candidates that passed")
    def all_passed(judged: pa.Table) -> pa.Array:
        return passed(judged).cast(pa.float64())

`judged` has the columns of JUDGED, the groups whole, rows in any order. A candidate is kept when its stored
uniform u is below its probability. Probabilities are in [0, 1], and 0 for whatever did not pass, except in
`everything`, the control without rejection.
"""

from collections.abc import Callable
from typing import Any, Literal, ParamSpec, Protocol, cast

import pyarrow as pa
import pyarrow.compute as pc

P = ParamSpec("P")
Scope = Literal["group"]

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
        ("content", pa.string()),
        ("u", pa.float64()),
    ]
)
"""What a rule may look at. `content` is a digest of the token ids; score and passed are null after an error."""


class Rule(Protocol):
    """An acceptance rule: callable, and it says what it aims at."""

    scope: Scope
    target: str

    def __call__(self, judged: pa.Table, **params: Any) -> pa.Array:
        """Return one acceptance probability a row."""
        ...


def rule(*, target: str, scope: Scope = "group") -> Callable[[Callable[P, pa.Array]], Callable[P, pa.Array]]:
    """Declare a function as an acceptance rule: the distribution it targets, and how much it must see at once."""

    def declare(function: Callable[P, pa.Array]) -> Callable[P, pa.Array]:
        declared = cast("Any", function)
        declared.target = target
        declared.scope = scope
        return function

    return declare


def passed(judged: pa.Table) -> pa.ChunkedArray:
    """Return which rows passed, errors counting as not passed."""
    return pc.fill_null(judged.column("passed"), False)


def scores(judged: pa.Table) -> pa.ChunkedArray:
    """Return the scores, errors as 0: use only together with `passed`."""
    return pc.fill_null(judged.column("score"), 0.0)

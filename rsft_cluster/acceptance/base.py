"""The contract of an acceptance rule.

A rule is a pure function from judged candidates to acceptance probabilities:

    @rule(target="the policy, restricted to candidates that passed", scope="candidate")
    def all_passed(judged: pa.Table) -> pa.Array:
        return passed(judged).cast(pa.float64())

`judged` has the columns of JUDGED, rows in any order. `scope` says how much a rule must see at once: `candidate` where
a row's probability depends on that row only, `group` where on all candidates of its prompt, `round` where on all of
the round. A candidate is kept when its stored uniform u is below its probability. Probabilities are in [0, 1], and 0
for whatever did not pass, except in `everything`, the control without rejection.

`target` is the distribution that what is kept follows; `{name}` in it stands for a parameter. A rule that chooses a
number by itself (a beta for a given acceptance rate) returns `Chosen`, and the number is recorded in the manifest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rsft_cluster.config import SamplingConfig
from rsft_cluster.plugins import Bound

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
`text` is filled in only for near duplicates and distances, `decision` and `attributes` only for fairness."""


@dataclass(frozen=True)
class Chosen:
    """Probabilities, and the numbers that a rule chose by looking at the candidates."""

    probabilities: pa.Array
    numbers: Mapping[str, float] = field(default_factory=dict)


Answer = pa.Array | pa.ChunkedArray | Chosen


Setting = Mapping[str, Any]
"""Keys of `acceptance` that a preview changes: `params`, those of the rule; `rule`, another rule; `max_per_prompt`."""
Previews = Callable[[Mapping[str, Any], int], Sequence[Setting]]
"""Settings worth a look beside the current one, given the rule's parameters and a prompt's number of candidates."""


class Rule(Protocol):
    """An acceptance rule: callable, and it says what it is. `rule` explains each declaration."""

    scope: Scope
    target: str
    suits: Callable[[SamplingConfig], str | None]
    needs: tuple[str, ...]
    previews: Previews
    threshold: str | None
    all_or_none: bool
    rejects: bool

    def __call__(self, judged: pa.Table, **params: Any) -> Answer:
        """Return one acceptance probability a row."""
        ...


def rule(
    *,
    target: str,
    scope: Scope = "group",
    suits: Callable[[SamplingConfig], str | None] = lambda _: None,
    needs: tuple[str, ...] = (),
    previews: Previews = lambda _params, _num_candidates: (),
    threshold: str | None = None,
    all_or_none: bool = False,
    rejects: bool = True,
) -> Callable[[Callable[P, Answer]], Callable[P, Answer]]:
    """Declare a function as an acceptance rule: the distribution it targets, and how much it must see at once.

    - `suits` returns why the rule cannot be used on candidates sampled in that way, or None.
    - `needs` names the columns of JUDGED that it cannot do without and that candidates from elsewhere may lack.
    - `previews` returns the settings that `rsft preview` tries beside the current one; `scaled` and `among` make some.
    - `threshold` names the parameter below which a score is not kept, which a pilot may set.
    - `all_or_none` says that candidates with equal verdicts are all kept or all left: nothing is drawn by lot.
    - `rejects` is False where whatever has a verdict is kept.
    """

    def declare(function: Callable[P, Answer]) -> Callable[P, Answer]:
        declared = cast("Any", function)
        declared.target = target
        declared.scope = scope
        declared.suits = suits
        declared.needs = needs
        declared.previews = previews
        declared.threshold = threshold
        declared.all_or_none = all_or_none
        declared.rejects = rejects
        return function

    return declare


def rule_of(bound: Bound) -> Rule:
    """Return a bound rule with what it declares."""
    return cast("Rule", bound.load())


def scaled(name: str, factors: Sequence[float] = (0.25, 0.5, 2.0, 4.0)) -> Previews:
    """Return previews that multiply a parameter by each factor; none where it has no value."""

    def previews(params: Mapping[str, Any], _num_candidates: int) -> list[Setting]:
        value = params.get(name)
        return [] if value is None else [{"params": {name: round(value * factor, 6)}} for factor in factors]

    return previews


def among(name: str, values: Sequence[float], *, at_most_candidates: bool = False) -> Previews:
    """Return previews that set a parameter, where it has a value, to others; `at_most_candidates` bounds them."""

    def previews(params: Mapping[str, Any], num_candidates: int) -> list[Setting]:
        value = params.get(name)
        allowed = [v for v in values if not at_most_candidates or v <= num_candidates]
        return [] if value is None else [{"params": {name: other}} for other in allowed if other != value]

    return previews


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

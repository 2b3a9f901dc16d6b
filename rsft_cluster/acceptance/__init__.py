"""Acceptance: which judged candidates become training examples. JUDGED -> probability, accepted, reason.

A rule gives each candidate a probability; `decide` compares it with the candidate's stored u, drops repeats
and applies the cap. Pure and independent of row order, so deciding again on stored facts gives the same
answer.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rsft_cluster import config
from rsft_cluster.acceptance.base import JUDGED
from rsft_cluster.acceptance.groups import codes, first_in_group, rank_in_group
from rsft_cluster.errors import PluginError, SchemaError, StageError
from rsft_cluster.plugins import Bound, bind

Flags = NDArray[np.bool_]

DECIDED = pa.schema(
    [
        pa.field("candidate_id", pa.string(), nullable=False),
        pa.field("acceptance_probability", pa.float64(), nullable=False),
        pa.field("accepted", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""What `decide` returns, one row a candidate."""


def bind_rule(acceptance: config.AcceptanceConfig) -> Bound:
    """Return the acceptance rule bound to its parameters; PluginError where it is none."""
    bound = bind(acceptance.rule, "acceptance_rules", num_leading=1)
    attribute = bound.load()
    undeclared = [name for name in ("target", "scope") if not isinstance(getattr(attribute, name, None), str)]
    if undeclared:
        raise PluginError(
            f"{acceptance.rule.use}: declares no {' and no '.join(undeclared)}; "
            'an acceptance rule is decorated with @rule(target="...") of rsft_cluster.acceptance.base'
        )
    return bound


def decide(judged: pa.Table, rule: Bound, *, max_per_prompt: int | None, dedupe: bool) -> pa.Table:
    """Return DECIDED, in the order of the rows of `judged`, whose groups must be whole.

    A candidate is accepted when its u is below the probability that the rule gives; then, of several with
    the same tokens in a prompt the one of lowest index stays; then the `max_per_prompt` best by score, ties
    by index. What could not be judged is never accepted.
    """
    judged = _judged(judged)
    probability = _probabilities(rule, judged)
    usable = _numpy(judged, "passed", is_valid=True)
    probability[~usable] = 0.0
    drawn: Flags = _numpy(judged, "u") < probability
    accepted, original = _without_repeats(judged, drawn) if dedupe else (drawn, None)
    kept = _within_cap(judged, accepted, max_per_prompt)
    reasons = _reasons(judged, probability)
    if original is not None:
        reasons = pc.if_else(drawn & ~accepted, _repeat_reasons(judged, original), reasons)
    reasons = pc.if_else(accepted & ~kept, f"over the cap of {max_per_prompt}", reasons)
    reasons = pc.if_else(kept, "kept", reasons)
    columns = [judged.column("candidate_id"), pa.array(probability), pa.array(kept), reasons]
    return pa.table(columns, schema=DECIDED)


def _judged(table: pa.Table) -> pa.Table:
    missing = [name for name in JUDGED.names if name not in table.column_names]
    if missing:
        raise SchemaError(f"judged: missing columns {missing}; expected {JUDGED.names}")
    return table.select(JUDGED.names).cast(JUDGED)


def _probabilities(rule: Bound, judged: pa.Table) -> NDArray[np.float64]:
    """Return what the rule says, checked: one finite number in [0, 1] a row."""
    found = rule(judged)
    if not isinstance(found, pa.Array | pa.ChunkedArray):
        raise StageError(f"rule {rule.use}: returned a {type(found).__name__}, expected a pyarrow array")
    if len(found) != judged.num_rows:
        raise StageError(f"rule {rule.use}: returned {len(found)} probabilities for {judged.num_rows} candidates")
    if not (pa.types.is_floating(found.type) or pa.types.is_integer(found.type)) or found.null_count:
        raise StageError(
            f"rule {rule.use}: returned {found.type} with {found.null_count} nulls, expected float64 without"
        )
    probability = np.array(found.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    wrong = np.flatnonzero(~((probability >= 0.0) & (probability <= 1.0)))
    if len(wrong):
        place = judged.column("candidate_id")[int(wrong[0])]
        raise StageError(
            f"rule {rule.use}: {len(wrong)} probabilities are not in [0, 1], the first "
            f"being {probability[wrong[0]]} for candidate {place}"
        )
    return probability


def _without_repeats(judged: pa.Table, drawn: Flags) -> tuple[Flags, NDArray[np.int64]]:
    """Return which drawn rows are first of their tokens, and for every row the index of that first."""
    index = _numpy(judged, "index")
    same = codes(judged, "prompt_id", "content")
    first = first_in_group(same, (~drawn, index))
    return drawn & (first == np.arange(len(first))), index[first]


def _within_cap(judged: pa.Table, accepted: Flags, max_per_prompt: int | None) -> Flags:
    if max_per_prompt is None:
        return accepted
    prompts = codes(judged, "prompt_id")
    best_first = -np.nan_to_num(_numpy(judged, "score"))
    rank = rank_in_group(prompts, (~accepted, best_first, _numpy(judged, "index")))
    return accepted & (rank < max_per_prompt)


def _reasons(judged: pa.Table, probability: NDArray[np.float64]) -> pa.ChunkedArray:
    """Return, for every row, why it would not be drawn."""
    drew = pc.binary_join_element_wise(
        "u",
        pc.round(judged.column("u"), 3).cast(pa.string()),
        "is not below the probability",
        pc.round(pa.array(probability), 3).cast(pa.string()),
        " ",
    )
    reasons = pc.if_else(probability > 0.0, drew, "the rule gives it probability 0")
    failed = pc.and_(pc.invert(judged.column("passed")), pa.array(probability == 0.0))
    return pc.if_else(judged.column("passed").is_null(), "error", pc.if_else(failed, "not passed", reasons))


def _repeat_reasons(judged: pa.Table, original: NDArray[np.int64]) -> pa.Array:
    return pc.binary_join_element_wise("same tokens as candidate index", pa.array(original).cast(pa.string()), " ")


def _numpy(judged: pa.Table, name: str, *, is_valid: bool = False) -> NDArray:
    column = judged.column(name)
    return (column.is_valid() if is_valid else column).to_numpy()

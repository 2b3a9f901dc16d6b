"""Verdicts of many candidates as arrays: a row a candidate, a column a constraint."""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

PASSED, FAILED, ERROR, SILENT, ABSENT = 1, 0, -1, -2, -3
"""SILENT: neither score nor error, it does not apply to this prompt. ABSENT: there is no verdict of this name."""
TIMEOUT = r"(?m)^[\w.]*[Tt]ime[Oo]ut\w*(:|$)"
"""The exception named by the error of a constraint that took too long: `TimeoutError: ...`, `httpx.ReadTimeout`."""


@dataclass(frozen=True)
class Verdicts:
    """Verdicts as (candidates, constraints) arrays."""

    state: NDArray[np.int8]
    score: NDArray[np.float64]
    """NaN where there is none."""
    duration_s: NDArray[np.float64]
    """NaN where there is no verdict, or a silent one."""
    timed_out: NDArray[np.bool_]


def verdicts_of(scores: pa.Table, names: Sequence[str]) -> Verdicts:
    """Return the verdicts of SCORE rows, a column for each of the named constraints."""
    lists = scores.column("verdicts").combine_chunks()
    rows = pc.list_parent_indices(lists).to_numpy()
    flat = lists.flatten()
    columns = pc.fill_null(pc.index_in(flat.field("constraint"), value_set=pa.array(names)), -1).to_numpy()
    is_named = columns >= 0
    at = (rows[is_named], columns[is_named])
    shape = (scores.num_rows, len(names))

    passed, error = flat.field("passed"), flat.field("error")
    state = np.full(len(flat), SILENT, dtype=np.int8)
    state[pc.fill_null(passed, False).to_numpy(zero_copy_only=False)] = PASSED
    state[pc.fill_null(pc.invert(passed), False).to_numpy(zero_copy_only=False)] = FAILED
    state[error.is_valid().to_numpy(zero_copy_only=False)] = ERROR
    timed_out = pc.fill_null(pc.match_substring_regex(error, TIMEOUT), False).to_numpy(zero_copy_only=False)

    duration_s = flat.field("duration_s").to_numpy(zero_copy_only=False)

    def placed(values: NDArray, empty: float) -> NDArray:
        whole = np.full(shape, empty, dtype=values.dtype)
        whole[at] = values[is_named]
        return whole

    return Verdicts(
        placed(state, ABSENT),
        placed(flat.field("score").to_numpy(zero_copy_only=False), np.nan),
        placed(np.where(state == SILENT, np.nan, duration_s), np.nan),
        placed(timed_out, False),
    )

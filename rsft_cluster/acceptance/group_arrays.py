"""Ranks, first rows and maxima within groups, for rules and caps; rows may stand in any order."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Numbers = NDArray[Any]


def codes(judged: pa.Table, *names: str) -> NDArray[np.int64]:
    """Return an integer a row, equal exactly where all the named columns are."""
    combined = np.zeros(judged.num_rows, dtype=np.int64)
    for name in names:
        encoded = judged.column(name).combine_chunks().dictionary_encode()
        combined = combined * len(encoded.dictionary) + encoded.indices.to_numpy()
    return combined


def first_in_group(groups: Numbers, keys: tuple[Numbers, ...]) -> NDArray[np.int64]:
    """Return, for every row, the position of its group's first row by `keys`, the most significant key first."""
    order, starts = _order(groups, keys)
    first = np.empty(len(groups), dtype=np.int64)
    first[order] = order[starts]
    return first


def rank_in_group(groups: Numbers, keys: tuple[Numbers, ...]) -> NDArray[np.int64]:
    """Return the rank of every row in its group, from 0, by `keys`, the most significant key first."""
    order, starts = _order(groups, keys)
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - starts
    return rank


def _order(groups: Numbers, keys: tuple[Numbers, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sorting order of the rows, and for every sorted position that of the first row of its group."""
    order = np.lexsort((*reversed(keys), groups))
    ordered = groups[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    return order, np.flatnonzero(begins)[np.cumsum(begins) - 1]


def largest_in_group(groups: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return, for every row, the largest value in its group."""
    _, group = np.unique(groups, return_inverse=True)
    largest = np.full(int(group.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(largest, group, values)
    return largest[group]

"""Decisions that must not depend on protected attributes: agreement under swaps, and weights of cells."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rsft_cluster.config import FairnessConfig


@dataclass(frozen=True)
class Fairness:
    """What fairness says of every candidate."""

    cells: pa.Array
    """The cell (protected values, merit, decision) in words; null where none."""
    weights: NDArray[np.float64]
    """Share of the rule's probability that the cell is left with, in (0, 1]."""
    agreement: pa.Array
    """Whether the decision was the same under all protected values; null where that was not asked."""
    chosen: Mapping[str, float] = field(default_factory=dict)

    @property
    def disagree(self) -> NDArray[np.bool_]:
        """Rows that are known not to agree."""
        return np.array([a is False for a in self.agreement.to_pylist()], dtype=bool)


def judge_fairness(judged: pa.Table, fairness: FairnessConfig | None) -> Fairness:
    """Return every candidate's cell, weight and agreement; without a config all weigh 1."""
    size = judged.num_rows
    return Fairness(pa.nulls(size, pa.string()), np.ones(size), pa.nulls(size, pa.bool_()))

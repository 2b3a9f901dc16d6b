"""Decisions that must not depend on protected attributes: agreement under swaps, and weights of cells.

Agreement. Prompts that are the same but for protected values share the attribute SWAP_GROUP; their candidates of one
index form a tuple, and a tuple is kept whole or not at all: all members are there, passed, and decide alike. What is
kept then follows, for each member x^a, pi(y | x^a) C(y) times the chance that the others decide as y does: decisions
are distributed as the normalised product over a of pi(d | x^a), whatever the protected value (counterfactual fairness,
Kusner et al. 2017, by consensus).

Cells. A candidate of protected values g (every combination of them) and decision d is left with the share W / max W of
its probability, W = p(d | s) / p(d | g, s): for demographic parity the stratum s is all of them, and W is the weight
p(g) p(d) / p(g, d) of Kamiran and Calders (2012); for equalised odds s is the merit (Hardt et al. 2016). The p are
shares of the probability that candidates would otherwise be kept with, over the whole round and after agreement, so
that what is kept has d independent of g given s exactly, in expectation over u, with p(g, s) and p(d | s) as they were.
Nothing is added to the counts: it would put that off by as much, and cells of too few candidates are refused instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rsft_cluster.acceptance.group_arrays import codes
from rsft_cluster.config import FairnessConfig
from rsft_cluster.errors import StageError
from rsft_cluster.schemas import SWAP_GROUP

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Fairness:
    """Fairness's part in every candidate's decision, one value a row."""

    cells: pa.Array
    """The cell (protected values, merit, decision) in words; null where none."""
    weights: NDArray[np.float64]
    """Share of the probability that the cell is left with, in (0, 1]."""
    agreement: pa.Array
    """Whether the decision is the same under all protected values; null without `swaps: agree`."""
    objections: pa.Array
    """Why a candidate may not be kept; null where it may."""
    chosen: Mapping[str, float] = field(default_factory=dict)

    @property
    def objected(self) -> NDArray[np.bool_]:
        """Which rows have an objection."""
        return self.objections.is_valid().to_numpy(zero_copy_only=False)


@dataclass(frozen=True)
class _Rows:
    """Candidates as codes of protected values, stratum (merit), decision and swap group; -1 where there is none."""

    groups: Codes
    strata: Codes
    decisions: Codes
    swap_groups: Codes
    names: tuple[list[str], list[str], list[str]]
    """What the codes of groups, strata and decisions stand for, in words."""


def judge_fairness(judged: pa.Table, probability: NDArray[np.float64], fairness: FairnessConfig | None) -> Fairness:
    """Return every candidate's cell, weight, agreement and objection; without a config all weights are 1.

    `probability` is each candidate's chance of being kept without fairness. Raises StageError where a prompt has none
    of the listed protected values, and where a cell holds too few candidates to be weighed.
    """
    size = judged.num_rows
    if fairness is None or not size:
        nothing = pa.nulls(size, pa.string())
        return Fairness(nothing, np.ones(size), pa.nulls(size, pa.bool_()), nothing)
    rows = _rows(judged, fairness)
    objections = _objections(judged, rows, fairness)
    agrees = objections.is_null().to_numpy(zero_copy_only=False)
    agreement, weights, chosen = pa.nulls(size, pa.bool_()), np.ones(size), {}
    if fairness.swaps == "agree":
        agreement, chosen = pa.array(agrees), {"swap_agreement_rate": float(np.mean(agrees))}
    if fairness.cells != "none":
        weights, figures = _weights(rows, np.where(agrees, probability, 0.0), fairness)
        chosen = {**chosen, **figures}
    return Fairness(_cells(rows), weights, agreement, objections, chosen)


def group_of(prompt: str, attributes: Mapping[str, str], fairness: FairnessConfig) -> int:
    """Return the index of a prompt's protected values in `fairness.combinations`."""
    for name, values in fairness.protected.items():
        if attributes.get(name) not in values:
            raise StageError(
                f"prompt {prompt}: its attribute {name} is {attributes.get(name)!r}; fairness.protected.{name} lists "
                f"{list(values)}. Name the attribute in prompts.columns.attributes, or set fairness.swaps"
            )
    return fairness.combinations.index({name: attributes[name] for name in fairness.protected})


def in_words(combination: Mapping[str, str]) -> str:
    """Return protected values as readable text."""
    return " ".join(f"{name}={value}" for name, value in combination.items())


def _rows(judged: pa.Table, fairness: FairnessConfig) -> _Rows:
    prompts = codes(judged, "prompt_id")
    _, first, prompt = np.unique(prompts, return_index=True, return_inverse=True)
    distinct = judged.select(["prompt_id", "attributes"]).take(first)
    ids, attributes = distinct.column(0).to_pylist(), [dict(a or ()) for a in distinct.column(1).to_pylist()]
    groups = [group_of(i, a, fairness) for i, a in zip(ids, attributes, strict=True)]
    merits = [""] * len(ids)
    if fairness.cells == "equalised_odds":
        merits = [_merit(i, a, str(fairness.merit)) for i, a in zip(ids, attributes, strict=True)]
    strata, stratum = np.unique(merits, return_inverse=True)
    swaps = pa.array([a.get(SWAP_GROUP) for a in attributes], pa.string()).dictionary_encode()
    swap_groups = swaps.indices.fill_null(-1).to_numpy().astype(np.int64)
    decided = judged.column("decision").combine_chunks().dictionary_encode()
    decisions = decided.indices.fill_null(-1).to_numpy().astype(np.int64)
    names = ([in_words(c) for c in fairness.combinations], strata.tolist(), decided.dictionary.to_pylist())
    return _Rows(np.array(groups, dtype=np.int64)[prompt], stratum[prompt], decisions, swap_groups[prompt], names)


def _merit(prompt: str, attributes: Mapping[str, str], name: str) -> str:
    if name not in attributes:
        raise StageError(f"prompt {prompt}: it has no attribute {name}, which fairness.merit needs for equalised odds")
    return f"{name}={attributes[name]}"


def _objections(judged: pa.Table, rows: _Rows, fairness: FairnessConfig) -> pa.Array:
    """Return, for every row, why it or its tuple may not be kept; null where it may."""
    if fairness.swaps == "agree":
        return _disagreements(judged, rows, len(fairness.combinations))
    objections = np.full(len(rows.decisions), None, dtype=object)
    if fairness.decides:
        objections[rows.decisions < 0] = "no decision was found in the completion"
    return pa.array(objections, pa.string())


def _disagreements(judged: pa.Table, rows: _Rows, num_groups: int) -> pa.Array:
    index = judged.column("index").to_numpy().astype(np.int64)
    _, member = np.unique(rows.swap_groups * (index.max() + 1) + index, return_inverse=True)
    size = np.bincount(member)
    passed = judged.column("passed").fill_null(False).to_numpy()
    present = np.bincount(np.unique(member * num_groups + rows.groups) // num_groups, minlength=len(size))
    lowest, highest = np.full(len(size), np.iinfo(np.int64).max), np.full(len(size), -1)
    np.minimum.at(lowest, member, rows.decisions)
    np.maximum.at(highest, member, rows.decisions)
    of_tuple = np.full(len(size), None, dtype=object)
    of_tuple[lowest != highest] = "decided otherwise under another protected value"
    of_tuple[lowest < 0] = "no decision was found in the completion, or in one under another protected value"
    of_tuple[np.bincount(member, weights=passed) < size] = "did not pass under another protected value"
    of_tuple[present < num_groups] = "there is no candidate of this index under every protected value"
    objections = of_tuple[member]
    objections[rows.swap_groups < 0] = f"its prompt has no attribute {SWAP_GROUP}"
    return pa.array(objections, pa.string())


def _weights(
    rows: _Rows, probability: NDArray[np.float64], fairness: FairnessConfig
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Return W / max W of every row's cell (1 where none of it would be kept), and the figures for the manifest."""
    shape = (len(rows.names[1]), len(rows.names[0]), max(1, len(rows.names[2])))
    kept = probability > 0.0
    weights = np.ones(len(kept))
    if not kept.any():
        return weights, {}
    cell = np.ravel_multi_index((rows.strata, rows.groups, np.maximum(rows.decisions, 0)), shape)
    num = np.bincount(cell[kept], minlength=np.prod(shape)).reshape(shape)
    mass = np.bincount(cell[kept], weights=probability[kept], minlength=np.prod(shape)).reshape(shape)
    # A decision that no group got in a stratum is no cell: there is nothing to be equal in.
    exists = np.broadcast_to(num.sum(axis=1, keepdims=True) > 0, shape)
    _check_sizes(num, exists, rows, fairness)
    log_mass = np.log(np.where(exists, mass, 1.0))
    of_group, of_decision = mass.sum(axis=2, keepdims=True), mass.sum(axis=1, keepdims=True)
    stratum = mass.sum(axis=(1, 2), keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_weights = np.log(of_decision) - np.log(stratum) - log_mass + np.log(of_group)
    log_weights = np.where(exists, log_weights, -np.inf)
    largest = float(log_weights.max())
    weights[kept] = np.exp(log_weights - largest).ravel()[cell[kept]]
    figures = {
        "num_cells": float(exists.sum()),
        "smallest_cell": float(num[exists].min()),
        "max_cell_weight": float(np.exp(largest)),
        "cell_acceptance_rate": float(np.exp(-largest)),
    }
    return weights, figures


def _check_sizes(num: Codes, exists: NDArray[np.bool_], rows: _Rows, fairness: FairnessConfig) -> None:
    small = np.argwhere(exists & (num < fairness.min_cell))
    if not len(small):
        return
    stratum, group, decision = min(small.tolist(), key=lambda at: int(num[tuple(at)]))
    more = f" (and {len(small) - 1} more are too small)" if len(small) > 1 else ""
    raise StageError(
        f"fairness.cells: the cell {_in_words(rows, group, stratum, decision)} holds "
        f"{num[stratum, group, decision]} candidates that would be kept, fewer than fairness.min_cell = "
        f"{fairness.min_cell}{more}. Sample more candidates or prompts, protect fewer or coarser values, lower "
        "fairness.min_cell, or set fairness.cells: none"
    )


def _cells(rows: _Rows) -> pa.Array:
    """Return every row's cell in words, null where the row has no decision."""
    cells = np.stack([rows.groups, rows.strata, rows.decisions])
    distinct, cell = np.unique(cells, axis=1, return_inverse=True)
    words = [None if d < 0 else _in_words(rows, g, s, d) for g, s, d in distinct.T.tolist()]
    return pa.array(words, pa.string()).take(pa.array(cell.ravel()))


def _in_words(rows: _Rows, group: int, stratum: int, decision: int) -> str:
    groups, strata, decisions = rows.names
    return " ".join(word for word in (groups[group], strata[stratum], f"decision={decisions[decision]}") if word)

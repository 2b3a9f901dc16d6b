"""How decisions fall by protected values: selection, errors given merit, and flips under swaps, with intervals.

Selection rates and their gaps are demographic parity, gaps of true and false positive rates equalised odds (Hardt et
al. 2016); flips are swaps of one prompt that were not decided alike (counterfactual fairness, Kusner et al. 2017).
Parity, equalised odds and calibration exclude each other where base rates differ, so all of them are shown.

Intervals are percentiles of a bootstrap over swap groups, or prompts where there are none: decisions on the same case
depend on each other. Its seed is fixed, so equal decisions give an equal report.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rsft_cluster.acceptance.fairness import group_of, in_words
from rsft_cluster.config import FairnessConfig
from rsft_cluster.errors import StageError
from rsft_cluster.records import AttributeFigures, DecisionFigures, Estimate, FairnessReport, Gap, GroupFigures
from rsft_cluster.schemas import SWAP_GROUP

NUM_RESAMPLES = 1000
INTERVAL = (2.5, 97.5)
"""Percentiles."""
CELLS_AT_ONCE = 4_000_000
"""Bounds the memory of resampling."""

Numbers = NDArray[Any]
Codes = NDArray[np.int64]


def fairness_report(prompts: pa.Table, scores: pa.Table, fairness: FairnessConfig) -> FairnessReport:
    """Return the figures of an evaluation from its PROMPT and SCORE rows: index 0 is the greedy answer of a prompt."""
    index = scores.column("index").to_numpy()
    return FairnessReport(
        positive=fairness.positive,
        greedy=decision_figures(prompts, scores.filter(pa.array(index == 0)), fairness),
        sampled=decision_figures(prompts, scores.filter(pa.array(index > 0)), fairness),
    )


def decision_figures(prompts: pa.Table, scores: pa.Table, fairness: FairnessConfig) -> DecisionFigures:
    """Return the figures of candidates, passed or not, from their PROMPT and SCORE rows.

    Raises StageError where there is no candidate, or a prompt has none of the listed protected values.
    """
    if not scores.num_rows:
        raise StageError("there are no decisions to report on: no candidate was scored")
    decisions = _decisions(prompts, scores, fairness)
    sums = _resampled(_counts(decisions, len(fairness.combinations)))
    attributes = [_attribute(name, sums, fairness, (name,)) for name in fairness.protected]
    if len(attributes) > 1:
        attributes.append(_attribute(" x ".join(fairness.protected), sums, fairness, tuple(fairness.protected)))
    overall = _estimate(sums.selected.sum(axis=(1, 2)), sums.num.sum(axis=(1, 2)))
    assert overall is not None
    return DecisionFigures(
        num_decisions=scores.num_rows,
        num_undecided=scores.column("decision").null_count,
        selection_rate=overall,
        merit_accuracy=_estimate(sums.num_right, sums.num[:, :, 1:].sum(axis=(1, 2))),
        flip_rate=_estimate(sums.num_flips, sums.num_tuples),
        attributes=tuple(attributes),
    )


@dataclass(frozen=True)
class _Decisions:
    """One entry a candidate."""

    units: Codes
    """The swap group, or else the prompt."""
    groups: Codes
    """Index among the combinations of protected values."""
    merits: Codes
    """0 where merit is unknown, 1 where the positive decision is not merited, 2 where it is."""
    selected: Numbers
    right: Numbers
    tuples: Codes
    """Equal for the swaps of one index; -1 where there are none."""
    words: Codes
    """The decision; -1 where there is none."""


@dataclass(frozen=True)
class _Sums:
    """Counts with one entry a unit; or their sums, the first over all units, the others one a resample."""

    num: Numbers
    """(..., group, merit), as `selected`."""
    selected: Numbers
    num_right: Numbers
    num_flips: Numbers
    num_tuples: Numbers


def _decisions(prompts: pa.Table, scores: pa.Table, fairness: FairnessConfig) -> _Decisions:
    rows = prompts.select(["prompt_id", "attributes"]).to_pylist()
    attributes = {row["prompt_id"]: dict(row["attributes"]) for row in rows}
    ids = scores.column("prompt_id").to_pylist()
    index_of = {prompt: i for i, prompt in enumerate(dict.fromkeys(ids))}
    known = [attributes[prompt] for prompt in index_of]
    at = np.array([index_of[prompt] for prompt in ids], dtype=np.int64)
    groups = [group_of(prompt, attributes[prompt], fairness) for prompt in index_of]
    merit = [a.get(fairness.merit) if fairness.merit else None for a in known]
    merits = [0 if m is None else 1 + (m == fairness.positive) for m in merit]
    units = np.unique([a.get(SWAP_GROUP, p) for p, a in zip(index_of, known, strict=True)], return_inverse=True)[1][at]
    words = scores.column("decision").to_pylist()
    index = scores.column("index").to_numpy().astype(np.int64)
    is_swapped = np.array([SWAP_GROUP in a for a in known], dtype=bool)[at]
    coded = {word: i for i, word in enumerate(dict.fromkeys(w for w in words if w is not None))}
    return _Decisions(
        units=units,
        groups=np.array(groups, dtype=np.int64)[at],
        merits=np.array(merits, dtype=np.int64)[at],
        selected=np.array([w == fairness.positive for w in words], dtype=np.float64),
        right=np.array(
            [w is not None and w == merit[i] for w, i in zip(words, at.tolist(), strict=True)], dtype=np.float64
        ),
        tuples=np.where(is_swapped, units * (int(index.max()) + 1) + index, -1),
        words=np.array([-1 if w is None else coded[w] for w in words], dtype=np.int64),
    )


def _counts(decisions: _Decisions, num_groups: int) -> _Sums:
    """Return the counts of every unit."""
    num_units = int(decisions.units.max()) + 1
    shape = (num_units, num_groups, 3)
    cell = np.ravel_multi_index((decisions.units, decisions.groups, decisions.merits), shape)
    size = int(np.prod(shape))
    flips, tuples = _flips(decisions, num_groups, num_units)
    return _Sums(
        num=np.bincount(cell, minlength=size).reshape(shape).astype(np.float64),
        selected=np.bincount(cell, weights=decisions.selected, minlength=size).reshape(shape),
        num_right=np.bincount(decisions.units, weights=decisions.right, minlength=num_units),
        num_flips=flips,
        num_tuples=tuples,
    )


def _flips(decisions: _Decisions, num_groups: int, num_units: int) -> tuple[Numbers, Numbers]:
    """Return, for every unit, its number of complete tuples with differing decisions, and of all complete tuples."""
    among = decisions.tuples >= 0
    if not among.any():
        return np.zeros(num_units), np.zeros(num_units)
    _, first, member = np.unique(decisions.tuples[among], return_index=True, return_inverse=True)
    groups, words = decisions.groups[among], decisions.words[among]
    present = np.bincount(np.unique(member * num_groups + groups) // num_groups, minlength=len(first))
    lowest, highest = np.full(len(first), np.iinfo(np.int64).max), np.full(len(first), -1)
    np.minimum.at(lowest, member, words)
    np.maximum.at(highest, member, words)
    whole, unit = (present == num_groups).astype(np.float64), decisions.units[among][first]
    flips = np.bincount(unit, weights=whole * (lowest != highest), minlength=num_units)
    return flips, np.bincount(unit, weights=whole, minlength=num_units)


def _resampled(counts: _Sums) -> _Sums:
    """Return the sums over all units, and then over each resample of them."""
    parts = [counts.num, counts.selected, counts.num_right, counts.num_flips, counts.num_tuples]
    num_units = len(counts.num)
    flat = np.concatenate([part.reshape(num_units, -1) for part in parts], axis=1)
    rng, share = np.random.default_rng(0), np.full(num_units, 1.0 / num_units)
    sums, num_left = [flat.sum(axis=0, keepdims=True)], NUM_RESAMPLES
    while num_left:
        size = min(num_left, max(1, CELLS_AT_ONCE // num_units))
        sums.append(rng.multinomial(num_units, share, size=size) @ flat)
        num_left -= size
    columns = np.split(np.concatenate(sums), np.cumsum([part[0].size for part in parts])[:-1], axis=1)
    return _Sums(*(c.reshape(len(c), *p.shape[1:]) for c, p in zip(columns, parts, strict=True)))


def _attribute(name: str, sums: _Sums, fairness: FairnessConfig, among: Sequence[str]) -> AttributeFigures:
    """Return the figures by the values of the attributes in `among`, summed over those of the others."""
    combinations = [{n: c[n] for n in among} for c in fairness.combinations]
    words = list(dict.fromkeys(map(in_words, combinations)))
    member = np.array([[in_words(c) == word for c in combinations] for word in words], dtype=np.float64)
    num, selected = (np.einsum("rgm,wg->rwm", part, member) for part in (sums.num, sums.selected))
    of_all = (selected.sum(axis=2), num.sum(axis=2))
    meriting, others = (selected[:, :, 2], num[:, :, 2]), (selected[:, :, 1], num[:, :, 1])
    groups = tuple(
        GroupFigures(
            group=word,
            num_decisions=int(of_all[1][0, i]),
            selection_rate=_estimate(*(part[:, i] for part in of_all)),
            true_positive_rate=_estimate(*(part[:, i] for part in meriting)),
            false_positive_rate=_estimate(*(part[:, i] for part in others)),
        )
        for i, word in enumerate(words)
    )
    return AttributeFigures(
        attribute=name,
        groups=groups,
        selection=_gap(words, *of_all),
        true_positives=_gap(words, *meriting),
        false_positives=_gap(words, *others),
    )


def _gap(words: Sequence[str], selected: Numbers, num: Numbers) -> Gap | None:
    """Return the gap between the highest and the lowest rate; None where fewer than two groups have members."""
    present = np.flatnonzero(num[0] > 0)
    if len(present) < 2:
        return None
    rates = selected[0, present] / num[0, present]
    highest, lowest = int(present[np.argmax(rates)]), int(present[np.argmin(rates)])
    high, low = (_rate(selected[:, i], num[:, i]) for i in (highest, lowest))
    return Gap(
        highest=words[highest],
        lowest=words[lowest],
        difference=_interval(high - low),
        ratio=_interval(_rate(low, high)) if high[0] > 0 else None,
    )


def _estimate(part: Numbers, whole: Numbers) -> Estimate | None:
    return _interval(_rate(part, whole)) if whole[0] > 0 else None


def _rate(part: Numbers, whole: Numbers) -> Numbers:
    """Return part / whole, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _interval(values: Numbers) -> Estimate:
    """Return the first value with the percentiles of the others, NaN and infinities left out."""
    others = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(others if len(others) else values[:1], INTERVAL)
    return Estimate(value=float(values[0]), low=float(low), high=float(high))

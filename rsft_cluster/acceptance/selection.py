"""What a decision is made by, and how the drawn candidates of a prompt compare: repeats, and their order under caps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from rsft_cluster.acceptance.base import Scope, rule_of
from rsft_cluster.acceptance.group_arrays import codes, first_in_group, rank_in_group
from rsft_cluster.config import AcceptanceConfig, BudgetConfig, FairnessConfig
from rsft_cluster.plugins import Bound

Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class SelectionRules:
    """The acceptance rule, and the settings applied after it."""

    rule: Bound
    acceptance: AcceptanceConfig
    budget: BudgetConfig | None = None
    """Given where candidates come in waves until enough are kept: the kept ones are then those of lowest index."""
    fairness: FairnessConfig | None = None

    @property
    def scope(self) -> Scope:
        """The rows that a decision must see together."""
        return "round" if self.fairness and self.fairness.decides else rule_of(self.rule).scope

    @property
    def needs_text(self) -> bool:
        """Whether completions are compared as texts."""
        return self.acceptance.near_duplicates is not None or self.acceptance.prefer == "diverse"


def repeats(judged: pa.Table, drawn: Flags, acceptance: AcceptanceConfig) -> Indices:
    """Return, for every row, the index of the drawn candidate of its prompt that it repeats; -1 where none.

    Candidates of equal tokens repeat the one of lowest index. With `near_duplicates`, candidates are visited by index,
    and one whose text is at least that similar to an earlier original repeats the first such original.
    """
    index = judged.column("index").to_numpy().astype(np.int64)
    repeated = np.full(len(index), -1, dtype=np.int64)
    if acceptance.dedupe:
        first = first_in_group(codes(judged, "prompt_id", "content"), (~drawn, index))
        is_repeat = drawn & (first != np.arange(len(first)))
        repeated[is_repeat] = index[first[is_repeat]]
    if acceptance.near_duplicates is not None:
        _add_near_repeats(repeated, judged, drawn & (repeated < 0), acceptance.near_duplicates)
    return repeated


def rank_drawn(judged: pa.Table, drawn: Flags, selection: SelectionRules) -> Indices:
    """Return the rank of every drawn row in its prompt, from 0, in the order in which caps keep them.

    With a budget the order is by index whatever `prefer` says: the first k of a stream of exact draws are exact draws,
    the k best are not.
    """
    prompts, index = codes(judged, "prompt_id"), judged.column("index").to_numpy()
    prefer = "index" if selection.budget is not None else selection.acceptance.prefer
    if prefer == "index":
        return rank_in_group(prompts, (~drawn, index))
    best_first = -np.nan_to_num(judged.column("score").to_numpy())
    rank = rank_in_group(prompts, (~drawn, best_first, index))
    return rank if prefer == "score" else _farthest_first(judged, drawn, rank)


def prompt_goals(judged: pa.Table, drawn: Flags, budget: BudgetConfig) -> NDArray[np.int64]:
    """Return, for every row, how many candidates its prompt is to keep.

    With `difficulty` that is ceil(k (1 - a) / max(1 - a)), a the posterior mean of the prompt's acceptance (DART-Math's
    Prop2Diff, Tong et al. 2024); otherwise k. Which ones are kept then depends only on the pattern of acceptances, so
    each is still a draw from the target.
    """
    prompts = codes(judged, "prompt_id")
    goals = np.full(len(prompts), budget.until_accepted, dtype=np.int64)
    if budget.allocation != "difficulty" or not len(prompts):
        return goals
    rejected = 1.0 - posterior_mean(np.bincount(prompts, weights=drawn), np.bincount(prompts))
    share = rejected / rejected[np.unique(prompts)].max()
    return np.maximum(1, np.ceil(budget.until_accepted * share - 1e-9)).astype(np.int64)[prompts]


def posterior_mean(num_accepted: NDArray[Any], num_candidates: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean acceptance of prompts under Beta(1/2 + accepted, 1/2 + rejected)."""
    return (num_accepted + 0.5) / (num_candidates + 1.0)


def _add_near_repeats(repeated: Indices, judged: pa.Table, among: Flags, similarity: float) -> None:
    texts, index = judged.column("text").to_pylist(), judged.column("index").to_numpy()
    for rows in _by_prompt(judged, among, index):
        originals: list[int] = []
        for row in rows:
            twin = next(
                (
                    o
                    for o in originals
                    if Levenshtein.normalized_similarity(texts[o], texts[row], score_cutoff=similarity) >= similarity
                ),
                None,
            )
            if twin is None:
                originals.append(row)
            else:
                repeated[row] = index[twin]


def _farthest_first(judged: pa.Table, among: Flags, rank: Indices) -> Indices:
    """Rank each prompt's candidates so that each is the farthest from those before it, the best-scored one first.

    Gonzalez 1985: a 2-approximation of the most spread-out k for every k at once. Quadratic in a prompt's candidates.
    """
    texts, rank = judged.column("text").to_pylist(), rank.copy()
    for rows in _by_prompt(judged, among, rank):
        nearest = np.full(len(rows), np.inf)
        left = list(range(len(rows)))
        for position in range(len(rows)):
            chosen = max(left, key=lambda i: (nearest[i], -i))
            left.remove(chosen)
            rank[rows[chosen]] = position
            for i in left:
                distance = Levenshtein.normalized_distance(texts[rows[chosen]], texts[rows[i]])
                nearest[i] = min(nearest[i], distance)
    return rank


def _by_prompt(judged: pa.Table, among: Flags, order: NDArray) -> list[list[int]]:
    """Return the rows where `among` is set, a list a prompt, each sorted by `order`."""
    prompts, rows = codes(judged, "prompt_id"), np.flatnonzero(among)
    rows = rows[np.lexsort((order[rows], prompts[rows]))]
    cuts = np.flatnonzero(np.diff(prompts[rows])) + 1
    return [part.tolist() for part in np.split(rows, cuts) if len(part)]

"""What is settled among the drawn candidates of a prompt: which repeat another, and which come first."""

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
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Selecting:
    """How to decide: the rule, and all that is settled after it."""

    rule: Bound
    acceptance: AcceptanceConfig
    budget: BudgetConfig | None = None
    """Given where candidates came in waves until enough were kept: then those of the lowest indices are."""
    fairness: FairnessConfig | None = None

    @property
    def scope(self) -> Scope:
        """How much must be seen at once."""
        return "round" if self.fairness and self.fairness.decides else rule_of(self.rule).scope

    @property
    def needs_text(self) -> bool:
        """Whether completions are compared as texts."""
        return self.acceptance.near_duplicates is not None or self.acceptance.prefer == "diverse"


def repeats(judged: pa.Table, drawn: Flags, acceptance: AcceptanceConfig) -> Places:
    """Return, for every row, the index of the drawn candidate of its prompt that it repeats; -1 where none.

    Equal tokens repeat the lowest index among them. With `near_duplicates`, candidates are gone through by index, and
    one whose text is at least so similar to an original repeats the first such one.
    """
    index = judged.column("index").to_numpy().astype(np.int64)
    found = np.full(len(index), -1, dtype=np.int64)
    if acceptance.dedupe:
        first = first_in_group(codes(judged, "prompt_id", "content"), (~drawn, index))
        again = drawn & (first != np.arange(len(first)))
        found[again] = index[first[again]]
    if acceptance.near_duplicates is not None:
        _near(judged, drawn & (found < 0), acceptance.near_duplicates, found)
    return found


def rank_drawn(judged: pa.Table, drawn: Flags, how: Selecting) -> Places:
    """Return the place of every drawn row among those of its prompt, from 0, in the order in which caps keep them.

    With a budget that is by index whatever `prefer` says: the first k in a stream of exact draws are exact draws, the
    k best are not.
    """
    prompts, index = codes(judged, "prompt_id"), judged.column("index").to_numpy()
    prefer = "index" if how.budget is not None else how.acceptance.prefer
    if prefer == "index":
        return rank_in_group(prompts, (~drawn, index))
    best_first = -np.nan_to_num(judged.column("score").to_numpy())
    rank = rank_in_group(prompts, (~drawn, best_first, index))
    return rank if prefer == "score" else _farthest_first(judged, drawn, rank)


def wanted(judged: pa.Table, drawn: Flags, budget: BudgetConfig) -> NDArray[np.int64]:
    """Return, for every row, how many candidates its prompt is to keep.

    `difficulty` asks for ceil(k (1 - a) / max(1 - a)), a the posterior mean of the prompt's acceptance (DART-Math's
    Prop2Diff, Tong et al. 2024); the others for k. Which ones are kept then depends on the pattern of acceptances
    alone, so each is still a draw from the target.
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


def _near(judged: pa.Table, among: Flags, similarity: float, found: Places) -> None:
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
                found[row] = index[twin]


def _farthest_first(judged: pa.Table, among: Flags, rank: Places) -> Places:
    """Rank each prompt's candidates so that every next one is farthest from those before, the best-scored first.

    Gonzalez 1985: a 2-approximation of the most spread-out k for every k at once. Quadratic in a prompt's candidates.
    """
    texts, rank = judged.column("text").to_pylist(), rank.copy()
    for rows in _by_prompt(judged, among, rank):
        nearest = np.full(len(rows), np.inf)
        left = list(range(len(rows)))
        for place in range(len(rows)):
            chosen = max(left, key=lambda i: (nearest[i], -i))
            left.remove(chosen)
            rank[rows[chosen]] = place
            for i in left:
                apart = Levenshtein.normalized_distance(texts[rows[chosen]], texts[rows[i]])
                nearest[i] = min(nearest[i], apart)
    return rank


def _by_prompt(judged: pa.Table, among: Flags, order: NDArray) -> list[list[int]]:
    """Return the rows among the given ones, prompt by prompt, each in the given order."""
    prompts, rows = codes(judged, "prompt_id"), np.flatnonzero(among)
    rows = rows[np.lexsort((order[rows], prompts[rows]))]
    cuts = np.flatnonzero(np.diff(prompts[rows])) + 1
    return [part.tolist() for part in np.split(rows, cuts) if len(part)]

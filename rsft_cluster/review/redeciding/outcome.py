"""Deciding again on stored scores, block by block: the funnel, the reasons, and what changes against the seal."""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rsft_cluster.acceptance.compatible import check_compatible
from rsft_cluster.acceptance.decide import decide, selecting
from rsft_cluster.acceptance.selecting import Selecting
from rsft_cluster.config import RunConfig
from rsft_cluster.review.records import Change, Funnel
from rsft_cluster.review.redeciding.group_blocks import Block, blocks
from rsft_cluster.review.redeciding.stored_round import StoredRound, StoredUnit

NUM_EXAMPLES = 5


@dataclass
class Outcome:
    """What a decision comes to, while it goes on."""

    funnel: Funnel
    change: Change = field(default_factory=Change)
    reasons: Counter[str] = field(default_factory=Counter)
    """Why candidates were rejected; digits folded, and of the judgement the constraint alone."""
    chosen: dict[str, float] = field(default_factory=dict)

    def add(self, block: Block, decided: pa.Table) -> None:
        """Take in the decisions on a block."""
        accepted = decided.column("accepted").to_numpy()
        passed = block.scores.column("passed")
        drawn = block.scores.column("u").to_numpy() < decided.column("acceptance_probability").to_numpy()
        rank, cap = decided.column("rank"), decided.column("cap")
        within = pc.and_(rank.is_valid(), pc.fill_null(pc.less(rank, cap), True))
        counts = {
            "num_candidates": len(accepted),
            "num_judged": len(accepted) - passed.null_count,
            "num_passed": pc.sum(passed).as_py() or 0,
            "num_drawn": int(np.count_nonzero(drawn)),
            "num_distinct": len(rank) - rank.null_count,
            "num_within_caps": pc.sum(within).as_py() or 0,
            "num_accepted": int(np.count_nonzero(accepted)),
            "num_prompts_accepted": len(block.scores.column("prompt_id").filter(accepted).unique()),
        }
        old = self.funnel
        self.funnel = old.model_copy(update={name: getattr(old, name) + n for name, n in counts.items()})
        self._compare(block, accepted)
        self.reasons.update(_reasons(block.scores, decided))

    def _compare(self, block: Block, accepted: np.ndarray) -> None:
        before, ids, old = block.kept_before, block.scores.column("candidate_id"), self.change
        self.change = Change(
            num_before=old.num_before + int(np.count_nonzero(before)),
            num_after=old.num_after + int(np.count_nonzero(accepted)),
            num_both=old.num_both + int(np.count_nonzero(before & accepted)),
            gained=some(old.gained, ids, accepted & ~before),
            lost=some(old.lost, ids, before & ~accepted),
        )


def way_of(stored: StoredRound, config: RunConfig) -> Selecting:
    """Return how a config decides on a sealed round; raises ConfigError where its rule cannot be used on it."""
    check_compatible(config)
    return selecting(config, stored.number)


def decided_blocks(
    stored: StoredRound, how: Selecting, outcome: Outcome, units: Sequence[StoredUnit]
) -> Iterator[tuple[Block, pa.Table]]:
    """Yield some units of a round in blocks, with their DECIDED rows; `outcome` counts them."""
    for block in blocks(stored, [how], units):
        found = decide(block.judged, how)
        outcome.add(block, found.table)
        outcome.chosen.update(found.chosen)
        yield block, found.table


def begun(stored: StoredRound) -> Outcome:
    """Return the outcome before anything is decided."""
    return Outcome(Funnel(num_prompts=stored.manifest.totals.num_prompts))


def some(known: tuple[str, ...], ids: pa.ChunkedArray, chosen: np.ndarray) -> tuple[str, ...]:
    """Return the ids that are known as examples, with some of those chosen while there are few."""
    rows = np.flatnonzero(chosen)[: NUM_EXAMPLES - len(known)]
    return (*known, *ids.take(pa.array(rows)).to_pylist()) if len(rows) else known


def _reasons(scores: pa.Table, decided: pa.Table) -> dict[str, int]:
    """Count why rows are rejected."""
    rejected = pc.invert(decided.column("accepted"))
    passed, said = (scores.column(n).filter(rejected) for n in ("passed", "reason"))
    folded = pc.replace_substring_regex(
        decided.column("reason").filter(rejected), pattern=r"\d+(\.\d+)?(e-\d+)?", replacement="#"
    )
    constraint = pc.list_element(pc.split_pattern(said, ": ", max_splits=1), 0)
    # What the seal kept though it did not pass has no reason of its judgement any more.
    constraint = pc.if_else(pc.equal(said, "kept"), folded, constraint)
    told = pc.if_else(pc.fill_null(passed, False), folded, constraint)
    return {str(row["values"]): int(row["counts"]) for row in pc.value_counts(told).to_pylist()}

"""Deciding again on stored scores, block by block: the funnel, the reasons, and the changes against the seal."""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rsft_cluster.acceptance.compatible import check_compatible
from rsft_cluster.acceptance.decide import decide, selection_rules
from rsft_cluster.acceptance.selection import SelectionRules
from rsft_cluster.config import RunConfig
from rsft_cluster.review.records import Change, Funnel
from rsft_cluster.review.redeciding.group_blocks import Block, blocks
from rsft_cluster.review.redeciding.stored_round import StoredRound, StoredUnit

NUM_EXAMPLES = 5


@dataclass
class DecisionTally:
    """The running figures of a decision."""

    funnel: Funnel
    change: Change = field(default_factory=Change)
    reasons: Counter[str] = field(default_factory=Counter)
    """Candidates by the reason of their rejection: digits folded, and only the constraint of a judgement's reason."""
    chosen: dict[str, float] = field(default_factory=dict)

    def add(self, block: Block, decided: pa.Table) -> None:
        """Add the decisions on a block."""
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
            gained=with_examples(old.gained, ids, accepted & ~before),
            lost=with_examples(old.lost, ids, before & ~accepted),
        )


def selection_of(stored: StoredRound, config: RunConfig) -> SelectionRules:
    """Return what a config decides by on a sealed round; raises ConfigError where its rule cannot be used on it."""
    check_compatible(config)
    return selection_rules(config, stored.number)


def decided_blocks(
    stored: StoredRound, selection: SelectionRules, outcome: DecisionTally, units: Sequence[StoredUnit]
) -> Iterator[tuple[Block, pa.Table]]:
    """Yield units of a round in blocks with their DECIDED rows, adding each block to `outcome`."""
    for block in blocks(stored, [selection], units):
        decided = decide(block.judged, selection)
        outcome.add(block, decided.table)
        outcome.chosen.update(decided.chosen)
        yield block, decided.table


def empty_outcome(stored: StoredRound) -> DecisionTally:
    """Return the outcome before anything is decided."""
    return DecisionTally(Funnel(num_prompts=stored.manifest.totals.num_prompts))


def with_examples(known: tuple[str, ...], ids: pa.ChunkedArray, chosen: np.ndarray) -> tuple[str, ...]:
    """Return the known example ids, and more of those chosen while they are fewer than NUM_EXAMPLES."""
    rows = np.flatnonzero(chosen)[: NUM_EXAMPLES - len(known)]
    return (*known, *ids.take(pa.array(rows)).to_pylist()) if len(rows) else known


def _reasons(scores: pa.Table, decided: pa.Table) -> dict[str, int]:
    """Return how often each reason rejects a row."""
    rejected = pc.invert(decided.column("accepted"))
    passed, judgement = (scores.column(n).filter(rejected) for n in ("passed", "reason"))
    folded = pc.replace_substring_regex(
        decided.column("reason").filter(rejected), pattern=r"\d+(\.\d+)?(e-\d+)?", replacement="#"
    )
    constraint = pc.list_element(pc.split_pattern(judgement, ": ", max_splits=1), 0)
    # Where the seal kept a candidate that did not pass, the reason of its judgement is not stored.
    constraint = pc.if_else(pc.equal(judgement, "kept"), folded, constraint)
    reasons = pc.if_else(pc.fill_null(passed, False), folded, constraint)
    return {str(row["values"]): int(row["counts"]) for row in pc.value_counts(reasons).to_pylist()}

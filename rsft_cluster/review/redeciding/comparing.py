"""A scoring of a round's candidates against the sealed one, file by file."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rsft_cluster.review.records import ConstraintChange, Rejudged
from rsft_cluster.review.redeciding.group_blocks import threaded_map
from rsft_cluster.review.redeciding.outcome import with_examples
from rsft_cluster.review.redeciding.stored_round import SEALED, StoredRound, StoredUnit, constraints_of
from rsft_cluster.review.redeciding.verdicts import PASSED, verdicts_of

COLUMNS = ["candidate_id", "passed", "verdicts"]


def compare(stored: StoredRound, scoring: str) -> Rejudged:
    """Return how a scoring differs from the sealed one, in total and by constraint."""
    old_names, new_names = ([c.name for c in constraints_of(stored, name)] for name in (SEALED, scoring))
    names = list(dict.fromkeys([*old_names, *new_names]))
    totals = np.zeros(7, dtype=np.int64)
    by_constraint = np.zeros((4, len(names)), dtype=np.int64)
    gained: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    def read(unit: StoredUnit) -> tuple[pa.Table, pa.Table]:
        refs = (unit.sealed, unit.judged.scores)
        before, after = (stored.store.read_table(ref, columns=COLUMNS) for ref in refs)
        return before, after

    for before, after in threaded_map(read, stored.units(scoring)):
        old, new = _passed(before), _passed(after)
        errors = (before.column("passed").null_count, after.column("passed").null_count)
        is_gained, is_lost = new & ~old, old & ~new
        totals += [len(old), old.sum(), new.sum(), *errors, is_gained.sum(), is_lost.sum()]
        gained = with_examples(gained, after.column("candidate_id"), is_gained)
        lost = with_examples(lost, after.column("candidate_id"), is_lost)
        first, second = (verdicts_of(table, names).state == PASSED for table in (before, after))
        by_constraint += np.stack([part.sum(axis=0) for part in (first, second, second & ~first, first & ~second)])
    size, num_before, num_after, errors_before, errors_after, num_gained, num_lost = totals.tolist()
    return Rejudged(
        num_candidates=size,
        num_passed_before=num_before,
        num_passed_after=num_after,
        num_errors_before=errors_before,
        num_errors_after=errors_after,
        num_gained=num_gained,
        num_lost=num_lost,
        gained=gained,
        lost=lost,
        constraints=tuple(
            _change(name, by_constraint[:, i].tolist(), was_there=name in old_names, is_there=name in new_names)
            for i, name in enumerate(names)
        ),
    )


def _passed(scores: pa.Table) -> NDArray[np.bool_]:
    return scores.column("passed").fill_null(False).to_numpy()


def _change(name: str, counts: list[int], *, was_there: bool, is_there: bool) -> ConstraintChange:
    before, after, gained, lost = counts
    both = was_there and is_there
    return ConstraintChange(
        constraint=name,
        num_passed_before=before if was_there else None,
        num_passed_after=after if is_there else None,
        num_gained=gained if both else 0,
        num_lost=lost if both else 0,
    )

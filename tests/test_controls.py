"""Control arms: as many examples as were accepted, whatever their verdict."""

import pytest
from sealed import rounds

from rsft_cluster.rounds.controls import random_examples
from rsft_cluster.schemas import ACCEPTED


@pytest.mark.parametrize("parts", [{}, {"budget": {"wave_size": 2, "until_accepted": 2}}])
def test_the_random_arm_has_as_many_distinct_candidates_right_or_wrong(tmp_path, parts) -> None:
    with rounds(tmp_path) as do:
        manifest = do(num_prompts=30, **parts)
        run = do.run
        rows = random_examples(run, manifest)
        assert rows.schema.equals(ACCEPTED)
        assert random_examples(run, manifest).equals(rows)
        scores = {row["candidate_id"]: row for ref in manifest.scores for row in run.store.read_table(ref).to_pylist()}
    chosen = [scores[candidate] for candidate in rows.column("candidate_id").to_pylist()]
    distinct = {(row["prompt_id"], row["content"]) for row in scores.values()}
    assert len({(row["prompt_id"], row["content"]) for row in chosen}) == len(chosen)
    assert len(chosen) == min(manifest.totals.num_accepted, len(distinct))
    rate = manifest.totals.num_passed / manifest.totals.num_candidates
    assert 0 < sum(row["passed"] for row in chosen) < len(chosen)
    # Repeats are left out, and right answers repeat more: below the pass rate, and far from all.
    assert sum(row["passed"] for row in chosen) / len(chosen) < rate + 0.2

"""Evaluation figures on made-up candidates."""

from itertools import combinations

import pyarrow as pa
import pytest

from rsft_cluster.evaluation.figures import distinct_n, pass_at_k, per_prompt_table


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (8, 0, 8), (8, 8, 1), (6, 1, 6), (4, 3, 2)])
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(n, c, k):
    subsets = list(combinations(range(n), k))
    expected = sum(any(i < c for i in s) for s in subsets) / len(subsets)
    assert pass_at_k(n, c, k) == pytest.approx(expected)


def test_with_fewer_samples_than_k_all_of_them_count():
    assert pass_at_k(2, 1, 8) == 1.0


def test_distinct_counts_bigrams_over_all_completions():
    assert distinct_n([[1, 2, 3], [1, 2, 3]], 2) == 0.5
    assert distinct_n([[1]], 2) == 0.0


def test_errors_are_left_out_and_never_count_as_failures():
    candidates = pa.table({"wave": [0, 1, 1, 1, 0, 1]})
    scores = pa.table(
        {
            "prompt_id": ["a", "a", "a", "a", "b", "b"], "passed": [True, True, False, None, None, None],
            "score": [1.0, 1.0, 0.0, None, None, None],
        }
    )  # fmt: skip
    (row,) = per_prompt_table(candidates, scores).to_pylist()
    assert row == {
        "prompt_id": "a", "greedy_passed": True, "num_samples": 2, "num_passed": 1, "pass_rate": 0.5, "mean_score": 0.5,
    }  # fmt: skip

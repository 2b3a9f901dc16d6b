"""Alarms about a policy, and the diversity that they go by."""

import pytest

from rsft_cluster.config import HealthConfig
from rsft_cluster.evaluation.alarms import alarms
from rsft_cluster.evaluation.diversity import distinct_n, self_bleu
from rsft_cluster.records import Evaluation, FileRef, PolicyRef


def evaluation(number: int = 0, **figures) -> Evaluation:
    usual = {
        "num_prompts": 10, "num_samples": 8, "greedy_accuracy": 0.5, "pass_at_1": 0.5, "pass_at_k": 0.8, "k": 8,
        "mean_score": 0.5, "mean_tokens": 20.0, "distinct_2": 0.5, "self_bleu": 0.5, "entropy": 1.0, "num_errors": 0,
    }  # fmt: skip
    policy = PolicyRef(name=f"round-{number:04d}", uri="/m", digest="d")
    table = FileRef(path="t", num_bytes=1, sha256="s", num_rows=10)
    return Evaluation(policy=policy, per_prompt=table, **{**usual, **figures})


def names(*history: Evaluation, incumbent: Evaluation | None = None, **config) -> list[str]:
    return [a.name for a in alarms(history, incumbent or history[-2], HealthConfig(**config))]


START = evaluation()


def test_a_policy_that_only_gets_better_gives_no_alarm() -> None:
    assert names(START, evaluation(pass_at_1=0.9, pass_at_k=0.95, entropy=0.1)) == []


@pytest.mark.parametrize(
    ("figures", "alarm"),
    [
        ({"pass_at_1": 0.6, "pass_at_k": 0.7}, ["coverage"]),
        ({"pass_at_1": 0.4, "pass_at_k": 0.7}, []),  # simply worse: the promotion rule's business
        ({"pass_at_1": 0.6, "pass_at_k": 0.76}, []),
        ({"mean_tokens": 41.0}, ["length"]),
        ({"mean_tokens": 9.0}, ["length"]),
        ({"mean_tokens": 39.0}, []),
        ({"distinct_2": 0.2}, ["repetition"]),
    ],
)
def test_each_alarm_has_its_sign(figures, alarm) -> None:
    assert names(START, evaluation(**figures)) == alarm


def test_collapse_is_low_entropy_and_two_falls_of_coverage() -> None:
    falling = [
        evaluation(pass_at_k=0.8),
        evaluation(pass_at_k=0.78, entropy=0.3),
        evaluation(pass_at_k=0.77, entropy=0.2),
    ]
    assert names(*falling) == ["collapse"]
    assert names(*falling[:2]) == []
    assert names(*falling[:2], evaluation(pass_at_k=0.77, entropy=0.6)) == []
    assert names(*falling[:2], evaluation(pass_at_k=0.79, entropy=0.2)) == []
    assert names(*falling, max_entropy_drop=0.9) == []


def test_coverage_is_held_against_the_incumbent_and_not_the_round_before() -> None:
    worse = evaluation(pass_at_k=0.4)
    assert names(START, worse, evaluation(pass_at_1=0.6, pass_at_k=0.7), incumbent=START) == ["coverage"]


def test_self_bleu_is_one_for_equal_completions_and_low_for_unlike_ones() -> None:
    same = [[1, 2, 3, 4, 5]] * 3
    unlike = [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13, 14, 15]]
    near = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 2, 3, 9, 5]]
    assert self_bleu([same]) == pytest.approx(1.0)
    assert self_bleu([unlike]) < 0.2  # nothing in common, but for the smoothing
    assert self_bleu([unlike]) < self_bleu([near]) < 1.0
    assert self_bleu([[[1, 2]], []]) == 0.0


def test_distinct_n_counts_every_gram_once() -> None:
    assert distinct_n([[1, 2, 1, 2]], 2) == pytest.approx(2 / 3)
    assert distinct_n([[1]], 2) == 0.0

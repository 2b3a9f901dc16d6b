"""Promotion rules on made-up results, and the log."""

import numpy as np
import pyarrow as pa
import pytest

from rsft_cluster.errors import ConfigError, StageError
from rsft_cluster.evaluation.promotion import always, bootstrap_interval, paired_bootstrap
from rsft_cluster.records import PolicyRef
from rsft_cluster.runs.lease import hold
from rsft_cluster.runs.promotions import PromotionLog
from rsft_cluster.store import Store


def results(rates, start=0):
    rates = np.asarray(rates, dtype=float)
    return pa.table(
        {
            "prompt_id": [f"p{i:04d}" for i in range(start, start + len(rates))], "pass_rate": rates,
            "greedy_passed": rates > 0.5, "mean_score": rates,
        }
    )  # fmt: skip


def policy(number):
    return PolicyRef(name=f"round-{number:04d}", uri=f"/m/{number}", digest=str(number))


def test_a_clear_gain_is_promoted_with_its_interval():
    generator = np.random.default_rng(0)
    old = generator.random(200) * 0.5
    decision = paired_bootstrap(results(old), results(old + 0.3))
    assert decision.promoted
    assert decision.difference_low == pytest.approx(0.3)
    assert "exceeds 0" in decision.reason


def test_the_same_policy_is_never_promoted_over_itself():
    same = results(np.random.default_rng(1).random(100))
    assert not paired_bootstrap(same, same).promoted


def test_noise_alone_is_promoted_no_more_often_than_the_confidence_allows():
    generator = np.random.default_rng(2)
    promoted = sum(
        paired_bootstrap(results(generator.random(80)), results(generator.random(80)), resamples=400).promoted
        for _ in range(300)
    )
    assert promoted <= 0.05 * 300  # the level is 2.5 %; 5 % is three standard deviations above


def test_a_worse_policy_is_kept_out_whatever_its_greedy_luck():
    old = np.full(100, 0.6)
    decision = paired_bootstrap(results(old), results(old - 0.2))
    assert not decision.promoted
    assert "0.600 -> 0.400" in decision.reason


def test_prompts_are_paired_by_id_and_not_by_row():
    old = results([0.0, 1.0, 0.5])
    new = old.take([2, 0, 1])
    assert paired_bootstrap(old, new).difference_high == 0.0


def test_evaluations_without_a_common_prompt_cannot_be_compared():
    with pytest.raises(StageError, match="no judged prompt in common"):
        paired_bootstrap(results([1.0]), results([1.0], start=5))


def test_an_unknown_metric_is_refused():
    with pytest.raises(ConfigError, match="one of pass_rate, greedy_passed, mean_score"):
        paired_bootstrap(results([1.0]), results([1.0]), metric="vibes")


def test_always_promotes_and_says_so():
    decision = always(results([1.0]), results([0.0]))
    assert decision.promoted
    assert "always" in decision.reason


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        low, high = bootstrap_interval(generator.normal(0.1, 1.0, 100), confidence=0.9, resamples=500, seed=0)
        covered += low <= 0.1 <= high
    assert 0.84 <= covered / 300 <= 0.95


@pytest.fixture
def lease(tmp_path):
    with hold(Store(str(tmp_path))) as lease:
        yield lease


@pytest.fixture
def log(lease):
    log = PromotionLog(lease.store)
    log.append(lease, action="start", policy=policy(0), reason="", round_number=0)
    log.append(lease, action="promote", policy=policy(1), reason="better", round_number=1)
    log.append(lease, action="keep", policy=policy(1), reason="worse", round_number=2)
    return log


def test_the_newest_entry_is_current(log):
    assert log.current().policy.name == "round-0001"
    assert [e.action for e in log.entries()] == ["start", "promote", "keep"]


def test_rollback_goes_to_the_policy_before_and_keeps_the_log(log, lease):
    assert log.rollback(lease, to=None).policy.name == "round-0000"
    assert [e.action for e in log.entries()] == ["start", "promote", "keep", "rollback"]
    assert log.rollback(lease, to="round-0001").policy.name == "round-0001"


def test_rollback_to_what_never_was_current_is_refused_with_what_was(log, lease):
    with pytest.raises(ConfigError, match="policies that were current before: round-0000"):
        log.rollback(lease, to="round-0002")


def test_rollback_of_an_empty_log_is_refused(lease):
    with pytest.raises(ConfigError, match="promoted nothing yet"):
        PromotionLog(lease.store).rollback(lease, to=None)

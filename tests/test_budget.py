"""Where the next wave goes: posteriors, stopping, allocation and the run's budget."""

import numpy as np
import pytest

from rsft_cluster.config import BudgetConfig
from rsft_cluster.rounds.budget import Allowance, Standing, is_futile, next_wave, spent


def standing(candidates, drawn, kept=None, goals=1, lost=()) -> Standing:
    candidates, drawn = np.array(candidates), np.array(drawn)
    kept = drawn if kept is None else np.array(kept)
    is_lost = np.isin(np.arange(len(drawn)), lost)
    return Standing(candidates, drawn, kept, np.broadcast_to(goals, drawn.shape), is_lost)


def fresh_standing(num_prompts: int, goal: int) -> Standing:
    return standing([0] * num_prompts, [0] * num_prompts, goals=goal)


def wave(found: Standing, *, most: int = 8, allowance: Allowance | None = None, **budget):
    config = BudgetConfig(**{"wave_size": 2, **budget})
    return next_wave(found, config, most=most, allowance=allowance or Allowance())


def test_done_lost_and_exhausted_prompts_get_nothing_and_the_rest_a_wave() -> None:
    found = wave(standing([2, 2, 8, 7, 2], [1, 0, 0, 0, 0], lost=[4]))
    assert found.counts.tolist() == [0, 2, 0, 1, 0]
    assert (found.num_done, found.num_futile, found.num_over_budget) == (1, 2, 0)


def test_distinct_candidates_count_towards_the_goal_and_repeats_do_not() -> None:
    assert wave(standing([4, 4], [3, 3], kept=[1, 2], goals=2)).counts.tolist() == [2, 0]


@pytest.mark.parametrize(("num_rejected", "futile"), [(0, False), (4, False), (12, True)])
def test_futility_is_the_chance_of_what_is_missing_by_the_posterior(num_rejected, futile) -> None:
    found = standing([num_rejected], [0], goals=4)
    config = BudgetConfig(wave_size=1, futile_below=0.02)
    assert is_futile(found, config, 16).tolist() == [futile]
    # By simulation: four acceptances among what is left of 16, a under Beta(1/2, 1/2 + rejected).
    rng = np.random.default_rng(0)
    hits = rng.binomial(16 - num_rejected, rng.beta(0.5, 0.5 + num_rejected, 200_000))
    assert (np.mean(hits >= 4) < 0.02) == futile


def test_futility_knows_what_is_there_already_and_needs_a_goal() -> None:
    config = BudgetConfig(wave_size=1, futile_below=0.2)
    assert is_futile(standing([30, 30], [3, 0], goals=4), config, 32).tolist() == [False, True]
    # All of eight are wanted: P = .196.
    assert is_futile(fresh_standing(3, 8), config, 8).all()
    assert not is_futile(fresh_standing(3, 8), BudgetConfig(wave_size=1, futile_below=0.19), 8).any()
    assert not is_futile(fresh_standing(3, 2**31 - 1), config, 8).any()
    never = BudgetConfig(wave_size=1)
    assert not is_futile(standing([10_000], [0]), never, 20_000).any()


def test_variance_gives_hard_prompts_more_and_keeps_the_mean() -> None:
    found = wave(standing([8, 8, 8, 8], [1, 2, 4, 6], goals=9), most=100, wave_size=10, allocation="variance")
    assert list(found.counts) == sorted(found.counts, reverse=True)
    assert found.counts[0] > found.counts[-1]
    assert abs(found.counts.mean() - 10) <= 1
    expected = ((np.array([1, 2, 4, 6]) + 0.5) / 9) ** -0.5
    assert found.counts.tolist() == np.rint(10 * expected / expected.mean()).tolist()


def test_the_runs_budget_cuts_the_wave_and_says_how_many_stay_open() -> None:
    fresh = fresh_standing(5, 1)
    found = wave(fresh, allowance=Allowance(num_candidates=7))
    assert found.counts.tolist() == [2, 2, 2, 0, 0]
    assert found.num_over_budget == 2
    assert "2 open prompts are over the run's budget" in found.describe()
    left = spent(Allowance(num_candidates=7), num_candidates=6, num_tokens=60)
    assert not wave(fresh, allowance=left).num_candidates


def test_a_token_budget_is_kept_by_the_mean_so_far() -> None:
    fresh = fresh_standing(5, 1)
    found = wave(fresh, allowance=Allowance(num_tokens=45, tokens_a_candidate=10.0))
    assert found.num_candidates == 4
    assert found.expected_tokens == 40
    assert not wave(fresh, allowance=Allowance(num_tokens=0, tokens_a_candidate=10.0)).num_candidates


def test_the_forecast_is_the_posterior_mean() -> None:
    found = wave(standing([3, 3], [0, 2], goals=9))
    assert found.expected_accepted == pytest.approx(2 * 0.5 / 4 + 2 * 2.5 / 4)


def test_a_forecast_comes_true_on_average() -> None:
    rng = np.random.default_rng(1)
    truth = rng.beta(0.5, 0.5, 20_000)
    drawn = rng.binomial(4, truth)
    found = wave(standing(np.full(20_000, 4), drawn, goals=99), most=1000)
    assert rng.binomial(found.counts, truth).sum() == pytest.approx(found.expected_accepted, rel=0.02)

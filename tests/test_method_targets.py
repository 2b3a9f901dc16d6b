"""Every acceptance rule draws from the distribution that it states, and the tempting mistakes are found.

Against an enumerated language, through the real sampler, judge and decision, with fixed seeds. The negative tests are
as much a part: each does what is often done, and must fail the same check.
"""

import math

import numpy as np
import pytest
from oracles import chi_square_p
from target_constraints import score_of
from targets import counts, expected_variation, language, total_variation

from rsft_cluster.acceptance.compatible import check_compatible
from rsft_cluster.acceptance.decide import bind_rule
from rsft_cluster.config import AcceptanceConfig, BudgetConfig, Plugin, RunConfig
from rsft_cluster.errors import ConfigError

NUM = 40_000
HOT = 1.5
BETA = 0.4


@pytest.fixture(scope="module")
def lang(tmp_path_factory):
    return language(tmp_path_factory.mktemp("targets") / "model")


@pytest.fixture(scope="module")
def policy(lang):
    return lang.policy()


@pytest.fixture(scope="module")
def pool(lang, tmp_path_factory):
    return lang.judged(tmp_path_factory.mktemp("plain"), num=NUM)


@pytest.fixture(scope="module")
def hot(lang, tmp_path_factory):
    return lang.judged(tmp_path_factory.mktemp("hot"), num=NUM, temperature=HOT)


def p_of(kept, target) -> float:
    return chi_square_p(*counts(kept, target))


def follows(kept, target) -> None:
    """Assert that what was kept may well be drawn from the target, by both measures."""
    assert p_of(kept, target) > 1e-4
    assert total_variation(kept, target) < 3 * expected_variation(target, len(kept))


@pytest.mark.parametrize(
    ("rule", "params", "beta", "cap"),
    [
        ("all_passed", {}, math.inf, 1.0),
        ("threshold", {"min_score": 0.0}, math.inf, 1.0),
        ("boltzmann", {"beta": BETA}, BETA, 1.0),
        ("boltzmann", {"beta": BETA, "cap": 0.5}, BETA, 0.5),
    ],
)
def test_a_rule_follows_its_target_at_its_rate(lang, policy, pool, rule, params, beta, cap) -> None:
    kept, target = pool.kept(rule, **params), lang.tilted(policy, beta, cap)
    follows(kept, target)
    # The acceptance rate is sum p a, within four standard deviations.
    rate = sum(
        p * math.exp((min(score_of(lang.text(y)), cap) - cap) / beta) for y, p in policy.items() if lang.passes(y)
    )
    assert len(kept) / NUM == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / NUM))


def test_the_target_is_told_from_its_neighbours(lang, policy, pool) -> None:
    kept = pool.kept("boltzmann", beta=BETA)
    assert p_of(kept, lang.tilted(policy, 1.5 * BETA)) < 1e-4
    assert p_of(kept, lang.tilted(policy, BETA, 0.5)) < 1e-4
    assert p_of(pool.kept("all_passed"), lang.tilted(policy, BETA)) < 1e-4
    assert p_of(pool.kept("boltzmann", beta=1e6), lang.tilted(policy)) > 1e-4  # no tilt: plain rejection
    best = max(score_of(lang.text(y)) for y in policy if lang.passes(y))
    coldest = pool.kept("boltzmann", beta=0.01, cap=best)
    assert {score_of(lang.text(y)) for y in coldest} == {best}


def test_a_threshold_cuts_the_target_off(lang, policy, pool) -> None:
    high = {y: p for y, p in lang.tilted(policy).items() if score_of(lang.text(y)) >= 0.375}
    follows(pool.kept("threshold", min_score=0.375), {y: p / sum(high.values()) for y, p in high.items()})


def test_hotter_samples_follow_the_policy_when_corrected_and_not_otherwise(lang, policy, hot) -> None:
    proposal = lang.policy(HOT)
    bound = max(math.log(policy[y] / proposal[y]) for y in policy if lang.passes(y))
    follows(hot.kept("off_policy", log_bound=bound), lang.tilted(policy))
    assert p_of(hot.kept("all_passed"), lang.tilted(policy)) < 1e-4  # without p/q
    follows(hot.kept("all_passed"), lang.tilted(proposal))  # which is the tilt of what was sampled
    tilt = max(math.log(policy[y] / proposal[y]) + score_of(lang.text(y)) / BETA for y in policy if lang.passes(y))
    follows(hot.kept("off_policy", log_bound=tilt, beta=BETA), lang.tilted(policy, BETA))
    # A bound below the largest weight gives the truncated target that the rule states.
    cut = {y: q * min(policy[y] / q, 1.0) for y, q in proposal.items() if lang.passes(y)}
    total = sum(cut.values())
    truncated = hot.kept("off_policy", log_bound=0.0)
    follows(truncated, {y: w / total for y, w in cut.items()})
    assert p_of(truncated, lang.tilted(policy)) < 1e-4


def test_a_supremum_comes_close_with_many_candidates(lang, policy, pool, hot) -> None:
    follows(pool.kept("boltzmann_supremum", beta=BETA), lang.tilted(policy, BETA))
    follows(hot.kept("off_policy_supremum"), lang.tilted(policy))


def test_a_supremum_of_few_candidates_is_inexact_and_a_running_one_worse(lang, policy, pool) -> None:
    beta, size = 0.15, 16
    target = lang.tilted(policy, beta)
    groups = pool.grouped(size)
    whole = total_variation(groups.kept("boltzmann_supremum", beta=beta), target)
    assert whole > 5 * expected_variation(target, NUM // size)
    u, passed = groups.judged.column("u").to_numpy(), groups.judged.column("passed").to_numpy()
    score = np.where(passed, groups.judged.column("score").to_numpy(), -np.inf).reshape(-1, size)
    running = np.maximum.accumulate(score, axis=1)  # decides each candidate as it comes
    chance = np.exp((score - np.where(np.isfinite(running), running, 0.0)) / beta).ravel()
    early = [groups.tokens[i] for i in np.flatnonzero(u < chance)]
    assert total_variation(early, target) > whole + 0.05


def test_cut_proposals_do_not_follow_the_policy_and_are_refused(lang, policy, tmp_path) -> None:
    cut = lang.judged(tmp_path, num=NUM, top_p=0.8)
    kept, target = cut.kept("off_policy_supremum"), lang.tilted(policy)
    assert p_of(kept, target) < 1e-4
    reached = {y: p for y, p in target.items() if y in set(cut.tokens)}
    # On what can be drawn at all the correction is right.
    support = {y: p / sum(reached.values()) for y, p in reached.items()}
    assert total_variation(kept, support) < 3 * expected_variation(support, len(kept))


@pytest.mark.parametrize(
    ("sampling", "says"),
    [
        ({"temperature": 0.7}, "below 1, p/q grows without bound"),
        ({"top_p": 0.9}, "sampling.top_p cuts tokens off"),
        ({"top_k": 5}, "sampling.top_k cuts tokens off"),
        ({"min_p": 0.1}, "sampling.min_p cuts tokens off"),
    ],
)
@pytest.mark.parametrize("rule", [{"use": "off_policy", "params": {"log_bound": 1.0}}, {"use": "off_policy_supremum"}])
def test_a_proposal_that_does_not_cover_the_policy_is_refused(sampling, says, rule) -> None:
    with pytest.raises(ConfigError, match=says):
        check_compatible(run_config(acceptance={"rule": rule}, sampling=sampling))
    check_compatible(run_config(acceptance={"rule": rule}, sampling={"temperature": 1.2}))


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_best_of_n_has_its_pmf_and_keeps_its_bounds(lang, policy, pool, n) -> None:
    """pi(y) [F(r)^n - F_<(r)^n] / P(r), failed candidates below all others; KL and win rate as Beirami et al. say."""
    rank = {y: score_of(lang.text(y)) if lang.passes(y) else -1.0 for y in policy}
    levels = sorted(set(rank.values()))
    mass = {r: sum(p for y, p in policy.items() if rank[y] == r) for r in levels}
    below = {r: sum(mass[s] for s in levels if s < r) for r in levels}
    best = {
        y: p * ((below[rank[y]] + mass[rank[y]]) ** n - below[rank[y]] ** n) / mass[rank[y]] for y, p in policy.items()
    }
    assert sum(best.values()) == pytest.approx(1.0)
    kl = sum(q * math.log(q / policy[y]) for y, q in best.items() if q > 1e-300)
    assert kl <= math.log(n) - (n - 1) / n + 1e-9
    # Ties, shared, half win: at most n / (n + 1).
    win = sum(q * (below[rank[y]] + 0.5 * mass[rank[y]]) for y, q in best.items())
    assert win <= n / (n + 1) + 1e-9
    passing = {y: q for y, q in best.items() if rank[y] >= 0}
    target = {y: q / sum(passing.values()) for y, q in passing.items()}
    follows(pool.grouped(n).kept("best_of_n", n=1, distinct=False), target)
    if n > 1:
        assert p_of(pool.grouped(n).kept("best_of_n", n=1, distinct=False), lang.tilted(policy)) < 1e-4


def test_the_rso_loop_returns_the_proposal_when_it_takes_all(lang, policy, pool) -> None:
    beta = 0.3
    target, proposal = lang.tilted(policy, beta), lang.tilted(policy)
    eight = pool.grouped(8)
    all_of_8 = eight.kept("rso_compat", beta=beta, num_kept=8)
    assert total_variation(all_of_8, proposal) < 3 * expected_variation(proposal, len(all_of_8))
    assert total_variation(all_of_8, target) > 0.25
    one_of_64 = pool.grouped(64).kept("rso_compat", beta=beta, num_kept=1)
    assert total_variation(one_of_64, target) < total_variation(all_of_8, target)


def test_stopping_at_k_keeps_the_lowest_indices_and_not_the_first_to_finish(lang, policy, pool) -> None:
    target, groups = lang.tilted(policy, BETA), pool.grouped(64)
    budget = BudgetConfig(wave_size=1, until_accepted=2)
    follows(groups.kept("boltzmann", beta=BETA, budget=budget), target)
    # By completion order: shorter answers finish first.
    finished = sorted(range(len(groups.tokens)), key=lambda i: (i // 64, len(groups.tokens[i]), i))
    accepted = set(groups_accepted(groups))
    early: dict[int, list[int]] = {}
    for i in finished:
        if i in accepted and len(early.setdefault(i // 64, [])) < 2:
            early[i // 64].append(i)
    assert p_of([groups.tokens[i] for rows in early.values() for i in rows], target) < 1e-4


def groups_accepted(groups) -> list[int]:
    chance = np.where(
        groups.judged.column("passed").to_numpy(), np.exp((groups.judged.column("score").to_numpy() - 1) / BETA), 0.0
    )
    return np.flatnonzero(groups.judged.column("u").to_numpy() < chance).tolist()


def test_leaving_repeats_out_keeps_each_with_the_chance_of_being_drawn_at_all(lang, policy, pool) -> None:
    size = 32
    target = lang.tilted(policy)
    kept = pool.grouped(size).kept("all_passed", dedupe=True)
    num_groups = NUM // size
    for y in sorted(target, key=lambda y: -target[y])[:12]:
        chance = 1 - (1 - policy[y]) ** size
        assert kept.count(y) / num_groups == pytest.approx(
            chance, abs=4 * math.sqrt(chance * (1 - chance) / num_groups) + 1e-9
        )
    assert p_of(kept, target) < 1e-4  # the target is another one then


def test_a_tuned_beta_gives_the_rate_or_the_distance_that_was_asked_for(lang, policy, pool) -> None:
    passing = len(pool.kept("all_passed"))
    kept = pool.kept("boltzmann_tuned", acceptance_rate=0.25)
    assert len(kept) / passing == pytest.approx(0.25, abs=0.02)
    near = pool.kept("boltzmann_tuned", max_kl=0.1)
    proposal = lang.tilted(policy)

    def kl(beta: float) -> float:
        return sum(q * math.log(q / proposal[y]) for y, q in lang.tilted(policy, beta).items())

    low, high = 0.01, 100.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if kl(middle) < 0.1 else (middle, high)
    follows(near, lang.tilted(policy, high))


def test_top_share_keeps_the_best_of_all_prompts_together(lang, pool) -> None:
    kept = pool.grouped(100).kept("top_share", share=0.1)
    scores = sorted((score_of(lang.text(y)) for y in pool.kept("all_passed")), reverse=True)
    assert len(kept) == math.ceil(0.1 * len(scores))
    assert sorted((score_of(lang.text(y)) for y in kept), reverse=True) == scores[: len(kept)]


@pytest.mark.parametrize("rule", ["best_of_n", "boltzmann_supremum", "boltzmann_tuned", "top_share", "rso_compat"])
def test_rules_that_waves_would_bias_are_refused_with_waves(rule) -> None:
    params = {"best_of_n": {"n": 1}, "boltzmann_tuned": {"max_kl": 0.1}, "top_share": {"share": 0.5}}
    acceptance = {"rule": {"use": rule, "params": params.get(rule, {"beta": 0.5})}}
    check_compatible(run_config(acceptance=acceptance))
    with pytest.raises(ConfigError, match=r"budget\.wave_size"):
        check_compatible(run_config(acceptance=acceptance, budget={"wave_size": 2}))


@pytest.mark.parametrize("rule", ["all_passed", "boltzmann", "threshold", "off_policy"])
def test_rules_that_decide_alone_go_with_waves(rule) -> None:
    params = {"boltzmann": {"beta": 0.5}, "threshold": {"min_score": 0.5}, "off_policy": {"log_bound": 1.0}}
    acceptance = {"rule": {"use": rule, "params": params.get(rule, {})}}
    check_compatible(run_config(acceptance=acceptance, budget={"wave_size": 2}))
    with pytest.raises(ConfigError, match="drop_all_passed"):
        check_compatible(run_config(acceptance={**acceptance, "drop_all_passed": True}, budget={"wave_size": 2}))


FAIR = {"protected": {"sex": ["f", "m"]}, "decision": "(yes|no)", "positive": "yes"}


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"acceptance": {"rule": {"use": "boltzmann", "params": {"beta": 1}}, "dedupe": False}}, "rule: all_passed"),
        ({"acceptance": {"dedupe": True}}, "acceptance.dedupe: false"),
        ({"acceptance": {"dedupe": False, "near_duplicates": 0.9}}, "near_duplicates: null"),
        ({"acceptance": {"dedupe": False}, "budget": {"skip_solved": True}}, "skip_solved: false"),
    ],
)
def test_agreement_under_swaps_needs_that_all_members_are_decided_alike(parts, says) -> None:
    with pytest.raises(ConfigError, match=f"keeps answers under all protected values or none.*{says}"):
        check_compatible(run_config(fairness=FAIR, **parts))
    check_compatible(run_config(fairness={**FAIR, "swaps": "ask"}, **parts))
    check_compatible(run_config(fairness=FAIR, acceptance={"dedupe": False}))


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"acceptance": {"prefer": "score"}}, "acceptance.prefer"),
        ({"acceptance": {"max_per_prompt": 1}}, "are never kept, since acceptance.max_per_prompt is 1"),
        ({"budget": {"allocation": "difficulty", "skip_solved": True}}, "easy prompts keep fewer"),
        ({"sampling": {"adaptive": {"draws_at_once": 4}}}, "each wave begins to remember anew"),
    ],
)
def test_what_waves_cannot_keep_is_refused(parts, says) -> None:
    budget = {"wave_size": 2, "until_accepted": 2, **parts.pop("budget", {})}
    with pytest.raises(ConfigError, match=says):
        check_compatible(run_config(budget=budget, **parts))


def test_a_pilot_may_not_choose_what_the_rule_refuses() -> None:
    acceptance = {"rule": {"use": "off_policy", "params": {"log_bound": 1.0}}}
    with pytest.raises(ConfigError, match=r"temperature is 0\.7"):
        check_compatible(run_config(acceptance=acceptance, pilot={"temperatures": [0.7, 1.2]}))
    check_compatible(run_config(acceptance=acceptance, pilot={"temperatures": [1.0, 1.2]}))


def test_a_schedule_moves_the_rules_parameters_from_round_to_round() -> None:
    acceptance = AcceptanceConfig(
        rule=Plugin(use="threshold", params={"min_score": 0.1}), schedule={"min_score": (0.2, 0.6)}
    )
    assert [bind_rule(acceptance, n).params["min_score"] for n in (1, 2, 3)] == [0.2, 0.6, 0.6]
    with pytest.raises(ConfigError, match="min_scor"):
        check_compatible(run_config(acceptance={"rule": "threshold", "schedule": {"min_scor": [0.5]}}))
    with pytest.raises(ConfigError, match=r"min_score is 1\.5"):
        check_compatible(run_config(acceptance={"rule": "threshold", "schedule": {"min_score": [0.5, 1.5]}}))


def run_config(**parts) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": "r", "policy": {"model": "/m"}, "prompts": {"paths": ["p"]},
            "scoring": {"constraints": ["finished"]}, "evaluation": {"prompts": {"paths": ["h"]}}, **parts,
        }
    )  # fmt: skip

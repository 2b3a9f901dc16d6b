"""Adaptive rejection in the sampling actor: an enumerated model, accounting, and what is refused."""

import math
from collections import Counter
from dataclasses import replace
from typing import ClassVar

import models
import numpy as np
import pytest
from oracles import chi_square_p
from target_constraints import LENGTH, score_of
from targets import NAMING, counts, language
from test_method_targets import run_config

from rsft_cluster.acceptance.compatible import check_compatible
from rsft_cluster.config import AdaptiveConfig, Constraint, Plugin, SamplingConfig
from rsft_cluster.errors import ConfigError, PluginError
from rsft_cluster.generators.base import Completion, Decoding, Prompt
from rsft_cluster.generators.factories import transformers
from rsft_cluster.generators.transformers import TransformersGenerator
from rsft_cluster.keys import sampling_key
from rsft_cluster.plugins import bind
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.sampling.adaptive.generator import adaptive, shortest_dead
from rsft_cluster.sampling.adaptive.trie import Trie
from rsft_cluster.schemas import Message

# The enumerated language of a tiny model, through the actors

NUM, NUM_PROMPTS, BETA = 120, 80, 0.4
TILT = Plugin(use="boltzmann", params={"beta": BETA})
HALF = Plugin(use="threshold", params={"min_score": 0.5})


@pytest.fixture(scope="module")
def lang(tmp_path_factory):
    return language(tmp_path_factory.mktemp("adaptive") / "model")


def sampled(lang, folder, kind, rule, *, at_once=10, **settings):
    how = AdaptiveConfig(kind=kind, draws_at_once=at_once)
    return lang.judged(folder, num=NUM, num_prompts=NUM_PROMPTS, adaptive=how, rule=rule, **settings)


def chance_under(lang, rule, y):
    score = score_of(lang.text(y))
    return lang.passes(y) * (math.exp((score - 1) / BETA) if rule is TILT else float(score >= 0.5))


@pytest.mark.parametrize(
    ("kind", "rule", "constraints"),
    [("hard", HALF, None), ("hard", HALF, NAMING), ("soft", TILT, None), ("soft", TILT, NAMING)],
)
def test_accepted_candidates_follow_the_enumerated_target(lang, tmp_path, kind, rule, constraints):
    pool = sampled(lang, tmp_path, kind, rule, constraints=constraints)
    policy = lang.policy()
    weights = {y: p * chance_under(lang, rule, y) for y, p in policy.items() if chance_under(lang, rule, y)}
    rate = sum(weights.values())
    wanted = {y: w / rate for y, w in weights.items()}
    places = pool.kept_places(rule.use, **rule.params)
    assert chi_square_p(*counts([pool.tokens[i] for i in places], wanted)) > 1e-4
    first = [i for n, i in enumerate(places) if n < 20 or i - places[n - 20] > i % NUM]
    assert Counter(i // NUM for i in first) == dict.fromkeys(range(NUM_PROMPTS), 20)
    assert chi_square_p(*counts([pool.tokens[i] for i in first], wanted)) > 1e-4
    # Acceptance begins as that of plain rejection and rises.
    accepted = np.zeros((NUM_PROMPTS, NUM))
    accepted.flat[places] = 1
    begin, end = accepted[:, :10], accepted[:, -20:].mean()
    assert begin.mean() == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / begin.size))
    assert end > 1.2 * rate
    if kind == "soft":
        # What is wrong without the division: those seen before are kept too rarely.
        column = pool.judged.column_names.index("survival")
        ones = pool.judged.set_column(column, "survival", [np.ones(pool.judged.num_rows)])
        wrong = replace(pool, judged=ones).kept(rule.use, **rule.params)
        assert chi_square_p(*counts(wrong, wanted)) < 1e-9


def test_hot_samples_follow_the_policy_and_the_recorded_probabilities_are_those_of_the_proposal(lang, tmp_path):
    policy, proposal = lang.policy(), lang.policy(1.5)
    bound = max(math.log(p / proposal[y]) for y, p in policy.items() if lang.passes(y))
    rule = Plugin(use="off_policy", params={"log_bound": bound})
    pool = sampled(lang, tmp_path, "soft", rule, temperature=1.5)
    assert chi_square_p(*counts(pool.kept(rule.use, **rule.params), lang.tilted(policy))) > 1e-4
    for name, base in (("logprob", proposal), ("target_logprob", policy)):
        expected = [math.log(base[y]) for y in pool.tokens]
        np.testing.assert_allclose(pool.judged.column(name).to_numpy(), expected, rtol=0, atol=1e-4)
    # Of what was drawn again, exactly its acceptance probability was left.
    again = pool.judged.column("survival").to_numpy() < 1
    chances = np.exp(pool.judged.column("target_logprob").to_numpy() - pool.judged.column("logprob").to_numpy() - bound)
    assert again.mean() > 0.3
    np.testing.assert_allclose(pool.judged.column("survival").to_numpy()[again], chances[again], rtol=1e-4)


def test_what_is_left_is_what_was_not_rejected(lang):
    generator = TransformersGenerator(PolicySpec(lang.path), engine="batches")
    asked, trie, rejected = Prompt("p", [Message("raw", "ab")]), Trie(), set()
    for lot in range(20):
        keys = [[sampling_key(0, "round-0001", "p", i) for i in range(lot * 256, lot * 256 + 256)]]
        drawn = list(generator.generate([asked], Decoding(max_tokens=LENGTH), keys, [trie.root]))
        assert not rejected & {one.token_ids for one in drawn}
        for one in drawn:
            if not lang.passes(one.token_ids):
                trie.remember(one.token_ids, one.token_logprobs, 0.0)
                rejected.add(one.token_ids)
    policy = lang.policy()
    assert len(rejected) > 100
    assert trie.left == pytest.approx(1 - sum(policy[y] for y in rejected), rel=1e-5)


def test_a_prompt_that_nothing_passes_gets_fewer_candidates_and_is_accounted_for(lang, tmp_path):
    hopes = (Constraint(use="target_constraints:hopeless"),)
    pool = lang.judged(
        tmp_path,
        num=400,
        num_prompts=3,
        adaptive=AdaptiveConfig(draws_at_once=1),
        constraints=hopes,
        max_tokens=2,
        decides=True,
    )
    totals = pool.manifest.totals
    assert not totals.violations()
    assert (totals.num_prompts_unaccepted, totals.num_passed, totals.num_prompts_quarantined) == (3, 0, 0)
    # Two tokens of six: what begins with a letter dies at once, what begins with a special token by its second one.
    assert totals.num_candidates == len(pool.tokens) < 3 * (1 + 3 + 2 * 6 + 1)
    drawn = Counter(zip(pool.judged.column("prompt_id").to_pylist(), pool.tokens, strict=True))
    assert set(drawn.values()) == {1}


def test_what_could_not_be_judged_is_not_taken_off(lang, tmp_path):
    pool = sampled(
        lang, tmp_path, "hard", HALF, at_once=1, constraints=(Constraint(use="target_constraints:unreadable"),)
    )
    is_error = pool.judged.column("passed").is_null().to_numpy()
    drawn = Counter(
        (prompt, y)
        for prompt, y, error in zip(pool.judged.column("prompt_id").to_pylist(), pool.tokens, is_error, strict=True)
        if error
    )
    assert max(drawn.values()) > 3
    policy = lang.policy()
    share = sum(p for y, p in policy.items() if "a" in lang.text(y))
    first = is_error.reshape(NUM_PROMPTS, NUM)[:, 0].mean()
    assert first == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / NUM_PROMPTS))


def test_the_same_unit_gives_the_same_bytes(lang, tmp_path):
    settings = {"num": 32, "num_prompts": 8, "adaptive": AdaptiveConfig(kind="soft"), "rule": TILT, "batch_size": 16}
    one, two = (lang.judged(tmp_path / name, **settings).manifest.content for name in ("one", "two"))
    assert one == two


def test_the_fatal_character_is_found_among_the_tokens():
    tokens = models.tokenizer()

    def dead(text, fatal_at, *, end=True):
        ids = (*tokens(text, add_special_tokens=False)["input_ids"], *([models.EOS] if end else []))
        decoded = tokens.decode(ids, skip_special_tokens=True)
        completion = Completion(0, 0, (), ids, decoded, "stop", 0.0, 0.0)
        return shortest_dead(completion, fatal_at, lambda part: tokens.decode(part, skip_special_tokens=True))

    assert dead("abcd", 0) == 1
    assert dead("abcd", 2) == 3
    assert dead("a中b", 1) == 4  # three bytes
    assert dead("a中b", 2) == 5
    assert dead("abcd", 4) == 5  # beyond the text: the whole
    half = tuple(tokens("a中", add_special_tokens=False)["input_ids"][:3])
    cut = Completion(0, 0, (), half, tokens.decode(half), "length", 0.0, 0.0)
    assert cut.text.endswith("\ufffd")
    assert shortest_dead(cut, 1, tokens.decode) == 3  # may still become another character


# What is refused


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"acceptance": {"rule": "everything"}}, "acceptance.rule: everything rejects nothing"),
        ({"acceptance": {"rule": {"use": "best_of_n", "params": {"n": 1}}}}, "best_of_n compares candidates"),
        ({"acceptance": {"rule": {"use": "boltzmann_supremum", "params": {"beta": 1.0}}}}, "compares candidates"),
        ({"acceptance": {"rule": {"use": "off_policy_supremum"}}}, "compares candidates"),
        ({"acceptance": {"rule": {"use": "top_share", "params": {"share": 0.5}}}}, "compares candidates"),
        ({"controls": {"arms": ["random"]}}, "controls.arms: .* `random` learns from plain samples"),
        ({"sampling": {"adaptive": {}, "generator": "scripted"}}, "sampling.generator: scripted cannot leave out"),
        (
            {"fairness": {"protected": {"sex": ["f", "m"]}, "decision": "(.)", "positive": "y", "swaps": "ask"}},
            "fairness: .* cells are counted on plain samples",
        ),
    ],
)
def test_what_would_be_biased_is_refused(parts, says):
    sampling = {"adaptive": {}}
    with pytest.raises(ConfigError, match=says):
        check_compatible(run_config(**{"sampling": sampling, **parts}))
    for rule in (
        "all_passed",
        {"use": "boltzmann", "params": {"beta": 1.0}},
        {"use": "off_policy", "params": {"log_bound": 1.0}},
    ):
        check_compatible(run_config(sampling=sampling, acceptance={"rule": rule}))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": 0, "num_candidates": 1}, "temperature 0 draws nothing at random"),
        ({"determinism": "sample"}, "choose determinism unit"),
    ],
)
def test_settings_that_adaptive_sampling_cannot_keep_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        SamplingConfig(adaptive=AdaptiveConfig(), **settings)


class Steered:
    """A generator of a user's that draws by laws: it hands on to plain batches."""

    steerable: ClassVar[dict[str, object]] = {"by_laws": True}
    processors = ()

    def __init__(self, policy: PolicySpec, *, by_laws: bool = False) -> None:
        assert by_laws
        self._plain = transformers(policy, engine="batches")

    def generate(self, prompts, decoding, keys, laws=None):
        return self._plain.generate(prompts, decoding, keys, laws)

    def decode(self, token_ids):
        return self._plain.decode(token_ids)


def test_a_generator_of_a_users_that_declares_it_is_steered(lang, tmp_path):
    def drawn(folder, use):
        how = AdaptiveConfig(draws_at_once=8)
        return lang.judged(folder, num=64, num_prompts=2, adaptive=how, rule=HALF, generator=use).tokens

    use = f"{__name__}:Steered"
    check_compatible(run_config(sampling={"adaptive": {}, "generator": use}))
    assert drawn(tmp_path / "own", use) == drawn(tmp_path / "built in", "transformers")


def test_only_plain_batches_of_the_transformers_generator_draw_by_laws(lang):
    rule, how = bind(Plugin(use="all_passed"), "acceptance_rules", num_leading=1), AdaptiveConfig()
    scripted = bind(Plugin(use="scripted"), "generators", num_leading=1)
    with pytest.raises(PluginError, match="cannot leave out what was rejected"):
        adaptive(scripted, how, NAMING, rule)
    with pytest.raises(ConfigError, match="engine: batches"):
        list(lang.generator.generate([Prompt("p", [Message("raw", "ab")])], Decoding(), [[1]], [Trie().root]))

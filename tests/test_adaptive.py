"""Adaptive rejection draws from the rule's target at every moment, and faster; what is often done instead does not.

Twice: over a Markov language of 121 sequences in plain numpy, where a mistake has nowhere to hide, and over the
enumerated language of a tiny model through the collection's own actors. Fixed seeds; each negative test must fail the
check that its right counterpart passes.
"""

import math
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import models
import numpy as np
import pytest
import torch
from oracles import chi_square_p
from targets import LENGTH, NAMING, counts, language, score_of
from test_method_targets import run_config

from rsft_cluster.acceptance.compatible import check_compatible
from rsft_cluster.adaptive.generator import adaptive, shortest_dead
from rsft_cluster.adaptive.trie import Trie
from rsft_cluster.config import AdaptiveConfig, Constraint, Plugin, SamplingConfig
from rsft_cluster.constraints.base import Message, Verdict
from rsft_cluster.errors import ConfigError, PluginError
from rsft_cluster.generators.base import Completion, Decoding, PolicySpec, Prompt
from rsft_cluster.generators.drawing import draw, keys_tensor
from rsft_cluster.generators.transformers import TransformersGenerator
from rsft_cluster.keys import sampling_key
from rsft_cluster.plugins import bind

# A Markov language over a, b, c and the end, of at most four letters

END, LONGEST = 3, 4
NEXT = ((0.1, 0.2, 0.5, 0.2), (0.25, 0.35, 0.3, 0.1), (0.15, 0.5, 0.2, 0.15), (0.3, 0.2, 0.4, 0.1))
"""After each letter, and, in the last row, at the start."""


def markov():
    found, growing = {}, {(): 1.0}
    for _ in range(LONGEST):
        longer = {(*y, v): m * NEXT[y[-1] if y else END][v] for y, m in growing.items() for v in range(4)}
        found |= {y: m for y, m in longer.items() if y[-1] == END}
        growing = {y: m for y, m in longer.items() if y[-1] != END}
    return found | growing


PI = markov()


def passes(y):
    return y[-1] == END and (2, 2) not in pairwise(y) and y.count(0) != 1


def chance(y, beta):
    """The acceptance probability: 1 for three letters a, less for fewer."""
    return math.exp((y.count(0) / 3 - 1) / beta) if passes(y) else 0.0


def target(beta):
    weights = {y: p * chance(y, beta) for y, p in PI.items() if passes(y)}
    return {y: w / sum(weights.values()) for y, w in weights.items()}


def acceptance(beta):
    return sum(p * chance(y, beta) for y, p in PI.items())


class Drawing:
    """A completion that grows by one token a step, each by the trie as it is then."""

    def __init__(self, trie, rng):
        self.rng, self.node, self.tokens, self.logprobs = rng, trie.root, [], []

    def step(self):
        own = list(NEXT[self.tokens[-1] if self.tokens else END])
        weights = own
        if self.node is not None and self.node.children:
            known = self.node.children
            unknown = sum(p for v, p in enumerate(own) if v not in known)
            own = [known[v].probability if v in known else p * self.node.rest / unknown for v, p in enumerate(own)]
            weights = [p * known[v].left if v in known else p for v, p in enumerate(own)]
        if not any(weights):
            return True  # it died on the way, which befalls one that does not keep to one state of the trie
        (token,) = self.rng.choices(range(4), weights)
        self.tokens.append(token)
        self.logprobs.append(math.log(own[token]))
        self.node = self.node.after(token) if self.node is not None else None
        return token == END or len(self.tokens) == LONGEST

    def finished(self):
        while not self.step():
            pass
        return self


def dead_prefix(y):
    """The shortest prefix that nothing mends: two c."""
    return next((n for n in range(2, len(y) + 1) if y[n - 2 : n] == (2, 2)), len(y))


def run(*, num, at_once=1, beta=math.inf, seed=0, learn="soft", survive="then", max_nodes=20_000, kept=None):
    """Draw, decide and learn; return what was accepted in order, by trie, the acceptances, and the trie.

    `learn` is what is taken off, `survive` which share an acceptance is divided by: the right ones are `hard`, `cars`
    and `soft`, and `then`. With `kept`, draws end with so many accepted.
    """
    rng, trie = random.Random(seed), Trie(max_nodes)
    accepted, flags = [], []
    while len(flags) < num and (kept is None or len(accepted) < kept):
        lot = [Drawing(trie, rng).finished() for _ in range(at_once)]
        then = [trie.look_up(one.tokens)[0] for one in lot]
        us = [rng.random() for _ in lot]
        for one, before, u in zip(lot, then, us, strict=True):
            y, a = tuple(one.tokens), chance(tuple(one.tokens), beta)
            share = {"then": before, "now": trie.look_up(y)[0], "never": 1.0}[survive]
            keep = share > 0 and u < a / share
            accepted += [y] if keep else []
            flags.append(keep)
            length, left = {
                "nothing": (len(y), 1.0),
                "hard": (len(y), float(a > 0)),
                "cars": (dead_prefix(y) if a == 0 else len(y), float(a > 0)),
                "soft": (len(y), a),
                "rejected": (len(y), float(keep)),
                "too short": (min(len(y), 2) if a == 0 else len(y), float(a > 0)),
            }[learn]
            trie.remember(one.tokens[:length], one.logprobs[:length], left)
    return accepted, np.array(flags), trie


def p_of(accepted, wanted):
    assert set(accepted) <= set(wanted)
    return chi_square_p(*counts(accepted, wanted))


RIGHT = [("hard", math.inf), ("cars", math.inf), ("cars", 0.5), ("soft", 0.5), ("soft", 0.25)]


def test_the_language_has_121_sequences():
    assert len(PI) == 121
    assert sum(PI.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("at_once", [1, 16])
@pytest.mark.parametrize(("learn", "beta"), RIGHT)
def test_the_accepted_follow_the_target_and_the_mass_that_is_left_is_known(learn, beta, at_once):
    accepted, flags, trie = run(num=20_000, at_once=at_once, beta=beta, learn=learn)
    assert p_of(accepted, target(beta)) > 1e-4
    floor = acceptance(beta) if learn == "soft" else acceptance(math.inf)
    assert trie.left == pytest.approx(floor, rel=1e-4)
    # Among the last draws all but nothing is rejected that could have been foreseen.
    foreseen = acceptance(beta) / floor
    assert flags[-2000:].mean() == pytest.approx(foreseen, abs=4 * math.sqrt(foreseen * (1 - foreseen) / 2000) + 1e-3)


@pytest.mark.parametrize("learn", ["hard", "cars"])
def test_acceptance_rises_from_that_of_plain_rejection_to_nearly_one(learn):
    """Measured, over 50, 500 and 5 000 draws: .34, .80, .98, and .36, .84, .98 with dead prefixes."""
    flags = run(num=5000, learn=learn)[1]
    assert acceptance(math.inf) == pytest.approx(0.26, abs=0.001)
    assert flags[:50].mean() < 0.5
    assert 0.7 < flags[:500].mean() < 0.95 < flags.mean()


@pytest.mark.parametrize(("learn", "beta", "at_once"), [("hard", math.inf, 8), ("cars", 0.5, 1), ("soft", 0.25, 8)])
def test_the_first_few_accepted_follow_the_target_too(learn, beta, at_once):
    firsts = []
    for seed in range(300):
        accepted, _, _ = run(num=400, at_once=at_once, beta=beta, learn=learn, seed=seed, kept=10)
        assert len(accepted) >= 10
        firsts += accepted[:10]
    assert p_of(firsts, target(beta)) > 1e-4


@pytest.mark.parametrize(
    ("mistake", "num", "at_once"),
    [
        ({"learn": "soft", "survive": "never"}, 400, 1),  # never divided by what was left
        ({"learn": "soft", "survive": "now"}, 64, 64),  # divided by what is left later, not when it was drawn
        ({"learn": "rejected"}, 400, 1),  # removed for a u that was too high
        ({"learn": "too short"}, 400, 1),  # a prefix killed that had a way out
    ],
)
def test_mistakes_are_found(mistake, num, at_once):
    def accepted(**how):
        runs = (run(num=num, at_once=at_once, beta=0.25, seed=seed, **how) for seed in range(16_000 // num))
        return [y for ys, _, _ in runs for y in ys]

    assert p_of(accepted(**mistake), target(0.25)) < 1e-9
    assert p_of(accepted(), target(0.25)) > 1e-4


def continuous(*, width, num=200, num_tries=120):
    """Rows decoded side by side, each that ends followed by the next and learned from at once: the trie changes under
    the others."""
    rng, accepted = random.Random(1), []
    for _ in range(num_tries):
        trie = Trie()
        growing, num_begun = [Drawing(trie, rng) for _ in range(width)], width
        while growing:
            for one in [one for one in growing if one.step()]:
                growing.remove(one)
                if passes(tuple(one.tokens)):
                    accepted.append(tuple(one.tokens))
                else:
                    trie.remember(one.tokens, one.logprobs, 0.0)
                if num_begun < num:
                    growing.append(Drawing(trie, rng))
                    num_begun += 1
    return accepted


def test_a_completion_must_be_drawn_from_one_state_of_the_trie():
    assert p_of(continuous(width=1), target(math.inf)) > 1e-4
    assert p_of(continuous(width=64), target(math.inf)) < 1e-9


def test_draws_for_a_number_kept():
    """Measured, for 2 000 kept: 206 464 plain draws, 52 212 hard ones, 2 118 soft ones."""
    needed = {learn: len(run(num=10**6, beta=0.25, learn=learn, kept=2000)[1]) for learn in ("nothing", "hard", "soft")}
    assert needed["nothing"] == pytest.approx(2000 / acceptance(0.25), rel=0.1)
    assert needed["hard"] < 0.3 * needed["nothing"]
    assert needed["soft"] < 1.1 * 2000


def test_a_full_trie_forgets_and_stays_exact():
    accepted, flags, trie = run(num=20_000, beta=0.5, max_nodes=12)
    assert p_of(accepted, target(0.5)) > 1e-4
    assert trie.num_nodes <= 12
    assert acceptance(0.5) < flags.mean() < run(num=20_000, beta=0.5)[1].mean()


def test_a_full_trie_shows_the_decoder_what_it_holds():
    trie = Trie(max_nodes=2)
    assert len(trie.root.known.tokens) == 0
    trie.remember([4, 1], [math.log(0.25), math.log(0.5)], 0.0)
    assert trie.root.known.tokens.tolist() == [4]
    assert (trie.root.rest, trie.left, trie.num_nodes) == (0.75, 1.0, 2)


def test_masses_are_precise_near_nothing_and_near_all():
    sure, rare = -1e-13, math.log(1e-13)
    trie = Trie()
    trie.remember([0], [sure], 0.0)
    assert trie.left == 0.0  # within rounding nothing is left
    trie = Trie()
    trie.remember([0, 1], [math.log1p(-1e-9), math.log1p(-1e-6)], 0.0)
    assert trie.left == pytest.approx(1e-9 + 1e-6 * (1 - 1e-9), rel=1e-9)
    trie.remember([0, 2], [math.log1p(-1e-9), math.log(1e-6)], 0.0)
    assert trie.left == pytest.approx(1e-9, rel=1e-6)
    trie.remember([5, 1], [math.log(1e-9), rare], 0.0)
    assert trie.left == pytest.approx(1e-9, rel=1e-6)
    assert trie.root.after(5).rest == 1.0 - 1e-13


def test_a_dead_prefix_takes_its_completions_along():
    trie = Trie()
    half = math.log(0.5)
    trie.remember([0, 1], [half, half], 0.25)
    trie.remember([0], [half], 0.0)
    trie.remember([0, 2], [half, half], 0.0)  # drawn in the same lot
    assert (trie.left, trie.num_nodes) == (0.5, 2)
    assert trie.look_up([0, 1, 3]) == (0.0, 1)
    assert trie.look_up([1, 3]) == (1.0, 0)


# What the decoder draws by a law


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_follow_a_law(temperature):
    logits = torch.randn(300, generator=torch.Generator().manual_seed(3))
    trie = Trie()
    for token, probability, left in ((7, 0.2, 0.5), (150, 0.1, 0.0), (299, 0.3, 0.01)):
        trie.remember([token, 1], [math.log(probability), 0.0], left)
    num, known = 40_000, [7, 150, 299]
    drawn = draw(
        logits.expand(num, -1), keys=torch.arange(num) * 7919, steps=torch.zeros(num, dtype=torch.int64),
        decoding=Decoding(temperature=temperature), laws=[trie.root] * (num - 1) + [None],
    )  # fmt: skip
    plain = (logits.double() / temperature).softmax(-1)
    own = plain.clone()
    own[known] = 0.0
    own *= 0.4 / own.sum()
    own[known] = torch.tensor([0.2, 0.1, 0.3], dtype=torch.float64)
    weights = own.clone()
    weights[known] *= torch.tensor([0.5, 0.0, 0.01], dtype=torch.float64)
    chosen = drawn.tokens[:-1]
    assert chi_square_p(chosen.bincount(minlength=300).numpy(), (weights / weights.sum()).numpy()) > 1e-4
    torch.testing.assert_close(drawn.logprobs[:-1], own[chosen].log())
    torch.testing.assert_close(drawn.logprobs[-1], plain[drawn.tokens[-1]].log())
    torch.testing.assert_close(drawn.target_logprobs[:-1], logits.double().log_softmax(-1)[chosen], rtol=0, atol=1e-5)


def test_a_prefix_with_nothing_to_go_on_with_draws_something_dead():
    trie = Trie()
    trie.remember([0], [math.log(0.5)], 0.0)
    trie.remember([1], [math.log(0.5 - 1e-6)], 0.0)
    assert trie.left == pytest.approx(1e-6)
    (token,) = draw(
        torch.zeros(1, 2), keys=keys_tensor([1], device="cpu"), steps=torch.zeros(1, dtype=torch.int64),
        decoding=Decoding(), laws=[trie.root],
    ).tokens.tolist()  # fmt: skip
    assert trie.look_up([token]) == (0.0, 1)


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


def hopeless(candidate):
    """Constraint: nothing passes, whatever it begins with."""
    return Verdict(0.0, passed=False, fatal_at=0)


def unreadable(candidate):
    """Constraint: cannot tell of any completion with an a."""
    if "a" in candidate.completion:
        raise ValueError(candidate.completion)
    return True


def test_a_prompt_that_nothing_passes_gets_fewer_candidates_and_is_accounted_for(lang, tmp_path):
    hopes = (Constraint(use="test_adaptive:hopeless"),)
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
    pool = sampled(lang, tmp_path, "hard", HALF, at_once=1, constraints=(Constraint(use="test_adaptive:unreadable"),))
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
            {"fairness": {"protected": {"sex": ["f", "m"]}, "decision": "(.)", "positive": "y"}},
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


def test_only_plain_batches_of_the_transformers_generator_draw_by_laws(lang):
    rule, how = bind(Plugin(use="all_passed"), "acceptance_rules", num_leading=1), AdaptiveConfig()
    scripted = bind(Plugin(use="scripted"), "generators", num_leading=1)
    with pytest.raises(PluginError, match="cannot leave out what was rejected"):
        adaptive(scripted, how, NAMING, rule)
    with pytest.raises(ConfigError, match="engine: batches"):
        list(lang.generator.generate([Prompt("p", [Message("raw", "ab")])], Decoding(), [[1]], [Trie().root]))

"""Adaptive rejection draws from the rule's target at every moment, and faster; what is often done instead does not.

Over a Markov language of 121 sequences in plain Python, where a mistake has nowhere to hide. Fixed seeds; each negative
test must fail the check that its right counterpart passes.
"""

import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles import chi_square_p
from targets import counts

from rsft_cluster.generators.base import Decoding
from rsft_cluster.generators.drawing import draw, keys_tensor
from rsft_cluster.sampling.adaptive.trie import Trie

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
    left, depth = trie.look_up([token])
    assert (left, depth) == (0.0, 1)
    trie.remember([], [], 0.0)  # so nothing is left of the prefix before it
    assert trie.is_exhausted

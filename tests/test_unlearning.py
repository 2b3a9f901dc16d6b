"""What the loss says of rejected candidates, against enumeration and against values known beforehand.

The policies here are tables of logits, so that every completion can be enumerated and every gradient checked.
"""

import math
from collections import Counter
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from rsft_cluster.training.batches import Example, collate, denominator
from rsft_cluster.training.losses import (
    Learned,
    learned,
    weighted_loss,
)
from rsft_cluster.training.terms.kl import completion_kl
from rsft_cluster.training.terms.nll import completion_nll
from rsft_cluster.training.terms.rejection import tapered_logprob
from rsft_cluster.training.terms.unlikelihood import completion_unlikelihood

VOCABULARY, LENGTH = 3, 3
COMPLETIONS = list(product(range(VOCABULARY), repeat=LENGTH))
"""All completions of a policy that stops after three tokens."""


class Table(torch.nn.Module):
    """A Markov chain over tokens: the logits of the next one depend on the last one alone."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64, generator=generator)
        self.logits = torch.nn.Parameter(logits)

    def at(self, examples: list[Example]) -> Learned:
        batch = collate(examples)
        return learned(self.logits[batch.input_ids][:, -batch.num_logits :], batch.labels)

    def logprobs(self, examples: list[Example]) -> Tensor:
        return -completion_nll(self.at(examples))


def example(completion: tuple[int, ...], *, prompt: int = 0, weight: float = 1.0, logprob: float = 0.0) -> Example:
    return Example(np.array([prompt], np.int32), np.array(completion, np.int32), weight, logprob)


def everything(prompt: int = 0) -> list[Example]:
    return [example(c, prompt=prompt) for c in COMPLETIONS]


def gradient(loss: Tensor, policy: Table) -> Tensor:
    return torch.autograd.grad(loss, policy.logits)[0]


def weighted_nll(policy: Table, examples: list[Example], weights: Tensor) -> Tensor:
    return weighted_loss(completion_nll(policy.at(examples)), weights, 1.0)


@pytest.fixture
def acceptance() -> Tensor:
    return torch.rand(len(COMPLETIONS), dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_learning_what_the_target_makes_is_descent_on_minus_log_acceptance(acceptance):
    policy, rows = Table(), everything()
    probability = policy.logprobs(rows).exp()
    alpha = (probability * acceptance).sum()
    target = (probability * acceptance / alpha).detach()
    close(gradient(weighted_nll(policy, rows, target), policy), gradient(-alpha.log(), policy))


def test_raising_rejected_log_likelihood_is_ascent_on_the_probability_to_be_rejected(acceptance):
    policy, rows = Table(), everything()
    probability = policy.logprobs(rows).exp()
    rejected = (probability * (1 - acceptance)).detach()
    exact = gradient(1 - (probability * acceptance).sum(), policy)
    sampled = probability.detach().log()
    estimate = weighted_loss(tapered_logprob(policy.at(rows), sampled), rejected, 1.0)
    close(gradient(estimate, policy), exact)
    # A weight that is not 1 for what the policy makes itself is another gradient.
    assert (gradient(weighted_nll(policy, rows, 1 - acceptance), policy) + exact).abs().max() > 0.1


def test_equal_weight_for_each_prompt_is_expectation_maximisation_and_for_each_example_is_not():
    # Probabilities in eighths, and each prompt sampled eight times in exactly these shares.
    counts = [[4, 2, 2], [1, 1, 6], [5, 2, 1]]
    good = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 1]], dtype=torch.float64)
    policy = Table()
    with torch.no_grad():
        policy.logits.copy_(torch.tensor(counts, dtype=torch.float64).log())
    rows = [example((y,), prompt=x) for x, y in good.nonzero().tolist() for _ in range(counts[x][y])]
    num_accepted = Counter(int(e.prompt_ids[0]) for e in rows)
    by_prompt = torch.tensor([1 / num_accepted[int(e.prompt_ids[0])] for e in rows], dtype=torch.float64)
    minus_log_acceptance = -(policy.logits.softmax(1) * good).sum(1).log().sum()
    close(gradient(weighted_nll(policy, rows, by_prompt), policy), gradient(minus_log_acceptance, policy))
    # By example, prompts count by how often they succeed: the gradient of the expected acceptance.
    by_example = torch.full((len(rows),), 1 / 8, dtype=torch.float64)
    minus_acceptance = -(policy.logits.softmax(1) * good).sum()
    close(gradient(weighted_nll(policy, rows, by_example), policy), gradient(minus_acceptance, policy))


def test_where_nothing_was_learned_yet_rejection_is_the_mean_over_tokens_of_rejected_candidates():
    policy = Table()
    rows = [example((0, 1), weight=0.5), example((2,)), example((1, 1, 0), weight=0.25)]
    sampled = policy.logprobs(rows).detach()
    loss = weighted_loss(tapered_logprob(policy.at(rows), sampled), collate(rows).weights, denominator(rows))
    weights = torch.tensor([0.5, 1.0, 0.25], dtype=torch.float64)
    by_hand = (weights * policy.logprobs(rows)).sum() / (0.5 * 2 + 1 + 0.25 * 3)
    close(gradient(loss, policy), gradient(by_hand, policy))


def test_the_taper_is_at_most_one_and_grows_with_what_the_policy_still_makes():
    sampled = torch.full((7,), -2.0, dtype=torch.float64)
    likely = torch.linspace(-6.0, -0.05, 7, dtype=torch.float64)
    logits = torch.stack([likely, (1 - likely.exp()).log()], 1)  # of the token drawn, and of another
    at = Learned(logits, torch.zeros(7, dtype=torch.long), torch.arange(7), 7)
    taper = tapered_logprob(at, sampled) / likely
    assert taper.max() <= 1 + 1e-12
    assert (taper.diff() >= 0).all()
    torch.testing.assert_close(taper, (likely - sampled).exp().clamp(max=1.0))


def descend(term: Callable[[Learned], Tensor]) -> list[tuple[float, float]]:
    """Return log p of a rejected token and the gradient's norm after 10, 100 and 1000 steps of SGD at .5."""
    logits = torch.tensor([[1.0, 0.2, 0.0, -0.5]], dtype=torch.float64, requires_grad=True)
    target = torch.zeros(1, dtype=torch.long)
    found = []
    for step in range(1, 1001):
        [slope] = torch.autograd.grad(term(Learned(logits, target, target, 1)).sum(), logits)
        with torch.no_grad():
            logits -= 0.5 * slope
        if step in {10, 100, 1000}:
            found.append((float(logits.detach().log_softmax(1)[0, 0]), float(slope.norm())))
    return found


def test_unlearning_slows_down_where_plain_negative_likelihood_runs_away():
    start = torch.tensor([1.0, 0.2, 0.0, -0.5], dtype=torch.float64).log_softmax(0)[:1]
    tapered = descend(lambda at: tapered_logprob(at, start))
    assert [p for p, _ in tapered] == pytest.approx([-2.4, -5.0, -7.4], abs=0.06)
    assert [norm for _, norm in tapered] == pytest.approx([0.217, 0.0177, 0.0016], rel=0.05)
    negative = descend(lambda at: -completion_nll(at))
    assert [p for p, _ in negative] == pytest.approx([-5.9, -95, -995], abs=0.5)
    assert negative[-1][1] == pytest.approx(math.sqrt(2), abs=1e-3)
    unlikely = descend(completion_unlikelihood)
    assert [p for p, _ in unlikely] == pytest.approx([-2.0, -4.3, -6.7], abs=0.07)


def test_unlikelihood_is_minus_log_of_one_minus_p():
    policy = Table()
    rows = [example((0, 1)), example((2,))]
    p = policy.logits.softmax(1)
    expected = torch.stack([-(1 - p[0, 0]).log() - (1 - p[0, 1]).log(), -(1 - p[0, 2]).log()])
    close(completion_unlikelihood(policy.at(rows)), expected)


@pytest.mark.parametrize("lead", [0.0, 5.0, 50.0, 500.0])
def test_unlikelihood_of_a_sure_token_is_exact_and_its_gradient_bounded(lead):
    logits = torch.tensor([[lead, 0.0, 0.0]], requires_grad=True)
    target = torch.zeros(1, dtype=torch.long)
    loss = completion_unlikelihood(Learned(logits, target, target, 1)).sum()
    # 1 - p = 2 / (2 + e^lead)
    assert loss.item() == pytest.approx(lead + math.log1p(2 * math.exp(-lead)) - math.log(2), rel=1e-6)
    [slope] = torch.autograd.grad(loss, logits)
    assert slope.isfinite().all()
    assert slope[0, 0] == pytest.approx(1 / (1 + 2 * math.exp(-lead)))
    assert slope.norm() <= math.sqrt(2)


def test_the_kl_over_completions_of_the_policy_is_that_of_whole_completions():
    policy, base, rows = Table(0), Table(1), everything()
    probability = policy.logprobs(rows).exp()
    by_token = (probability * completion_kl(policy.at(rows), base.at(rows))).sum()
    whole = (probability * (policy.logprobs(rows) - base.logprobs(rows))).sum()
    close(by_token, whole)
    reverse = (probability * completion_kl(base.at(rows), policy.at(rows))).sum()
    assert (reverse - whole).abs() > 0.01


def test_the_kl_is_zero_at_the_base_and_grows_away_from_it():
    policy, base = Table(0), Table(0)
    rows = everything()
    at_base = completion_kl(policy.at(rows), base.at(rows))
    close(at_base, torch.zeros_like(at_base))
    assert gradient(at_base.sum(), policy).abs().max() < 1e-12
    assert (completion_kl(Table(1).at(rows), base.at(rows)) > 0).all()

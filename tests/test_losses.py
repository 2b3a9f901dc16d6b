"""The loss of a step, against hand-computed values and for every way of splitting a batch."""

import math

import numpy as np
import pytest
import torch

from rsft_cluster.config import TrainingConfig
from rsft_cluster.errors import DivergedError
from rsft_cluster.training.batches import Example, collate, denominator
from rsft_cluster.training.dealing import deal
from rsft_cluster.training.losses import check_loss, learned, learning_rate, weighted_loss
from rsft_cluster.training.terms.nll import completion_nll

VOCABULARY = 11
EOS = 2


def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    lengths = [(3, 2), (1, 5), (4, 1), (2, 3), (6, 4), (2, 2), (1, 1)]
    return [
        Example(
            rng.integers(3, VOCABULARY, n).astype(np.int32),
            np.append(rng.integers(3, VOCABULARY, m - 1), EOS).astype(np.int32),
            float(rng.uniform(0.1, 1.0)),
        )
        for n, m in lengths
    ]


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Embedding(VOCABULARY, 8), torch.nn.Tanh(), torch.nn.Linear(8, VOCABULARY)
    return torch.nn.Sequential(*layers).double()


def part_of_loss(model: torch.nn.Module, rows: list[Example], total: float) -> torch.Tensor:
    batch = collate(rows)
    logits = model(batch.input_ids)[:, -batch.num_logits :]
    return weighted_loss(completion_nll(learned(logits, batch.labels)), batch.weights, total)


def gradient(model: torch.nn.Module) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def test_the_nll_is_that_of_the_completion_alone_by_hand():
    # Two tokens with equal logits but for one: -log softmax is log(1 + e) - 1 or log(1 + e).
    logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [5.0, -5.0]]], dtype=torch.float64)
    labels = torch.tensor([[-100, 1, 1]])
    expected = (math.log(1 + math.e) - 1) + math.log(1 + math.e)
    assert completion_nll(learned(logits, labels)).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_any_split_into_workers_and_micro_batches_gives_the_whole_batch_gradient(model, world_size, size):
    rows = examples()
    whole = part_of_loss(model, rows, denominator(rows))
    whole.backward()
    expected = gradient(model)
    lengths = [len(e) for e in rows]
    loss = 0.0
    for rank in range(world_size):
        for indices in deal(lengths, rank=rank, world_size=world_size, size=size):
            if indices:
                part = part_of_loss(model, [rows[i] for i in indices], denominator(rows))
                part.backward()
                loss += part.item()
    assert loss == pytest.approx(whole.item(), abs=1e-12)
    torch.testing.assert_close(gradient(model), expected, rtol=0, atol=1e-12)


def test_the_loss_is_the_weighted_mean_over_tokens(model):
    rows = examples()
    with torch.no_grad():
        logp = [model(torch.tensor([*e.prompt_ids, *e.completion_ids])).log_softmax(-1) for e in rows]
    num = 0.0
    for e, scores in zip(rows, logp, strict=True):
        start = len(e.prompt_ids)
        num -= e.weight * sum(float(scores[start + k - 1, t]) for k, t in enumerate(e.completion_ids))
    by_hand = num / sum(e.weight * len(e.completion_ids) for e in rows)
    assert part_of_loss(model, rows, denominator(rows)).item() == pytest.approx(by_hand, abs=1e-12)


def test_prompt_tokens_get_no_gradient_of_their_own():
    labels = torch.tensor([[-100, -100, 4, EOS]])
    logits = torch.zeros(1, 4, VOCABULARY, dtype=torch.float64, requires_grad=True)
    completion_nll(learned(logits, labels)).sum().backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(-1)[0] > 0
    assert touched.tolist() == [False, True, True, False]


def test_the_end_of_sequence_token_is_learned_even_where_it_pads_too(model):
    row = examples()[0]
    assert row.completion_ids[-1] == EOS
    part_of_loss(model, [row], 1.0).backward()
    bias = model[2].bias.grad
    assert bias is not None
    # Only a label gets a negative gradient on its logit from softmax cross-entropy.
    assert bias[EOS] < 0


def test_a_dummy_of_weight_zero_adds_nothing(model):
    row = examples()[0]
    idle = Example(row.prompt_ids, row.completion_ids, 0.0)
    part_of_loss(model, [idle], 7.0).backward()
    assert gradient(model).abs().max() == 0


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.randn(2, 5, VOCABULARY, dtype=torch.bfloat16)
    labels = torch.tensor([[-100, -100, 3, 4, 2], [-100, 5, 6, 2, -100]])
    nll = completion_nll(learned(logits, labels))
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, completion_nll(learned(logits.float(), labels)))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.7, 0.4, 0.1]),
        ("cosine", [0.5, 1.0, 1.0, 0.775, 0.325, 0.1]),
    ],
)
def test_the_learning_rate_warms_up_and_ends_at_its_share(schedule, expected):
    config = TrainingConfig(schedule=schedule, learning_rate=1.0, warmup_steps=2, final_learning_rate=0.1)
    rates = [learning_rate(config, step, 6) for step in range(6)]
    assert rates == pytest.approx(expected, abs=1e-12)


def test_one_step_alone_uses_the_peak():
    assert learning_rate(TrainingConfig(learning_rate=0.5), 0, 1) == 0.5


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_divergence(loss):
    with pytest.raises(DivergedError, match=r"step 3: the loss is (nan|-?inf)"):
        check_loss(loss, 1.0, step=3, first_nll=1.0, ratio=10)


def test_a_loss_beyond_the_ratio_is_divergence_and_below_it_is_not():
    check_loss(19.9, 19.9, step=2, first_nll=2.0, ratio=10)
    with pytest.raises(DivergedError, match=r"step 2: the loss is 20.1, above 20 = .*divergence_ratio 10"):
        check_loss(20.1, 20.1, step=2, first_nll=2.0, ratio=10)


def test_divergence_is_that_of_what_is_learned_whatever_the_other_terms_do():
    check_loss(-3.0, 1.5, step=2, first_nll=2.0, ratio=10)
    with pytest.raises(DivergedError, match=r"step 2: the loss is 20.1"):
        check_loss(-3.0, 20.1, step=2, first_nll=2.0, ratio=10)


def test_noise_around_a_converged_policy_is_not_divergence():
    check_loss(0.3, 0.3, step=2, first_nll=0.01, ratio=10)

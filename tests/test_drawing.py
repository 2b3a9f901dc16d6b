import numpy as np
import pytest
import torch
from oracles import chi_square_p

from rsft_cluster.generators.base import Decoding
from rsft_cluster.generators.drawing import _block_lse, draw, keys_tensor, process, uniforms

NUM_DRAWS = 20_000


def logits_of(vocabulary: int, *, seed: int = 0, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 1.5


def draw_many(logits, decoding=None, *, keys=None, step=0):
    keys = range(NUM_DRAWS) if keys is None else keys
    tensor = keys_tensor(list(keys), device="cpu")
    return draw(
        logits.expand(len(tensor), -1),
        keys=tensor,
        steps=torch.full_like(tensor, step),
        decoding=decoding or Decoding(),
    )


def reference_processed(logits: np.ndarray, decoding: Decoding) -> np.ndarray:
    """One row's probabilities, in plain numpy and in the documented order."""
    logits = logits.astype(np.float64) / decoding.temperature
    kept = np.ones(len(logits), bool)
    if 0 < decoding.top_k < len(logits):
        kept &= logits >= np.sort(logits)[-decoding.top_k]
    probabilities = np.where(kept, np.exp(logits - logits.max()), 0)
    probabilities /= probabilities.sum()
    if decoding.top_p < 1:
        mass = 0.0
        for token in np.argsort(-probabilities, kind="stable"):
            kept[token] &= mass < decoding.top_p
            mass += probabilities[token]
    probabilities = np.where(kept, probabilities, 0) / probabilities[kept].sum()
    probabilities[probabilities < decoding.min_p * probabilities.max()] = 0
    return probabilities / probabilities.sum()


def reference_uniform(key: int, step: int, counter: int) -> float:
    """splitmix64 in Python's integers."""
    mask = (1 << 64) - 1

    def mix(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) & mask
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        return value ^ (value >> 31)

    state = mix(key ^ mix(step))
    return ((mix((state + (counter + 1) * 0x9E3779B97F4A7C15) & mask) >> 12) + 0.5) / 2**52


SETTINGS = [
    Decoding(temperature=0.7),
    Decoding(top_k=5),
    Decoding(top_p=0.8),
    Decoding(min_p=0.1),
    Decoding(temperature=1.4, top_k=40, top_p=0.9, min_p=0.02),
]


@pytest.mark.parametrize("vocabulary", [3, 128, 130, 700])
def test_draws_follow_the_softmax_of_the_logits(vocabulary):
    logits = logits_of(vocabulary)
    counts = torch.bincount(draw_many(logits).tokens, minlength=vocabulary).numpy()
    assert chi_square_p(counts, logits[0].double().softmax(-1).numpy()) > 1e-4


@pytest.mark.parametrize("decoding", SETTINGS, ids=lambda d: ",".join(d.processors()))
def test_draws_follow_the_processed_distribution(decoding):
    logits = logits_of(300)
    counts = torch.bincount(draw_many(logits, decoding).tokens, minlength=300).numpy()
    expected = reference_processed(logits[0].numpy(), decoding)
    assert counts[expected == 0].sum() == 0
    assert chi_square_p(counts, expected) > 1e-4


def test_the_choice_of_a_block_says_nothing_about_the_token_in_it():
    logits = torch.full((1, 300), -torch.inf)
    logits[0, [0, 7, 200]] = torch.tensor([0.0, 0.0, 1.0])
    counts = torch.bincount(draw_many(logits).tokens, minlength=300)[[0, 7, 200]].numpy()
    assert chi_square_p(counts, logits[0, [0, 7, 200]].double().softmax(-1).numpy()) > 1e-4


def test_the_chi_square_test_tells_a_slightly_different_temperature_apart():
    logits = logits_of(300)
    counts = torch.bincount(draw_many(logits, Decoding(temperature=1.1)).tokens, minlength=300).numpy()
    assert chi_square_p(counts, logits[0].double().softmax(-1).numpy()) < 1e-6


@pytest.mark.parametrize(("other_key", "other_step"), [(1, 0), (0, 1), (1 << 40, 0)])
def test_draws_of_other_keys_and_steps_are_independent(other_key, other_step):
    logits = logits_of(4)
    first = draw_many(logits, keys=range(NUM_DRAWS)).tokens
    second = draw_many(logits, keys=range(other_key, NUM_DRAWS + other_key), step=other_step).tokens
    probabilities = logits[0].double().softmax(-1).numpy()
    pairs = torch.bincount(first * 4 + second, minlength=16).numpy()
    assert chi_square_p(pairs, np.outer(probabilities, probabilities).ravel()) > 1e-4


@pytest.mark.parametrize("decoding", [Decoding(), *SETTINGS, Decoding(temperature=0)])
def test_a_row_does_not_depend_on_the_other_rows(decoding):
    logits = logits_of(700, rows=37)
    keys = keys_tensor(list(range(100, 137)), device="cpu")
    steps = torch.arange(37)
    whole = draw(logits, keys=keys, steps=steps, decoding=decoding)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(1))
    for rows in [order, order[:5], order[5:6]]:
        part = draw(logits[rows], keys=keys[rows], steps=steps[rows], decoding=decoding)
        assert torch.equal(part.tokens, whole.tokens[rows])
        assert torch.equal(part.logprobs, whole.logprobs[rows])
        assert torch.equal(part.target_logprobs, whole.target_logprobs[rows])


@pytest.mark.parametrize("decoding", SETTINGS, ids=lambda d: ",".join(d.processors()))
def test_processing_agrees_with_a_plain_reference(decoding):
    logits = logits_of(300, rows=20, seed=3)
    found = process(logits, decoding).double().softmax(-1).numpy()
    for row, expected in zip(found, (reference_processed(r, decoding) for r in logits.numpy()), strict=True):
        assert np.array_equal(row > 0, expected > 0)
        np.testing.assert_allclose(row, expected, atol=1e-6)


def test_temperature_comes_before_top_p():
    logits = torch.tensor([[0.9, 0.1]]).log()
    assert process(logits, Decoding(top_p=0.85)).isfinite().tolist() == [[True, False]]
    assert process(logits, Decoding(top_p=0.85, temperature=3.0)).isfinite().tolist() == [[True, True]]


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.5, 0.9, 0.999999])
def test_of_equally_likely_tokens_those_with_the_lowest_ids_are_in_the_nucleus(top_p):
    logits = logits_of(300, rows=20, seed=5).round()
    logits[10:] = logits[10:].masked_fill(logits[10:] < 0, -torch.inf)  # as top-k does
    logits[0] = 0.0
    found = process(logits, Decoding(top_p=top_p)).isfinite().numpy()
    for row, kept in zip(logits.numpy(), found, strict=True):
        assert np.array_equal(kept, reference_processed(row, Decoding(top_p=top_p)) > 0)


def test_what_is_cut_off_changes_no_bit_of_a_log_probability():
    logits = logits_of(1000, rows=20, seed=6) * torch.logspace(0, 3, 20)[:, None]
    logits[:, 200:300] = -torch.inf
    logits[::2, 256:640] = -torch.inf  # whole blocks
    logits[1::2] = logits[1::2].masked_fill(logits[1::2] < 0, -torch.inf)
    whole = torch.nn.functional.pad(logits, (0, 24), value=-torch.inf).view(20, -1, 128)
    assert torch.equal(_block_lse(logits), whole.logsumexp(-1).double())


def test_neutral_settings_leave_the_logits_alone():
    logits = logits_of(10)
    assert process(logits, Decoding(top_k=10)) is logits


def test_the_likeliest_token_always_survives():
    strict = Decoding(top_k=1, top_p=1e-9, min_p=0.999)
    logits = logits_of(300, rows=8)
    assert process(logits, strict).isfinite().sum(-1).tolist() == [1] * 8


@pytest.mark.parametrize("decoding", SETTINGS, ids=lambda d: ",".join(d.processors()))
def test_log_probabilities_are_those_of_proposal_and_policy(decoding):
    logits = logits_of(300)
    drawn = draw_many(logits, decoding, keys=range(200))
    proposal = reference_processed(logits[0].numpy(), decoding)
    policy = logits[0].double().softmax(-1).numpy()
    np.testing.assert_allclose(drawn.logprobs, np.log(proposal[drawn.tokens]), atol=1e-5)
    np.testing.assert_allclose(drawn.target_logprobs, np.log(policy[drawn.tokens]), atol=1e-5)


def test_temperature_zero_takes_the_lowest_of_the_likeliest_with_certainty():
    logits = torch.zeros(1, 300)
    logits[0, [17, 5, 290]] = 2.0
    drawn = draw_many(logits, Decoding(temperature=0), keys=range(3))
    assert drawn.tokens.tolist() == [5, 5, 5]
    assert drawn.logprobs.tolist() == [0, 0, 0]
    assert drawn.target_logprobs[0] == pytest.approx(float(logits[0].double().log_softmax(-1)[5]), abs=1e-6)


def test_tokens_that_the_model_rules_out_are_never_drawn():
    logits = logits_of(300)
    logits[0, 10:290] = -torch.inf
    tokens = draw_many(logits).tokens
    assert not ((tokens >= 10) & (tokens < 290)).any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0, 1.0, 0.5])
def test_bad_logits_show_in_the_log_probabilities(bad, temperature):
    logits = logits_of(300)
    logits[0, 250] = bad
    drawn = draw_many(logits, Decoding(temperature=temperature), keys=range(3))
    assert not drawn.target_logprobs.isfinite().any()
    assert not drawn.logprobs.isfinite().any()


@pytest.mark.parametrize("key", [0, 1, 2**63 - 1, 2**63, 2**64 - 1, 0x123456789ABCDEF0])
def test_noise_is_splitmix64_of_key_step_and_counter(key):
    from rsft_cluster.generators.drawing import _mix

    step = 7
    state = _mix(keys_tensor([key], device="cpu") ^ _mix(torch.tensor([step])))
    counters = [0, 5, 2**32 + 11]
    found = uniforms(state, torch.tensor(counters)).tolist()
    assert found == [reference_uniform(key, step, counter) for counter in counters]


def test_noise_is_uniform_and_never_reaches_its_ends():
    noise = uniforms(torch.tensor([[123]]), torch.arange(1_000_000)).numpy()
    assert 0 < noise.min() < 1e-5
    assert 1 - 1e-5 < noise.max() < 1
    assert chi_square_p(np.histogram(noise, 256, (0, 1))[0], [1 / 256] * 256) > 1e-4

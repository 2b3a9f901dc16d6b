"""Noise on embeddings: how large, for how long, and that it can be repeated."""

import pytest
import torch

from rsft_cluster.training.noise import noisy_embeddings

LENGTHS, SIZE, ALPHA = torch.tensor([4, 16]), 64, 5.0
IDS = torch.arange(32).reshape(2, 16)


@pytest.fixture
def embedding() -> torch.nn.Embedding:
    torch.manual_seed(0)
    return torch.nn.Embedding(32, SIZE)


def noise(embedding: torch.nn.Embedding, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    with noisy_embeddings(embedding, LENGTHS, ALPHA):
        disturbed = embedding(IDS)
    return (disturbed - embedding(IDS)).detach()


def test_noise_is_uniform_within_alpha_over_the_root_of_tokens_times_size(embedding):
    found = noise(embedding, 1)
    for row, length in zip(found, LENGTHS.tolist(), strict=True):
        reach = ALPHA / (length * SIZE) ** 0.5
        assert 0.98 * reach < row.abs().max() <= reach + 1e-6
        # The standard deviation of what is uniform within +-reach, over 1024 numbers.
        assert row.std() == pytest.approx(reach / 3**0.5, rel=0.05)


def test_noise_follows_from_the_seed_and_ends_with_the_block(embedding):
    assert torch.equal(noise(embedding, 1), noise(embedding, 1))
    assert not torch.equal(noise(embedding, 1), noise(embedding, 2))
    assert torch.equal(embedding(IDS), embedding(IDS))


def test_noise_ends_where_the_block_fails(embedding):
    before = embedding(IDS)
    with pytest.raises(RuntimeError, match="out of memory"), noisy_embeddings(embedding, LENGTHS, ALPHA):
        raise RuntimeError("out of memory")
    assert torch.equal(embedding(IDS), before)

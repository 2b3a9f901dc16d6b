"""Noise on input embeddings while training (NEFTune, Jain et al. 2023, algorithm 1)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def noisy_embeddings(embedding: nn.Module, lengths: Tensor, alpha: float) -> Iterator[None]:
    """Add noise to what `embedding` returns, for the length of the block.

    Uniform within alpha / sqrt(L d) of each row, L its tokens without padding (`lengths`) and d the embedding's size.
    It comes from torch's own generator, so it is a function of what that was seeded with.
    """

    def add(_module: nn.Module, _args: object, embedded: Tensor) -> Tensor:
        reach = alpha / torch.sqrt(lengths * embedded.shape[-1])
        return embedded + torch.empty_like(embedded).uniform_(-1, 1) * reach.to(embedded)[:, None, None]

    hook = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()

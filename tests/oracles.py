"""What samples are compared with: enumerated probabilities, by Pearson's chi-square test without scipy."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel


def chi_square_p(counts: Sequence[float] | np.ndarray, probabilities: Sequence[float] | np.ndarray) -> float:
    """Return the p-value of the counts under the probabilities; cells that expect fewer than 5 are pooled."""
    counts, expected = np.asarray(counts, float), np.asarray(probabilities, float) * np.sum(counts)
    assert abs(expected.sum() / counts.sum() - 1) < 1e-6
    small = expected < 5
    if small.any():
        counts = np.append(counts[~small], counts[small].sum())
        expected = np.append(expected[~small], expected[small].sum())
    if expected[-1] < 5:
        counts = np.append(counts[:-2], counts[-2:].sum())
        expected = np.append(expected[:-2], expected[-2:].sum())
    statistic = ((counts - expected) ** 2 / expected).sum()
    half_degrees = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half_degrees, torch.tensor(statistic / 2, dtype=torch.float64)))


@torch.inference_mode()
def enumerate_completions(
    model: PreTrainedModel, prefix: Sequence[int], *, end: int, temperature: float, length: int
) -> dict[tuple[int, ...], float]:
    """Return every completion of at most `length` tokens with its probability, by plain forwards."""
    growing: dict[tuple[int, ...], float] = {(): 1.0}
    finished: dict[tuple[int, ...], float] = {}
    for _ in range(length):
        ids = torch.tensor([[*prefix, *token_ids] for token_ids in growing])
        probabilities = (model(ids).logits[:, -1].double() / temperature).softmax(-1).tolist()
        longer = {
            (*token_ids, token): mass * p
            for (token_ids, mass), row in zip(growing.items(), probabilities, strict=True)
            for token, p in enumerate(row)
        }
        finished |= {ids: mass for ids, mass in longer.items() if ids[-1] == end}
        growing = {ids: mass for ids, mass in longer.items() if ids[-1] != end}
    return finished | growing

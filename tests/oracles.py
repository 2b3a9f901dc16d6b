"""What samples are compared with: Pearson's chi-square test against known probabilities, without scipy."""

from collections.abc import Sequence

import numpy as np
import torch


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

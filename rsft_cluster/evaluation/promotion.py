"""Is the challenger better than the incumbent? Pure rules over per-prompt results.

A promotion rule is a function `(incumbent, challenger, **params) -> Decision` of two tables with a row a prompt (the
columns of `figures.PER_PROMPT`). It sees numbers only; the caller adds policies and paths.
"""

import numpy as np
import pyarrow as pa

from rsft_cluster.errors import ConfigError, StageError
from rsft_cluster.records import Decision

METRICS = ("pass_rate", "greedy_passed", "mean_score")


def paired_bootstrap(
    incumbent: pa.Table,
    challenger: pa.Table,
    *,
    metric: str = "pass_rate",
    confidence: float = 0.95,
    margin: float = 0.0,
    resamples: int = 10_000,
    seed: int = 0,
) -> Decision:
    """Promote if the challenger's mean advantage over the same prompts exceeds `margin` with the given confidence.

    The interval is the percentile bootstrap over prompts (Efron & Tibshirani 1993, chapter 13; paired, as in
    Koehn 2004): both policies answer every resampled prompt. A negative margin tolerates a small loss.
    """
    if metric not in METRICS:
        raise ConfigError(f"promotion metric {metric!r}: one of {', '.join(METRICS)} is known")
    old, new = _paired(incumbent, challenger, metric)
    low, high = bootstrap_interval(new - old, confidence=confidence, resamples=resamples, seed=seed)
    better = bool(low > margin)
    verb = "exceeds" if better else "does not exceed"
    return Decision(
        promoted=better,
        metric=metric,
        incumbent_value=float(old.mean()),
        challenger_value=float(new.mean()),
        difference_low=low,
        difference_high=high,
        reason=f"{metric} {old.mean():.3f} -> {new.mean():.3f} on {len(old)} prompts; the {confidence:.0%} interval "
        f"of the gain, [{low:+.3f}, {high:+.3f}], {verb} {margin:g}",
    )


def always(incumbent: pa.Table, challenger: pa.Table, *, metric: str = "pass_rate") -> Decision:
    """Promote whatever was trained. For controls and experiments; it can make the policy worse."""
    old, new = _paired(incumbent, challenger, metric)
    low, high = bootstrap_interval(new - old, confidence=0.95, resamples=1000, seed=0)
    return Decision(
        promoted=True,
        metric=metric,
        incumbent_value=float(old.mean()),
        challenger_value=float(new.mean()),
        difference_low=low,
        difference_high=high,
        reason="the rule `always` promotes every challenger",
    )


def bootstrap_interval(differences: np.ndarray, *, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """Return the percentile interval of the mean over resampled rows; memory stays bounded."""
    generator = np.random.default_rng(seed)
    size = len(differences)
    means = np.empty(resamples)
    step = max(1, 4_000_000 // size)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        means[start : start + count] = differences[generator.integers(0, size, (count, size))].mean(axis=1)
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


def _paired(incumbent: pa.Table, challenger: pa.Table, metric: str) -> tuple[np.ndarray, np.ndarray]:
    columns = [
        {k: float(v) for k, v in zip(t["prompt_id"].to_pylist(), t[metric].to_pylist(), strict=True) if v is not None}
        for t in (incumbent, challenger)
    ]
    shared = sorted(columns[0].keys() & columns[1].keys())
    if not shared:
        raise StageError("the two evaluations have no judged prompt in common; nothing can be compared")
    return np.array([columns[0][k] for k in shared]), np.array([columns[1][k] for k in shared])

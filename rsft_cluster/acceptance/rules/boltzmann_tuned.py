"""`boltzmann_tuned`: `boltzmann` with the beta that gives a chosen acceptance rate, or a chosen distance.

Of the round's passing candidates, a share `acceptance_rate` is kept in expectation; or beta is the smallest at which
the target lies at most `max_kl` nats from the passing proposal, on average over prompts, KL(pi* || q C / Z) estimated
from each prompt's own candidates with self-normalised weights. Beta is found by bisection once all candidates of the
round are there, and recorded in the manifest. It depends on the candidates: a rate or a KL fixes the target only up to
the noise of the round.
"""

from typing import Annotated

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from rsft_cluster.acceptance.base import Chosen, among, passed, rule, scaled, scores, tilted
from rsft_cluster.acceptance.group_arrays import codes
from rsft_cluster.errors import ConfigError

SMALLEST, LARGEST = 1e-4, 1e4
"""Bounds of beta: below, only the best score is kept; above, everything that passed."""
STEPS = 60


@rule(
    target="sampled distribution x passed x exp(min(score, {cap}) / beta), normalised for each prompt, with the beta "
    "recorded as chosen",
    scope="round",
    previews=lambda params, num: [
        *among("acceptance_rate", (0.05, 0.1, 0.2, 0.5))(params, num),
        *scaled("max_kl")(params, num),
    ],
)
def boltzmann_tuned(
    judged: pa.Table,
    *,
    acceptance_rate: Annotated[float, Field(gt=0, le=1)] | None = None,
    max_kl: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None,
    cap: Annotated[float, Field(ge=0, le=1)] = 1.0,
) -> Chosen:
    """Return the probabilities at the beta that meets the aim, and that beta. Exactly one of the two aims is given."""
    if (acceptance_rate is None) == (max_kl is None):
        raise ConfigError("boltzmann_tuned: give either acceptance_rate or max_kl")
    keep = passed(judged).to_numpy()
    excess = np.minimum(scores(judged).to_numpy(), cap) - cap
    if not keep.any():
        return Chosen(tilted(excess, keep))
    # Sorted, so that sums round alike whatever the order of the rows.
    groups, weights = codes(judged, "prompt_id")[keep], excess[keep]
    order = np.lexsort((weights, groups)) if max_kl is not None else np.argsort(weights)
    groups, weights = groups[order], weights[order]
    low, high = SMALLEST, LARGEST
    for _ in range(STEPS):
        middle = float(np.sqrt(low * high))
        if acceptance_rate is not None:
            is_too_small = float(np.mean(np.exp(weights / middle))) < acceptance_rate
        else:
            is_too_small = mean_kl(weights / middle, groups) > (max_kl or 0.0)
        low, high = (middle, high) if is_too_small else (low, middle)
    return Chosen(tilted(excess / high, keep), {"beta": high})


def mean_kl(log_weights: NDArray[np.float64], groups: NDArray[np.int64]) -> float:
    """Return the mean over prompts of KL(tilted || passing): sum_i p_i log(n p_i), p the normalised weights."""
    _, group = np.unique(groups, return_inverse=True)
    size = np.bincount(group)
    # Stable: each prompt's weights are taken relative to its largest.
    top = np.full(len(size), -np.inf)
    np.maximum.at(top, group, log_weights)
    weights = np.exp(log_weights - top[group])
    share = weights / np.bincount(group, weights=weights)[group]
    terms = np.where(share > 0, share * np.log(np.maximum(share * size[group], 1e-300)), 0.0)
    return float(np.mean(np.sort(np.bincount(group, weights=terms))))

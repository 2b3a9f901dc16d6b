"""`boltzmann_supremum`: `boltzmann` with the candidates' own best score in place of a known bound.

Probability C(x,y) exp((r - r_max(x)) / beta) with r_max the best passing score among the prompt's whole group. The
empirical supremum of Caffo, Booth and Davison (2002): the target of `boltzmann` with cap 1, asymptotically in K, and
far from it for small K. It is decided once, when the group is whole, and never on a running maximum, which keeps the
early candidates too often; so candidates may not come in waves. The best candidate of a prompt is always kept.
"""

from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import Field

from rsft_cluster.acceptance.base import passed, rule, scaled, scores, tilted
from rsft_cluster.acceptance.group_arrays import codes, largest_in_group


@rule(
    target="sampled distribution x passed x exp(score / {beta}), normalised for each prompt; inexact for small groups, "
    "since the best score of the group stands for the bound",
    previews=scaled("beta"),
)
def boltzmann_supremum(judged: pa.Table, *, beta: Annotated[float, Field(gt=0, allow_inf_nan=False)]) -> pa.Array:
    """Return exp((score - best passing score of the prompt) / beta) for what passed and 0 for the rest."""
    keep, score = passed(judged).to_numpy(), scores(judged).to_numpy()
    best = largest_in_group(codes(judged, "prompt_id"), np.where(keep, score, -np.inf))
    return tilted((score - np.where(keep, best, 0.0)) / beta, keep)

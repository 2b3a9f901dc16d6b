"""`boltzmann`: keep what passed with a probability exponential in its score.

Probability C(x,y) exp((min(r, cap) - cap) / beta). Target, exactly: q(y|x) C(x,y) exp(min(r(x,y), cap) /
beta) / Z(x), the KL-regularised optimum at temperature beta (RSO, Liu et al. 2023, with a known bound in
place of an estimated one). Scores lie in [0, 1], so cap = 1 truncates nothing; a lower cap accepts more, of
a target that no longer tells scores above it apart.
"""

from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import Field

from rsft_cluster.acceptance.base import passed, rule, scaled, scores, tilted


@rule(
    target="sampled distribution x passed x exp(min(score, {cap}) / {beta}), normalised for each prompt",
    scope="candidate",
    previews=scaled("beta"),
)
def boltzmann(
    judged: pa.Table,
    *,
    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)],
    cap: Annotated[float, Field(ge=0, le=1)] = 1.0,
) -> pa.Array:
    """Return exp((min(score, cap) - cap) / beta) for candidates that passed and 0 for the rest."""
    excess = np.minimum(scores(judged).to_numpy(), cap) - cap
    return tilted(excess / beta, passed(judged).to_numpy())

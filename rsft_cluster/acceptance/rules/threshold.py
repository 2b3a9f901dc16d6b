"""`threshold`: keep every candidate that passed with at least a given score.

Probability 1 if passed and score >= min_score, else 0. Target: the sampler's distribution restricted to
those, q(y|x) C(x,y) 1[r(x,y) >= t] / Z(x), exactly (ReST).
"""

from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import Field

from rsft_cluster.acceptance.base import among, passed, rule, scores


@rule(
    target="the sampled distribution, restricted to candidates that passed with at least the score {min_score}",
    scope="candidate",
    threshold="min_score",
    previews=among("min_score", (0.25, 0.5, 0.75, 0.9, 1.0)),
)
def threshold(judged: pa.Table, *, min_score: Annotated[float, Field(ge=0, le=1)]) -> pa.Array:
    """Return 1 for candidates that passed and scored at least `min_score`."""
    kept = passed(judged).to_numpy() & (scores(judged).to_numpy() >= min_score)
    return pa.array(kept.astype(np.float64))

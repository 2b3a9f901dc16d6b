"""`best_of_n`: keep the n best-scored candidates of each prompt among those that passed.

Ties go to the lower index, which is independent of when a candidate was finished. With K candidates and n =
1 the target is best-of-K of those that pass: pi(y) [F(r)^K - F_<(r)^K] / P(r), ties shared in proportion,
with KL to the sampler of at most log K - (K-1)/K (Beirami et al.; Sessa et al., BOND). It is no tilt
exp(r/beta), only near to one.
"""

from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import Field

from rsft_cluster.acceptance.base import among, passed, rule, scores
from rsft_cluster.acceptance.group_arrays import codes, first_in_group, rank_in_group


@rule(
    target="the n best-scored of each prompt's candidates among those that passed",
    previews=among("n", (1, 2, 4, 8, 16), at_most_candidates=True),
)
def best_of_n(judged: pa.Table, *, n: Annotated[int, Field(ge=1)], distinct: bool = True) -> pa.Array:
    """Return 1 for the best `n` of each prompt; `distinct` counts equal tokens once, at the lowest index."""
    eligible = passed(judged).to_numpy()
    index = judged.column("index").to_numpy()
    if distinct:
        first = first_in_group(codes(judged, "prompt_id", "content"), (~eligible, index))
        eligible = eligible & (first == np.arange(len(first)))
    rank = rank_in_group(codes(judged, "prompt_id"), (~eligible, -scores(judged).to_numpy(), index))
    return pa.array((eligible & (rank < n)).astype(np.float64))

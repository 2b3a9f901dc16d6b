"""`top_share`: keep the best-scored share of all candidates of the round that passed.

Target: the sampled distribution over prompts and answers together, restricted to the best: prompts whose answers score
low lose, so the mix of prompts shifts to the easy ones. Ties at the edge go by candidate id, a digest: independent of
scores, lengths and order (RAFT's and Llama 2's global ranking; per-prompt ranking is `best_of_n`).
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

import math
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from rsft_cluster.acceptance.base import Chosen, among, passed, rule, scores


@rule(
    target="the best-scored {share} of the round's candidates that passed, over all prompts together",
    scope="round",
    previews=among("share", (0.05, 0.1, 0.2, 0.5)),
)
def top_share(judged: pa.Table, *, share: Annotated[float, Field(gt=0, le=1)]) -> Chosen:
    """Return 1 for the best ceil(share x number that passed) candidates, and the lowest score among them."""
    keep, score = passed(judged).to_numpy(), scores(judged).to_numpy()
    num_kept = math.ceil(share * np.count_nonzero(keep))
    if not num_kept:
        return Chosen(pa.array(np.zeros(judged.num_rows)))
    lowest = float(-np.partition(-score[keep], num_kept - 1)[num_kept - 1])
    best = keep & (score > lowest)
    ties = np.flatnonzero(keep & (score == lowest))
    by_id = pc.array_sort_indices(judged.column("candidate_id").take(ties)).to_numpy()
    best[ties[by_id[: num_kept - np.count_nonzero(best)]]] = True
    return Chosen(pa.array(best.astype(np.float64)), {"lowest_score": lowest})

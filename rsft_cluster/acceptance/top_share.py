"""`top_share`: keep the best-scored share of all candidates of the round that passed.

Target: the sampled distribution over prompts and answers together, restricted to the best: prompts whose answers score
low lose, so the mix of prompts shifts to the easy ones. Ties at the edge go by candidate id, a digest: independent of
scores, lengths and order (RAFT's and Llama 2's global ranking; per-prompt ranking is `best_of_n`).
"""

import math
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import Field

from rsft_cluster.acceptance.base import Chosen, passed, rule, scores


@rule(target="the best-scored {share} of the round's candidates that passed, over all prompts together", scope="round")
def top_share(judged: pa.Table, *, share: Annotated[float, Field(gt=0, le=1)]) -> Chosen:
    """Return 1 for the best ceil(share x number that passed) candidates, and the lowest score among them."""
    rows = np.flatnonzero(passed(judged).to_numpy())
    score, ids = scores(judged).to_numpy(), np.array(judged.column("candidate_id").to_pylist(), dtype=str)
    best = rows[np.lexsort((ids[rows], -score[rows]))][: math.ceil(share * len(rows))]
    kept = np.zeros(judged.num_rows)
    kept[best] = 1.0
    return Chosen(pa.array(kept), {"lowest_score": float(score[best[-1]])} if len(best) else {})

"""`rso_compat`: the selection loop of RSO (Liu et al. 2023, algorithm 1), for comparison. It is not exact.

Go over the candidates in index order, again and again, accept each with probability exp((r - r_max) / beta), r_max the
best score among those *not yet taken*, until `num_kept` are taken. Without replacement from a finite pool: with
num_kept = K it returns all candidates whatever they score, and the more it takes, the closer it comes to the proposal
and the farther from the target. `boltzmann` draws from the stated target instead.
"""

from typing import Annotated

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from rsft_cluster.acceptance.base import passed, rule, scaled, scores
from rsft_cluster.acceptance.group_arrays import codes
from rsft_cluster.keys import repeated_uniform


@rule(
    target="none that can be stated: RSO's selection loop, {num_kept} a prompt; between the proposal and its tilt",
    previews=scaled("beta"),
)
def rso_compat(
    judged: pa.Table,
    *,
    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)],
    num_kept: Annotated[int, Field(ge=1)] = 8,
) -> pa.Array:
    """Return 1 for what the loop takes and 0 for the rest. Its draws come from each candidate's stored u."""
    keep, score = passed(judged).to_numpy(), scores(judged).to_numpy()
    u, index = judged.column("u").to_numpy(), judged.column("index").to_numpy()
    prompts = codes(judged, "prompt_id")
    taken = np.zeros(judged.num_rows)
    for prompt in np.unique(prompts):
        rows = np.flatnonzero((prompts == prompt) & keep)
        rows = rows[np.argsort(index[rows])]
        taken[rows[_loop(score[rows], u[rows], beta, num_kept)]] = 1.0
    return pa.array(taken)


def _loop(score: NDArray[np.float64], u: NDArray[np.float64], beta: float, num_kept: int) -> NDArray[np.int64]:
    pool = np.arange(len(score))
    taken: list[int] = []
    sweep = 0
    while len(pool) and len(taken) < num_kept:  # ends: the best one left is taken for sure
        bound = float(score[pool].max())
        drawn = [i for i in pool.tolist() if repeated_uniform(u[i], sweep) < np.exp((score[i] - bound) / beta)]
        taken += drawn[: num_kept - len(taken)]
        pool, sweep = np.setdiff1d(pool, taken), sweep + 1
    return np.array(taken, dtype=np.int64)

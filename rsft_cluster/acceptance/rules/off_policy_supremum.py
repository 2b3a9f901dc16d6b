"""`off_policy_supremum`: `off_policy` with the largest weight of a prompt's own candidates for the bound.

For proposals whose largest weight is unknown. Exact asymptotically in K, like `boltzmann_supremum`, and decided
once, when the group is whole. The same proposals are refused as with `off_policy`.
"""

from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import Field

from rsft_cluster.acceptance.base import passed, rule, scaled, tilted
from rsft_cluster.acceptance.group_arrays import codes, largest_in_group
from rsft_cluster.acceptance.rules.off_policy import covers_policy, log_weights


@rule(
    target="policy at temperature 1 x passed x exp(score / {beta}), normalised for each prompt (a beta of None leaves "
    "the score out); inexact for small groups, since the group's largest weight stands for the bound",
    suits=covers_policy,
    needs=("logprob", "target_logprob"),
    previews=scaled("beta"),
)
def off_policy_supremum(
    judged: pa.Table, *, beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
) -> pa.Array:
    """Return exp(log w - the prompt's largest log w) for candidates that passed and 0 for the rest."""
    keep, weights = passed(judged).to_numpy(), log_weights(judged, beta)
    bound = largest_in_group(codes(judged, "prompt_id"), np.where(keep, weights, -np.inf))
    return tilted(weights - np.where(keep, bound, 0.0), keep)

"""`off_policy`: keep what passed so that it follows the policy itself, though sampled at a higher temperature.

With p the policy at temperature 1 and q the sampled distribution, log w = log p(y) - log q(y) + r / beta, and the
probability is C(x,y) min(1, w / M), log M = `log_bound`. Target, exactly: p(y|x) C(x,y) exp(r / beta) / Z(x) where
w <= M; what weighs more counts as M, so the target is q C min(w, M) / Z, which is stated in the manifest. Weights of
answers grow with their length: this is for short answers and temperatures close to 1.

A temperature below 1 is refused: p/q is then unbounded in the length of an answer. So are top-p, top-k and min-p: what
they cut off is never drawn, and no weight brings it back.
"""

from typing import Annotated

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from rsft_cluster.acceptance.base import passed, rule, scaled, scores, tilted
from rsft_cluster.config import SamplingConfig


def covers_policy(sampling: SamplingConfig) -> str | None:
    """Return why the proposal does not cover the policy, or None."""
    if sampling.temperature < 1:
        return f"sampling.temperature is {sampling.temperature:g}: below 1, p/q grows without bound in the length"
    cuts = {"top_p": sampling.top_p < 1, "top_k": sampling.top_k > 0, "min_p": sampling.min_p > 0}
    if cut := [name for name, is_set in cuts.items() if is_set]:
        return f"sampling.{cut[0]} cuts tokens off that the policy may draw; no weight brings them back"
    return None


def log_weights(judged: pa.Table, beta: float | None) -> NDArray[np.float64]:
    """Return log p - log q + r / beta for every row, without the last term where beta is None."""
    ratio = judged.column("target_logprob").to_numpy() - judged.column("logprob").to_numpy()
    return ratio if beta is None else ratio + scores(judged).to_numpy() / beta


@rule(
    target="policy at temperature 1 x passed x exp(score / {beta}), normalised for each prompt, weights cut at "
    "exp({log_bound}); a beta of None leaves the score out",
    scope="candidate",
    suits=covers_policy,
    needs=("logprob", "target_logprob"),
    previews=lambda params, num: [
        *({"params": {"log_bound": round(params["log_bound"] + step, 6)}} for step in (-1.0, 1.0, 2.0)),
        *scaled("beta")(params, num),
    ],
)
def off_policy(
    judged: pa.Table,
    *,
    log_bound: Annotated[float, Field(allow_inf_nan=False)],
    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None,
) -> pa.Array:
    """Return min(1, exp(log w - log_bound)) for candidates that passed and 0 for the rest."""
    return tilted(log_weights(judged, beta) - log_bound, passed(judged).to_numpy())

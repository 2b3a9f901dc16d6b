"""`all_passed`: keep every candidate that passed.

Probability 1 if passed, else 0. Target: the sampler's distribution restricted to what passes,
q(y|x) C(x,y) / Z(x), exactly: plain rejection sampling, as in STaR, RFT and ReST-EM.
"""

import pyarrow as pa

from rsft_cluster.acceptance.base import passed, rule

THRESHOLDS = (0.25, 0.5, 0.75, 0.9, 1.0)


@rule(
    target="the sampled distribution, restricted to candidates that passed",
    scope="candidate",
    all_or_none=True,
    previews=lambda _params, _num: [{"rule": "threshold", "params": {"min_score": score}} for score in THRESHOLDS],
)
def all_passed(judged: pa.Table) -> pa.ChunkedArray:
    """Return 1 for candidates that passed and 0 for the rest."""
    return passed(judged).cast(pa.float64())

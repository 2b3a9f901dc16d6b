"""`all_passed`: keep every candidate that passed.

Probability 1 if passed, else 0. Target: the sampler's distribution restricted to what passes,
q(y|x) C(x,y) / Z(x), exactly: plain rejection sampling, as in STaR, RFT and ReST-EM.
"""

import pyarrow as pa

from rsft_cluster.acceptance.base import passed, rule


@rule(target="the sampled distribution, restricted to candidates that passed", scope="candidate")
def all_passed(judged: pa.Table) -> pa.ChunkedArray:
    """Return 1 for what passed and 0 for the rest."""
    return passed(judged).cast(pa.float64())

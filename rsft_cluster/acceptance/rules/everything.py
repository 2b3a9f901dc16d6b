"""`everything`: keep every candidate that was judged, whatever the verdict.

The control without rejection: what training on the policy's own output does by itself. Target: the sampled
distribution. Candidates that could not be judged stay out, as everywhere.
"""

import pyarrow as pa

from rsft_cluster.acceptance.base import rule


@rule(
    target="the sampled distribution itself: nothing is rejected",
    scope="candidate",
    all_or_none=True,
    rejects=False,
)
def everything(judged: pa.Table) -> pa.ChunkedArray:
    """Return 1 for every candidate that has a verdict."""
    return judged.column("passed").is_valid().cast(pa.float64())

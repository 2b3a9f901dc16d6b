"""The ids that sources give their prompts: each may stand for one content only. 16 bytes an id.

Half a digest of each id and of each content is kept. That finds every id that stands for two contents, and hardly ever
one that does not: the caller checks again the few that are found.
"""

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint64]


class SourceIds:
    """A growing map from ids to contents, both as 64-bit digests, queried and filled a batch at a time."""

    def __init__(self) -> None:
        self._runs: list[tuple[Numbers, Numbers]] = []
        """Ids in order, and the content of each; geometrically growing, the longest run first."""

    def clashes(self, ids: Numbers, contents: Numbers) -> npt.NDArray[np.bool_]:
        """Add ids with their contents; return which of them stood for another content before, or do in this batch."""
        distinct, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        known = contents[first]
        is_new = np.ones(len(distinct), dtype=bool)
        for known_ids, known_contents in self._runs:
            indices = np.minimum(np.searchsorted(known_ids, distinct), len(known_ids) - 1)
            is_known = known_ids[indices] == distinct
            known = np.where(is_known & is_new, known_contents[indices], known)
            is_new &= ~is_known
        self._keep(distinct[is_new], known[is_new])
        return known[inverse] != contents

    def _keep(self, ids: Numbers, contents: Numbers) -> None:
        if not len(ids):
            return
        while self._runs and len(self._runs[-1][0]) < 2 * len(ids):
            more_ids, more_contents = self._runs.pop()
            ids, contents = np.concatenate([more_ids, ids]), np.concatenate([more_contents, contents])
            order = np.argsort(ids, kind="stable")
            ids, contents = ids[order], contents[order]
        self._runs.append((ids, contents))

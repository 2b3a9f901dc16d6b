"""A set of digests that stays small: 16 bytes each, where a set of bytes objects takes about 100.

Sorted arrays of geometrically growing length; adding a batch merges the short ones.
"""

import numpy as np
import numpy.typing as npt


class DigestSet:
    """A growing set of 16-byte digests, asked and filled a batch at a time."""

    def __init__(self) -> None:
        self._runs: list[npt.NDArray[np.bytes_]] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def add(self, digests: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bool_]:
        """Add digests (dtype S16); return for each whether it is the first of its kind."""
        distinct, first = np.unique(digests, return_index=True)
        known = np.zeros(len(distinct), dtype=bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, distinct), len(run) - 1)
            known |= run[at] == distinct
        self._keep(distinct[~known])
        is_first = np.zeros(len(digests), dtype=bool)
        is_first[first[~known]] = True
        return is_first

    def _keep(self, run: npt.NDArray[np.bytes_]) -> None:
        if not len(run):
            return
        # Every run is at least twice as long as the next, so there are few, and each digest moves few times.
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        self._runs.append(run)

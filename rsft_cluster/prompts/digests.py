"""A set of digests that stays small: 24 bytes each, where a set of bytes objects takes about 100.

Sorted arrays of geometrically growing length; adding a batch merges the short ones.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


def digests_of(ids: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """Return ids, which are digests in hexadecimal, as 16 bytes each (dtype S16)."""
    return np.frombuffer(bytes.fromhex("".join(ids)), dtype="S16")


class DigestSet:
    """A growing set of 16-byte digests, queried and filled a batch at a time."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def __len__(self) -> int:
        return sum(len(run.digests) for run in self._runs)

    def add(self, digests: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bool_]:
        """Add digests (dtype S16); return for each whether it is the first one with its value."""
        distinct, first = np.unique(digests, return_index=True)
        queried, known = _Run(distinct, _heads(distinct)), np.zeros(len(distinct), dtype=bool)
        for run in self._runs:
            known |= run.contains(queried)
        self._keep(distinct[~known])
        is_first = np.zeros(len(digests), dtype=bool)
        is_first[first[~known]] = True
        return is_first

    def _keep(self, digests: npt.NDArray[np.bytes_]) -> None:
        if not len(digests):
            return
        # Every run is at least twice as long as the next, so there are few, and each digest moves few times.
        while self._runs and len(self._runs[-1].digests) < 2 * len(digests):
            digests = np.sort(np.concatenate([self._runs.pop().digests, digests]), kind="stable")
        self._runs.append(_Run(digests, _heads(digests)))


class _Run(NamedTuple):
    """Sorted digests, and the first half of each as a number: numbers are found faster than bytes."""

    digests: npt.NDArray[np.bytes_]
    heads: npt.NDArray[np.uint64]

    def contains(self, queried: "_Run") -> npt.NDArray[np.bool_]:
        """Return which of the queried digests are among these."""
        last = len(self.digests) - 1
        indices = np.minimum(np.searchsorted(self.heads, queried.heads), last)
        present = self.digests[indices] == queried.digests
        # Where another digest has the same first half, it may be one of the next.
        unclear = np.flatnonzero((self.heads[indices] == queried.heads) & ~present)
        indices = np.minimum(np.searchsorted(self.digests, queried.digests[unclear]), last)
        present[unclear] = self.digests[indices] == queried.digests[unclear]
        return present


def _heads(digests: npt.NDArray[np.bytes_]) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(digests).view(">u8")[::2].astype(np.uint64)

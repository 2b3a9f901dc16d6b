"""What each worker is at, in memory that the pool reads: no message a candidate, and yet each has its deadline."""

import math
import mmap
import os
import struct
import time
from typing import NamedTuple

SLOTS = 256
"""Workers alive at once, at most."""
_ENTRY, _NUMBER = struct.Struct("qqdd"), struct.Struct("q")
_LIMIT, _PID = _ENTRY.size, _ENTRY.size + _NUMBER.size
_SIZE = _PID + _NUMBER.size
NUM_BYTES = SLOTS * _SIZE


class At(NamedTuple):
    """The candidates of a job that one call of a constraint is about, and when it began."""

    start: int
    num: int
    since: float
    """On the monotonic clock, which is one for all processes of a machine."""
    cpu_s: float
    """What the worker had taken of the processor by then."""


class Progress:
    """A table of what workers are at, in a file that they and the pool map."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, NUM_BYTES)

    def begin(self, slot: int, start: int, count: int) -> None:
        """Note that a call begins; by the worker itself, of whose time it is the beginning."""
        # CLOCK_MONOTONIC is one for all processes of a machine.
        _ENTRY.pack_into(self._map, slot * _SIZE, start, count, time.monotonic(), time.process_time())

    def at(self, slot: int) -> At:
        """Return what a worker is at."""
        return At(*_ENTRY.unpack_from(self._map, slot * _SIZE))

    def allow(self, slot: int, limit: int) -> None:
        """Let a worker judge the first `limit` candidates of its job, and no more."""
        _NUMBER.pack_into(self._map, slot * _SIZE + _LIMIT, limit)

    def limit(self, slot: int) -> int:
        """Return how many candidates of its job a worker is to judge."""
        return int(_NUMBER.unpack_from(self._map, slot * _SIZE + _LIMIT)[0])

    def clear(self, slot: int) -> None:
        """Make a slot ready for another worker."""
        _NUMBER.pack_into(self._map, slot * _SIZE + _PID, 0)

    def enter(self, slot: int) -> None:
        """Note which process a worker is; by itself."""
        _NUMBER.pack_into(self._map, slot * _SIZE + _PID, os.getpid())

    def pid(self, slot: int) -> int:
        """Return which process a worker is, 0 where it has not begun."""
        return int(_NUMBER.unpack_from(self._map, slot * _SIZE + _PID)[0])

    def give(self, slot: int, count: int) -> None:
        """Start the clock of a worker's first call, whether or not it gets to begin it."""
        _ENTRY.pack_into(self._map, slot * _SIZE, 0, count, time.monotonic(), math.inf)

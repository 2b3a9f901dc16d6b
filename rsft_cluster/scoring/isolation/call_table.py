"""A table of the calls that workers are in, in memory shared with the pool.

It spares a message per candidate, and yet each has its deadline.
"""

import math
import mmap
import os
import struct
import time
from typing import NamedTuple

SLOTS = 256
"""Most workers alive at once."""
_ENTRY, _NUMBER = struct.Struct("qqdd"), struct.Struct("q")
_LIMIT, _PID = _ENTRY.size, _ENTRY.size + _NUMBER.size
_SIZE = _PID + _NUMBER.size
NUM_BYTES = SLOTS * _SIZE


class Call(NamedTuple):
    """One call of a constraint: which candidates of the assignment it judges, and when it began."""

    start: int
    num: int
    since: float
    """On the monotonic clock, which is one for all processes of a machine."""
    cpu_s: float
    """CPU time of the worker by then."""


class CallTable:
    """The current call of every worker, in a file that the workers and the pool map."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, NUM_BYTES)

    def begin(self, slot: int, start: int, count: int) -> None:
        """Record that a call begins; for the worker itself, whose CPU time it takes."""
        # CLOCK_MONOTONIC is one for all processes of a machine.
        _ENTRY.pack_into(self._map, slot * _SIZE, start, count, time.monotonic(), time.process_time())

    def assign(self, slot: int, count: int) -> None:
        """Start the clock of a worker's first call, whether or not it gets to begin it."""
        _ENTRY.pack_into(self._map, slot * _SIZE, 0, count, time.monotonic(), math.inf)

    def call(self, slot: int) -> Call:
        """Return the current call of a worker."""
        return Call(*_ENTRY.unpack_from(self._map, slot * _SIZE))

    def set_limit(self, slot: int, limit: int) -> None:
        """Let a worker judge only the first `limit` candidates of its assignment."""
        _NUMBER.pack_into(self._map, slot * _SIZE + _LIMIT, limit)

    def limit(self, slot: int) -> int:
        """Return how many candidates of its assignment a worker is to judge."""
        return int(_NUMBER.unpack_from(self._map, slot * _SIZE + _LIMIT)[0])

    def clear(self, slot: int) -> None:
        """Make a slot ready for another worker."""
        _NUMBER.pack_into(self._map, slot * _SIZE + _PID, 0)

    def enter(self, slot: int) -> None:
        """Record the process id of a worker; for the worker itself."""
        _NUMBER.pack_into(self._map, slot * _SIZE + _PID, os.getpid())

    def pid(self, slot: int) -> int:
        """Return the process id of a worker, 0 before it has entered."""
        return int(_NUMBER.unpack_from(self._map, slot * _SIZE + _PID)[0])

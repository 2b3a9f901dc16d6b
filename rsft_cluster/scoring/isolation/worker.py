"""A worker: judges the candidates of a job, one call of the constraint at a time."""

import resource
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from rsft_cluster.constraints.base import BatchConstraint, Candidate
from rsft_cluster.constraints.outcomes import Built, Outcome, outcomes_of
from rsft_cluster.scoring.isolation.call_table import Progress

FLUSH_S = 0.005
"""Outcomes wait this long for company before they are sent."""


def serve(channel: Connection, built: Sequence[Built], progress: Progress, slot: int, memory_bytes: int) -> None:
    """Judge jobs (number of the constraint, candidates) until the pool hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # the kernel's first choice, should the node run out of memory all the same
        Path("/proc/self/oom_score_adj").write_text("1000")
    progress.enter(slot)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            number, candidates = channel.recv()
            _judge(channel, built[number], candidates, progress, slot)


def _judge(
    channel: Connection, constraint: Built, candidates: Sequence[Candidate], progress: Progress, slot: int
) -> None:
    """Send messages, as many outcomes as are allowed.

    A message is the place of the first, the outcomes, the most that one took of the processor, whether the job is over.
    """
    size = batch_size(constraint)
    ready: list[Outcome] = []
    start = first = 0
    longest_s = 0.0
    sent_at = time.monotonic()
    while start < min(len(candidates), progress.limit(slot)):
        batch = candidates[start : start + size]
        cpu_s = time.process_time()
        ready += outcomes_of(constraint, batch, partial(_begin, progress, slot, start))
        longest_s = max(longest_s, (time.process_time() - cpu_s) / len(batch))
        start += len(batch)
        if time.monotonic() - sent_at > FLUSH_S:
            channel.send((first, ready, longest_s, False))
            ready, first, sent_at = [], start, time.monotonic()
    channel.send((first, ready, longest_s, True))


def _begin(progress: Progress, slot: int, start: int, i: int, num: int) -> None:
    progress.begin(slot, start + i, num)


def batch_size(constraint: Built) -> int:
    """Return how many candidates a constraint judges in one call: one, unless its class says it gains from more."""
    return int(getattr(constraint, "batch_size", 1)) if isinstance(constraint, BatchConstraint) else 1


def longest_s(constraint: Built) -> float:
    """Return how long a call takes at most by the constraint's own account, 0 where it gives none."""
    return float(getattr(constraint, "longest_s", 0.0))

"""A worker: judges the candidates of an assignment, one call of the constraint at a time."""

import resource
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from rsft_cluster.constraints.base import BatchConstraint, Candidate
from rsft_cluster.constraints.outcomes import Built, Outcome, outcomes_of
from rsft_cluster.scoring.isolation.call_table import CallTable

FLUSH_S = 0.005
"""Outcomes are collected for this long before they are sent."""


class Report(NamedTuple):
    """What a worker sends to the pool: some outcomes of its assignment, in order."""

    first: int
    """Index, within the assignment, of the candidate of the first outcome."""
    outcomes: list[Outcome]
    longest_s: float
    """Most CPU time that one candidate of the assignment has taken so far."""
    is_last: bool


def serve(channel: Connection, built: Sequence[Built], table: CallTable, slot: int, memory_bytes: int) -> None:
    """Judge assignments (number of the constraint, candidates) until the pool hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # the kernel's first choice, should the node run out of memory all the same
        Path("/proc/self/oom_score_adj").write_text("1000")
    table.enter(slot)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            number, candidates = channel.recv()
            _judge(channel, built[number], candidates, table, slot)


def _judge(
    channel: Connection, constraint: Built, candidates: Sequence[Candidate], table: CallTable, slot: int
) -> None:
    """Judge candidates up to the limit in the table, and report the outcomes."""
    size = batch_size(constraint)
    ready: list[Outcome] = []
    start = first = 0
    longest_s = 0.0
    sent_at = time.monotonic()
    while start < min(len(candidates), table.limit(slot)):
        batch = candidates[start : start + size]
        cpu_s = time.process_time()
        ready += outcomes_of(constraint, batch, partial(_begin, table, slot, start))
        longest_s = max(longest_s, (time.process_time() - cpu_s) / len(batch))
        start += len(batch)
        if time.monotonic() - sent_at > FLUSH_S:
            channel.send(Report(first, ready, longest_s, is_last=False))
            ready, first, sent_at = [], start, time.monotonic()
    channel.send(Report(first, ready, longest_s, is_last=True))


def _begin(table: CallTable, slot: int, start: int, i: int, num: int) -> None:
    table.begin(slot, start + i, num)


def batch_size(constraint: Built) -> int:
    """Return how many candidates a constraint judges in one call: its `batch_size`, 1 by default and for functions."""
    return int(getattr(constraint, "batch_size", 1)) if isinstance(constraint, BatchConstraint) else 1


def longest_s(constraint: Built) -> float:
    """Return the constraint's own bound on the seconds of a call, 0 where it gives none."""
    return float(getattr(constraint, "longest_s", 0.0))

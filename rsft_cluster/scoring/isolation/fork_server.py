"""The process that builds constraints once and forks workers from there; started with `python -m`.

Single-threaded and answering only its pool, it is the parent of every worker, so that it can end one, and all that the
worker started, without a race on process ids. It ends when the pool's process does.
"""

import ctypes
import gc
import os
import pickle
import signal
import sys
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import NoReturn

from rsft_cluster.config.parts import Constraint
from rsft_cluster.constraints.building import build
from rsft_cluster.constraints.outcomes import Built
from rsft_cluster.errors import ConfigError, PluginError
from rsft_cluster.scoring.isolation.call_table import CallTable
from rsft_cluster.scoring.isolation.worker import batch_size, longest_s, serve

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
REAP_S, POLL_S = 0.05, 0.002
"""Seconds between two looks at whether a killed worker has died; the second while the pool waits for it."""


def main(control_fd: int, table_fd: int) -> None:
    """Build the constraints that the pool names, then fork and end workers as it asks."""
    os.dup2(2, 1)  # what constraints print is not a message
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    pool = Connection(control_fd)
    table = CallTable(table_fd)
    constraints, memory_bytes = pool.recv()
    try:
        built = [_ready(constraint) for constraint in constraints]
    except ConfigError as error:
        pool.send_bytes(pickle.dumps(error))
        return
    pool.send_bytes(pickle.dumps([(batch_size(constraint), longest_s(constraint)) for constraint in built]))
    gc.freeze()  # a collection in a worker would otherwise touch, and so copy, all that was built here
    # What constraints started here, for all workers to use, is not a stray of any worker.
    workers, kept, dying = dict[int, int](), _children(), set[int]()
    try:
        while True:
            while dying and not pool.poll(REAP_S):
                _reap(dying, kept | set(workers.values()))
            message, slot = pool.recv()
            if message == "fork":
                channel = Connection(recv_handle(pool))
                workers[slot] = _fork(pool, channel, built, table, slot, memory_bytes)
            elif message == "kill":  # it may wait long for the processor in which to die
                pid = workers.pop(slot)
                dying.add(pid)
                _kill(pid)
            elif message == "bury":
                while dying:
                    _reap(dying, kept | set(workers.values()))
                    time.sleep(POLL_S)
                pool.send(0)
            else:
                pid = workers.pop(slot)
                pool.send(_end(pid, kept | dying | set(workers.values())))
    except (EOFError, ConnectionResetError, BrokenPipeError):
        pass
    finally:
        ending = dying | set(workers.values())
        for pid in ending.copy():
            ending.discard(pid)
            _end(pid, ending)  # and what the constraints started, with the first of them
        for pid in _children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _ready(constraint: Constraint) -> Built:
    built = build(constraint, name=constraint.name)
    if batch_size(built) < 1:
        raise PluginError(f"constraint {constraint.name!r}: its batch_size is {batch_size(built)}, not 1 or more")
    prepare = getattr(built, "prepare", None)
    if prepare is not None:
        prepare()
    return built


def _fork(
    pool: Connection, channel: Connection, built: list[Built], table: CallTable, slot: int, memory_bytes: int
) -> int:
    fork_server = os.getpid()
    pid = os.fork()
    if pid:
        channel.close()
        return pid
    status = 1
    try:
        pool.close()
        # A group, and no session: the kernel shares the processor between sessions first, whatever their priorities.
        os.setpgid(0, 0)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == fork_server:
            serve(channel, built, table, slot, memory_bytes)
            status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        _leave(status)


def _leave(status: int) -> NoReturn:
    """End a worker without running the fork server's exit handlers."""
    with suppress(Exception):
        sys.stderr.flush()
    os._exit(status)


def _kill(pid: int) -> None:
    """Kill a worker with its group."""
    # The leader is not reaped yet, so its process id is still its own.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _end(pid: int, others: set[int]) -> int:
    """Kill a worker with its group, and what it left behind; return its wait status."""
    _kill(pid)
    _, status = os.waitpid(pid, 0)
    _kill_strays(others)
    return status


def _reap(dying: set[int], others: set[int]) -> None:
    """Reap the workers that have died meanwhile, and kill what they left behind."""
    for pid in dying.copy():
        if os.waitpid(pid, os.WNOHANG)[0]:
            dying.discard(pid)
            _kill_strays(others | dying)


def _kill_strays(others: set[int]) -> None:
    """Kill every child but the others: orphans of workers."""
    for _ in range(100):
        strays = _children() - others
        if not strays:
            break
        for stray in strays:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(stray, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(stray, 0)


def _children() -> set[int]:
    """Return the children of this process, orphans of workers among them; empty where the system does not tell."""
    try:
        return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
    except OSError:
        return set()


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

"""One writer a run: a lease with a fencing epoch, renewed while the holder lives.

`lease/000007.json` says who holds epoch 7; the highest epoch is the lease. Taking it is put-if-absent, so of
any number of starters one wins. A holder that dies is noticed at once on its own host, elsewhere after TTL_S.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from rsft_cluster.errors import AlreadyRunningError, StoreError
from rsft_cluster.records import Record
from rsft_cluster.store import Store
from rsft_cluster.store.layout import RunLayout

TTL_S = 120.0
"""A holder on another host that has not renewed for this long is taken for dead."""
RENEW_S = 20.0
RELEASE_S = 60.0
"""The longest wait for a store that does not answer when the lease is released."""
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """A held lease: what only one writer may put in the store goes through `publish`."""

    store: Store
    epoch: int
    session: str

    def check(self) -> None:
        """Raise AlreadyRunningError if somebody took the lease over in the meantime."""
        newest = _epochs(self.store)[-1]
        if newest != self.epoch:
            raise AlreadyRunningError(
                f"{self.store.uri}: the lease of epoch {self.epoch} was taken over (epoch {newest} holds it); "
                "this process stops without publishing anything more"
            )

    def publish(self, path: str, record: Record) -> bool:
        """Put a record if there is none, and return whether this call put it; raises what `check` does."""
        self.check()
        return self.store.create(path, record.to_json())


@contextmanager
def hold(store: Store) -> Iterator[Lease]:
    """Hold the run's lease for the length of the block; raises AlreadyRunningError if another process has it."""
    epochs = _epochs(store)
    if epochs:
        _refuse_living(store, epochs[-1])
    lease = Lease(store, (epochs[-1] if epochs else 0) + 1, uuid4().hex[:12])
    if not store.create(RunLayout(store).lease_of(lease.epoch), _payload(lease, released=False)):
        raise AlreadyRunningError(f"{store.uri}: another process took this run's lease just now")
    stop = threading.Event()
    renewer = threading.Thread(target=_renew, args=(lease, stop), daemon=True, name="lease")
    renewer.start()
    try:
        yield lease
    finally:
        stop.set()
        renewer.join()
        _release(lease)


def _epochs(store: Store) -> list[int]:
    return [int(p.rsplit("/", 1)[-1].removesuffix(".json")) for p in store.files(RunLayout(store).lease)]


def _payload(lease: Lease, *, released: bool) -> bytes:
    holder = {
        "nonce": lease.session,
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": os.getpid(),
        "started": _process_start(os.getpid()),
        "renewed": time.time(),
        "released": released,
    }
    return json.dumps(holder).encode()


def _write(lease: Lease, seconds: float, *, released: bool) -> None:
    path = RunLayout(lease.store).lease_of(lease.epoch)
    lease.store.within(seconds).write(path, _payload(lease, released=released))


def _release(lease: Lease) -> None:
    try:
        _write(lease, RELEASE_S, released=True)
    except StoreError as error:
        # What the run did, or died of, stands. The lease ends by itself.
        LOG.warning("%s; the lease ends when this process does, elsewhere after %.0f s", error, TTL_S)


def _renew(lease: Lease, stop: threading.Event) -> None:
    while not stop.wait(RENEW_S):
        try:
            _write(lease, RENEW_S, released=False)
        except StoreError:
            # A store that is away for a moment costs a renewal, not the run; `check` guards every publication.
            continue


def holder(store: Store) -> str | None:
    """Return who holds the run's lease, in words; None when nobody does."""
    epochs = _epochs(store)
    owner = json.loads(store.read(RunLayout(store).lease_of(epochs[-1]))) if epochs else None
    return _describe(owner) if owner and _is_living(owner) else None


def _refuse_living(store: Store, epoch: int) -> None:
    owner = json.loads(store.read(RunLayout(store).lease_of(epoch)))
    if _is_living(owner):
        raise AlreadyRunningError(f"{store.uri}: already running as {_describe(owner)}")


def _is_living(owner: dict[str, Any]) -> bool:
    if owner["released"]:
        return False
    if _is_here(owner):
        return _process_start(owner["pid"]) == owner["started"]
    return time.time() - owner["renewed"] < TTL_S


def _is_here(owner: dict[str, Any]) -> bool:
    return owner["host"] == socket.gethostname() and owner["boot"] == _boot()


def _describe(owner: dict[str, Any]) -> str:
    age = max(time.time() - owner["renewed"], 0.0)
    words = f"process {owner['pid']} on {owner['host']}, last seen {age:.0f} s ago"
    return words if _is_here(owner) else f"{words}; if it is gone, its lease ends in {TTL_S - age:.0f} s"


def _boot() -> str:
    return _text("/proc/sys/kernel/random/boot_id")


def _process_start(pid: int) -> str:
    """Return the start time of a process in clock ticks, empty if there is none: pids are used again."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] != "Z" else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""

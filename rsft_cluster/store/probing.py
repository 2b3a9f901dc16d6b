"""Can runs be kept here? Asked before anything else, so that what is wrong is said at once and in full."""

import errno
import os
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

from rsft_cluster.config.uris import place_of, shown
from rsft_cluster.errors import StoreError
from rsft_cluster.store.clients import endpoint
from rsft_cluster.store.retrying import Trouble, diagnose

if TYPE_CHECKING:
    from rsft_cluster.store.store import Store

START_S = 60.0
"""A store that is not there when a run starts is more often misspelt than away: it is asked for no longer."""
FULL = (errno.ENOSPC, errno.EDQUOT)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def probe(store: "Store") -> None:
    """Create a file twice, read and delete it; raises StoreError that says what of it cannot be done, and why."""
    path = f".probe-{uuid.uuid4().hex}"
    step = "created"
    try:
        first, second = store.create(path, b"1"), store.create(path, b"2")
        step = "read"
        found = store.read(path)
        step = "deleted"
        store.delete(path)
    except StoreError as error:
        raise StoreError(f"{store.uri}: {_why(store, path, step, error)}") from error.__cause__
    if (first, second, found) != (True, False, b"1"):
        raise StoreError(f"{store.uri}: {_UNSAFE}")


_UNSAFE = (
    "the store does not honour put-if-absent (If-None-Match: *), so two runs could overwrite each other there; "
    "expected a disk, NFS, or an object store that does"
)


def _why(store: "Store", path: str, step: str, error: StoreError) -> str:
    cause = error.__cause__
    bucket = place_of(store.uri).bucket
    if not isinstance(cause, Exception):
        return str(error)
    return _of_disk(step, cause) if bucket is None else _of_bucket(store, bucket, path, step, diagnose(cause))


def _of_bucket(store: "Store", bucket: str, path: str, step: str, trouble: Trouble) -> str:
    if trouble.kind == "absent" and step == "created":
        return f"there is no bucket {bucket}; create it, or name another"
    if trouble.kind == "denied":
        return _of_rights(store, step, trouble)
    if trouble.kind in ("refused", "unsupported") and step == "created" and _can_be_replaced(store, path):
        return f"{_UNSAFE} ({trouble.says})"
    if trouble.kind == "away":
        asked = f"; asked {shown(endpoint())}, by AWS_ENDPOINT_URL" if endpoint() and "s3:" in store.uri else ""
        return f"{trouble.says}, for {store.timeout_s:.0f} s{asked}"
    return trouble.says


def _of_disk(step: str, cause: Exception) -> str:
    number = cause.errno if isinstance(cause, OSError) else None
    said = os.strerror(number) if number else str(cause)
    if number in FULL:
        return f"the disk is full ({said}); make room, or name a folder elsewhere"
    problem = (
        f"cannot be written to ({said})" if step == "created" else f"a file can be created and not {step} ({said})"
    )
    if number in READ_ONLY:
        return f"{problem}; expected a folder that this user may write to, here and on every node"
    return f"{problem}; expected a folder or URI that every node may write to"


def _of_rights(store: "Store", step: str, trouble: Trouble) -> str:
    """Tell credentials that may only read from those that may do nothing."""
    if step != "created":
        return f"a file can be created and not {step}: {trouble.says}"
    try:
        store.files("")
    except StoreError:
        return trouble.says
    return f"it can be listed and not written to: {trouble.says}"


def _can_be_replaced(store: "Store", path: str) -> bool:
    with suppress(StoreError):
        store.write(path, b"3")
        store.delete(path)
        return True
    return False

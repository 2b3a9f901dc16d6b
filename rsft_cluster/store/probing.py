"""Whether runs can be kept in a store; checked before anything else, so that a mistake is reported in full at once."""

import errno
import os
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

from rsft_cluster.config.uris import parse_uri, shown
from rsft_cluster.errors import StoreError
from rsft_cluster.store.clients import endpoint
from rsft_cluster.store.retrying import Trouble, diagnose

if TYPE_CHECKING:
    from rsft_cluster.store.store import Store

START_S = 60.0
"""A store that does not answer when a run starts is more often misspelt than away: it is not tried for longer."""
FULL = (errno.ENOSPC, errno.EDQUOT)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def probe(store: "Store") -> None:
    """Create a file twice, read and delete it; raises StoreError that says which step failed, and why."""
    path = f".probe-{uuid.uuid4().hex}"
    step = "created"
    try:
        first, second = store.create(path, b"1"), store.create(path, b"2")
        step = "read"
        content = store.read(path)
        step = "deleted"
        store.delete(path)
    except StoreError as error:
        raise StoreError(f"{store.uri}: {_why(store, path, step, error)}") from error.__cause__
    if (first, second, content) != (True, False, b"1"):
        raise StoreError(f"{store.uri}: {_UNSAFE}")


_UNSAFE = (
    "the store does not honour put-if-absent (If-None-Match: *), so two runs could overwrite each other there; "
    "expected a disk, NFS, or an object store that does"
)


def _why(store: "Store", path: str, step: str, error: StoreError) -> str:
    cause = error.__cause__
    bucket = parse_uri(store.uri).bucket
    if not isinstance(cause, Exception):
        return str(error)
    return _disk_problem(step, cause) if bucket is None else _bucket_problem(store, bucket, path, step, diagnose(cause))


def _bucket_problem(store: "Store", bucket: str, path: str, step: str, trouble: Trouble) -> str:
    if trouble.kind == "absent" and step == "created":
        return f"there is no bucket {bucket}; create it, or name another"
    if trouble.kind == "denied":
        return _rights_problem(store, step, trouble)
    if trouble.kind in ("refused", "unsupported") and step == "created" and _can_be_replaced(store, path):
        return f"{_UNSAFE} ({trouble.says})"
    if trouble.kind == "away":
        address = f"; asked {shown(endpoint())}, by AWS_ENDPOINT_URL" if endpoint() and "s3:" in store.uri else ""
        return f"{trouble.says}, for {store.timeout_s:.0f} s{address}"
    return trouble.says


def _disk_problem(step: str, cause: Exception) -> str:
    number = cause.errno if isinstance(cause, OSError) else None
    reason = os.strerror(number) if number else str(cause)
    if number in FULL:
        return f"the disk is full ({reason}); make room, or name a folder elsewhere"
    problem = (
        f"cannot be written to ({reason})" if step == "created" else f"a file can be created and not {step} ({reason})"
    )
    if number in READ_ONLY:
        return f"{problem}; expected a folder that this user may write to, here and on every node"
    return f"{problem}; expected a folder or URI that every node may write to"


def _rights_problem(store: "Store", step: str, trouble: Trouble) -> str:
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

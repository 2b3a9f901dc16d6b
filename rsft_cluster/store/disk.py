"""Files on a disk of this machine or on NFS: whole or not at all, and on the disk when a call returns.

On NFS, `link` is decided by the server, so put-if-absent holds between hosts. What others see is close-to-open: who
opens a file sees all that was written before its writer closed it, and every file here is closed before its name
appears. A listing, or the absence of a name, may be remembered by a client for as long as the mount allows (`acdirmax`,
60 s by default): a host learns late that a lease was taken over, or a unit done. Both cost time and no result; mount
with `lookupcache=positive` or `actimeo=3` where it matters.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PASSING = (errno.ESTALE, errno.EIO)
"""What NFS says when a server was restarted, or an open file replaced: asking by name again finds it."""


def once_more(attempt: Callable[[], T]) -> T:
    """Return what an attempt returns, the second one where the first met a passing error of NFS."""
    try:
        return attempt()
    except OSError as error:
        if error.errno not in PASSING:
            raise
    return attempt()


def write_durably(target: Path, payload: bytes, *, exclusive: bool) -> bool:
    """Write aside, sync, then rename over the target, or link to it where it must not exist."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".aside-{uuid.uuid4().hex}")
    try:
        with aside.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        if not exclusive:
            aside.replace(target)
        elif not _link(aside, target):
            return False
        sync(target.parent)
    finally:
        aside.unlink(missing_ok=True)
    return True


def _link(aside: Path, target: Path) -> bool:
    """Link to a file under another name if that is free; return whether it was.

    When NFS loses a reply it asks again, and finds the name taken by itself. No other process knows the file: a second
    link to it is this process's own.
    """
    try:
        once_more(lambda: os.link(aside, target))
    except FileExistsError:
        return aside.stat().st_nlink == 2
    return True


def copy_durably(source: Path, target: Path) -> None:
    """Copy a file; the target is there in full or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".aside-{uuid.uuid4().hex}")
    shutil.copyfile(source, aside)
    sync(aside)
    aside.replace(target)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

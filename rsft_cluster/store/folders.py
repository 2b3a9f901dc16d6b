"""Whole folders, models above all, copied between this machine and a store."""

import hashlib
import os
import shutil
import tempfile
import uuid
from pathlib import Path

import pyarrow.fs as pafs

from rsft_cluster.config.uris import parse_uri
from rsft_cluster.store.disk import copy_durably
from rsft_cluster.store.filesystem import open_uri
from rsft_cluster.store.objects import Objects
from rsft_cluster.store.retrying import timeout_s


def localise(uri: str, *, without: str | None = None) -> Path:
    """Return a local folder with the content of `uri`: itself when it is local, else a cached download.

    A download leaves the folder `without` below it out.
    """
    filesystem, path = open_uri(uri)
    if isinstance(filesystem, pafs.LocalFileSystem):
        return Path(path)
    entries = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    left_out = f"{path.rstrip('/')}/{without}/"
    files = [f for f in entries if f.type == pafs.FileType.File and not f.path.startswith(left_out)]
    stamp = hashlib.sha256("\n".join(sorted(f"{f.path} {f.size} {f.mtime_ns}" for f in files)).encode())
    target = Path(tempfile.gettempdir()) / f"rsft-{os.getuid()}" / stamp.hexdigest()[:32]
    if target.exists():
        return target
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    aside.mkdir()
    try:
        for file in files:
            target_file = aside / file.path[len(path) :].lstrip("/")
            target_file.parent.mkdir(parents=True, exist_ok=True)
            pafs.copy_files(file.path, str(target_file), filesystem, pafs.LocalFileSystem())
        aside.rename(target)
    except OSError:
        shutil.rmtree(aside)
        if not target.exists():  # another worker of this node may have been first
            raise
    return target


def upload_folder(local: Path, uri: str) -> None:
    """Copy a local folder's files below `uri`, each whole or not at all."""
    parsed = parse_uri(uri)
    objects = Objects(parsed.bucket, timeout_s()) if parsed.bucket else None
    for file in sorted(p for p in local.rglob("*") if p.is_file()):
        target = f"{parsed.path}/{file.relative_to(local).as_posix()}"
        if objects is None:
            copy_durably(file, Path(target))
        else:
            objects.write(target.lstrip("/"), file)

"""An object store as a filesystem of pyarrow: for streamed tables, copied models and kept checkpoints.

Paths are `bucket/key`. Folders are what keys have in common; making one does nothing. Every request is one of
`Objects`, and so is tried again until a deadline.
"""

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from rsft_cluster.config.uris import parse_uri
from rsft_cluster.store.objects import CHUNK_BYTES, Objects
from rsft_cluster.store.retrying import timeout_s

READ_AHEAD_BYTES = 64 << 10
"""Read ahead in a file that is read at random, like Parquet; one read from its start to its end comes in chunks."""


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a URI or local path, and the path on it.

    Raises ConfigError for a URI that names no bucket, or holds what only the environment may hold.
    """
    parsed = parse_uri(uri)
    if parsed.bucket is None:
        return pafs.LocalFileSystem(), parsed.path
    filesystem = ObjectFilesystem(Objects(parsed.bucket, timeout_s()))
    return pafs.PyFileSystem(filesystem), f"{filesystem.root}/{parsed.path}".rstrip("/")


class ObjectFilesystem(pafs.FileSystemHandler):
    """What pyarrow asks of a filesystem, answered by a bucket."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.root = objects.bucket.partition("://")[2]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectFilesystem) and other.objects.bucket == self.objects.bucket

    def __hash__(self) -> int:
        return hash(self.objects.bucket)

    def __reduce__(self) -> tuple[Any, ...]:
        return (ObjectFilesystem, (self.objects,))

    def get_type_name(self) -> str:
        """Return the name by which pyarrow shows it."""
        return self.objects.bucket.partition("://")[0]

    def normalize_path(self, path: str) -> str:
        """Return the path as it is."""
        return path

    def get_file_info(self, paths: Sequence[str]) -> list[pafs.FileInfo]:
        """Return what lies under each path."""
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """List a folder."""
        files, folders = self.objects.listed(self._key(selector.base_dir), recursive=selector.recursive)
        if not files and not folders and not selector.allow_not_found:
            raise FileNotFoundError(f"{self.objects.bucket}: there is no folder {selector.base_dir}")
        return [
            *(pafs.FileInfo(self._path(key), pafs.FileType.Directory) for key in folders),
            *(_file(self._path(f.key), f.size, f.modified) for f in files),
        ]

    def create_dir(self, path: str, recursive: bool) -> None:  # noqa: FBT001 pyarrow's signature
        """Do nothing: a folder is there when something is in it."""

    def delete_dir(self, path: str) -> None:
        """Remove a folder and all below it."""
        files, _ = self.objects.listed(self._key(path), recursive=True)
        self.objects.delete([f.key for f in files])

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:  # noqa: FBT001 as above
        """Remove all below a folder."""
        self.delete_dir(path)

    def delete_root_dir_contents(self) -> None:
        """Refuse to empty a bucket."""
        raise OSError(f"{self.objects.bucket}: a whole bucket is not emptied")

    def delete_file(self, path: str) -> None:
        """Remove a file."""
        self.objects.delete([self._key(path)])

    def move(self, src: str, dest: str) -> None:
        """Copy a file, then remove it; others see both in between."""
        self.copy_file(src, dest)
        self.delete_file(src)

    def copy_file(self, src: str, dest: str) -> None:
        """Copy a file."""
        with self.open_input_stream(src) as source, self.open_output_stream(dest, None) as target:
            while chunk := source.read(CHUNK_BYTES):
                target.write(chunk)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """Open a file to be read from its beginning to its end."""
        return self._open(path, CHUNK_BYTES)

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Open a file to be read anywhere."""
        return self._open(path, READ_AHEAD_BYTES)

    def open_output_stream(self, path: str, metadata: object) -> pa.NativeFile:
        """Open a file to be written; it appears when it is closed."""
        return pa.PythonFile(_Upload(self.objects, self._key(path)), mode="w")

    def open_append_stream(self, path: str, metadata: object) -> pa.NativeFile:
        """Refuse: objects are not added to."""
        raise OSError(f"{self.objects.uri_of(self._key(path))}: an object store cannot append to a file")

    def _open(self, path: str, read_ahead: int) -> pa.NativeFile:
        info = self.objects.find(self._key(path))
        if info is None:
            raise FileNotFoundError(f"{self.objects.uri_of(self._key(path))}: there is no such file")
        return pa.PythonFile(_Download(self.objects, info.key, info.size, read_ahead), mode="r")

    def _info(self, path: str) -> pafs.FileInfo:
        key = self._key(path)
        info = self.objects.find(key) if key else None
        if info is not None:
            return _file(path, info.size, info.modified)
        kind = pafs.FileType.Directory if self.objects.has_folder(key) else pafs.FileType.NotFound
        return pafs.FileInfo(path, kind)

    def _key(self, path: str) -> str:
        return path.strip("/").partition("/")[2]

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"


class _Download(io.RawIOBase):
    """An object as a file to read, with one block of it in memory."""

    def __init__(self, objects: Objects, key: str, size: int, read_ahead: int) -> None:
        self._objects, self._key, self._size, self._read_ahead = objects, key, size, read_ahead
        self._position, self._start, self._block = 0, 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._position + size, self._size)
        parts = []
        while self._position < end:
            if not self._start <= self._position < self._start + len(self._block):
                self._fetch(end)
            part = self._block[self._position - self._start : end - self._start]
            parts.append(part)
            self._position += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _fetch(self, end: int) -> None:
        """Read the block at the current position, with some read-ahead, and no more than one request may move."""
        num_bytes = min(max(end - self._position, self._read_ahead), CHUNK_BYTES)
        until = min(self._position + num_bytes, self._size)
        self._start, self._block = self._position, self._objects.read_range(self._key, self._position, until)


class _Upload(io.RawIOBase):
    """A file that is put as an object when it is closed."""

    def __init__(self, objects: Objects, key: str) -> None:
        self._objects, self._key = objects, key
        self._spool = tempfile.NamedTemporaryFile(prefix="rsft-upload-")  # noqa: SIM115 closed in close()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._spool.tell()

    def write(self, payload: Any) -> int:
        return self._spool.write(payload)

    def close(self) -> None:
        if not self.closed:
            with self._spool:
                self._spool.flush()
                self._objects.write(self._key, Path(self._spool.name))
        super().close()


def _file(path: str, size: int, modified: Any) -> pafs.FileInfo:
    return pafs.FileInfo(path, pafs.FileType.File, size=size, mtime=modified)

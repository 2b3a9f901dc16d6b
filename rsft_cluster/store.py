"""Where a run's artefacts live: any pyarrow filesystem, addressed by URI.

Bytes and tables in, checksummed files out. Files appear whole or not at all; `create` is put-if-absent, the only
primitive that two processes may race on. What the files mean is not known here.
"""

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import obstore
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from obstore.exceptions import AlreadyExistsError, BaseError

from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.records import FileRef, Record
from rsft_cluster.schemas import conform

R = TypeVar("R", bound=Record)
SCHEMES = ("file", "s3", "gs", "abfs")
TOGETHER = b"rsft_rows_together"
"""Metadata of a Parquet file whose row groups are multiples of so many rows."""
MAX_GROUP_BYTES = 8 << 20
"""A row group of several lots takes no more of Arrow memory than this: who wants one lot reads the group."""


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a URI or local path, and the path on it.

    Raises ConfigError for a scheme that is not one of SCHEMES.
    """
    scheme = uri.split("://", 1)[0] if "://" in uri else "file"
    if scheme not in SCHEMES:
        raise ConfigError(f"{uri}: unknown storage scheme {scheme!r}; one of {', '.join(SCHEMES)} is supported")
    if scheme == "file":
        return pafs.LocalFileSystem(), os.path.abspath(uri.removeprefix("file://"))  # noqa: PTH100 no symlinks
    try:
        return pafs.FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:
        raise StoreError(f"{uri}: cannot be opened: {error}") from error


def join_uri(uri: str, *parts: str) -> str:
    """Return a URI below another."""
    return "/".join([uri.rstrip("/"), *parts])


def localise(uri: str) -> Path:
    """Return a local folder with the content of `uri`: itself when it is local, else a cached download."""
    filesystem, path = open_uri(uri)
    if isinstance(filesystem, pafs.LocalFileSystem):
        return Path(path)
    files = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    stamp = hashlib.sha256("\n".join(sorted(f"{f.path} {f.size} {f.mtime_ns}" for f in files)).encode())
    target = Path(tempfile.gettempdir()) / f"rsft-{os.getuid()}" / stamp.hexdigest()[:32]
    if target.exists():
        return target
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    aside.mkdir()
    pafs.copy_files(path, str(aside), source_filesystem=filesystem, destination_filesystem=pafs.LocalFileSystem())
    try:
        aside.rename(target)
    except OSError:
        shutil.rmtree(aside)  # another worker of this node was first
    return target


def upload_folder(local: Path, uri: str) -> None:
    """Copy a local folder's files below `uri`, each whole or not at all on a local filesystem."""
    filesystem, path = open_uri(uri)
    for file in sorted(p for p in local.rglob("*") if p.is_file()):
        target = f"{path}/{file.relative_to(local).as_posix()}"
        if isinstance(filesystem, pafs.LocalFileSystem):
            _copy_durably(file, Path(target))
        else:
            pafs.copy_files(
                str(file), target, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=filesystem
            )


class Store:
    """One folder of artefacts. Paths are relative to it; every failure is a StoreError naming the file."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.filesystem, self.root = open_uri(uri)
        self._local = isinstance(self.filesystem, pafs.LocalFileSystem)
        self._last_footer: tuple[tuple[str, int, int], pq.FileMetaData] | None = None
        self._last_group: tuple[tuple[str, int, int, int], pa.Table] | None = None

    def uri_of(self, path: str) -> str:
        """Return the URI of a file or folder of this store."""
        return join_uri(self.uri, path)

    def probe(self) -> None:
        """Write, create twice, read and delete a file; raises StoreError where the store cannot do that."""
        path = f".probe-{uuid.uuid4().hex}"
        if not self.create(path, b"1") or self.create(path, b"2") or self.read(path) != b"1":
            raise StoreError(f"{self.uri}: the store does not honour put-if-absent; runs would not be safe on it")
        self.delete(path)

    def exists(self, path: str) -> bool:
        """Say whether there is a file or folder."""
        with self._explaining(path):
            return self.filesystem.get_file_info(self._full(path)).type != pafs.FileType.NotFound

    def files(self, folder: str, *, recursive: bool = False) -> list[str]:
        """Return the files of a folder, sorted, relative to the store; empty if there is no such folder."""
        with self._explaining(folder):
            selector = pafs.FileSelector(self._full(folder), allow_not_found=True, recursive=recursive)
            found = self.filesystem.get_file_info(selector)
        files = (f.path for f in found if f.type == pafs.FileType.File)
        return sorted(os.path.relpath(p, self.root) for p in files if "/.aside-" not in p)

    def folders(self, folder: str) -> list[str]:
        """Return the folders in a folder, sorted, relative to the store; empty if there is no such folder."""
        with self._explaining(folder):
            selector = pafs.FileSelector(self._full(folder), allow_not_found=True)
            found = self.filesystem.get_file_info(selector)
        return sorted(os.path.relpath(f.path, self.root) for f in found if f.type == pafs.FileType.Directory)

    def size(self, path: str) -> int | None:
        """Return the size of a file in bytes, None if there is none."""
        with self._explaining(path):
            info = self.filesystem.get_file_info(self._full(path))
        return info.size if info.type == pafs.FileType.File else None

    def read(self, path: str) -> bytes:
        """Return the bytes of a file."""
        with self._explaining(path), self.filesystem.open_input_stream(self._full(path)) as stream:
            return stream.read()

    def read_record(self, path: str, kind: type[R]) -> R:
        """Return the record in a JSON file; raises StoreError naming the file when it holds no such record."""
        payload = self.read(path)
        try:
            return kind.from_json(payload)
        except ValueError as error:
            raise StoreError(f"{self.uri_of(path)}: damaged: holds no {kind.__name__}") from error

    def write(self, path: str, payload: bytes) -> None:
        """Put a file, replacing what is there; readers see the old bytes or the new ones."""
        with self._explaining(path):
            if self._local:
                _write_durably(Path(self._full(path)), payload, exclusive=False)
            else:
                with self.filesystem.open_output_stream(self._full(path)) as stream:
                    stream.write(payload)

    def create(self, path: str, payload: bytes) -> bool:
        """Put a file if there is none; return whether this call put it. Atomic between processes."""
        with self._explaining(path):
            if self._local:
                return _write_durably(Path(self._full(path)), payload, exclusive=True)
            return self._create_object(path, payload)

    def delete(self, path: str) -> None:
        """Remove a file that is there."""
        with self._explaining(path):
            self.filesystem.delete_file(self._full(path))

    def delete_folder(self, path: str) -> None:
        """Remove a folder and all below it, if it is there."""
        with self._explaining(path):
            if self.exists(path):
                self.filesystem.delete_dir(self._full(path))

    def write_table(self, path: str, table: pa.Table, schema: pa.Schema) -> FileRef:
        """Write a conforming Parquet file with page checksums; return its reference."""
        sink = pa.BufferOutputStream()
        pq.write_table(conform(table, schema), sink, compression="zstd", write_page_checksum=True)
        payload = sink.getvalue().to_pybytes()
        self.write(path, payload)
        digest = hashlib.sha256(payload).hexdigest()
        return FileRef(path=path, num_bytes=len(payload), sha256=digest, num_rows=table.num_rows)

    def read_table(self, ref: FileRef, columns: list[str] | None = None) -> pa.Table:
        """Read a file that a record vouches for; raises StoreError when it is not those bytes."""
        payload = self.read(ref.path)
        found = hashlib.sha256(payload).hexdigest()
        if found != ref.sha256:
            raise StoreError(
                f"{self.uri_of(ref.path)}: damaged: {len(payload)} bytes with sha256 {found[:12]}, "
                f"recorded were {ref.num_bytes} with {ref.sha256[:12]}"
            )
        return pq.read_table(pa.BufferReader(payload), columns=columns, page_checksum_verification=True)

    def write_batches(
        self, path: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema, *, rows: int, most_rows: int = 0
    ) -> int:
        """Stream batches into one Parquet file with `rows` rows a row group; return the number of rows.

        With `most_rows`, a row group holds several times `rows` rows, as long as there are no more than that and they
        are no larger than MAX_GROUP_BYTES: a footer grows with its row groups, and every reader reads it whole. The
        file says `rows` in its metadata (TOGETHER).
        """
        num_rows = 0
        with (
            self._explaining(path),
            self._aside(path) as aside,
            pq.ParquetWriter(
                aside, schema, filesystem=self.filesystem, compression="zstd", write_page_checksum=True
            ) as writer,
        ):
            writer.add_key_value_metadata({TOGETHER: str(rows)})
            for table in _regroup(batches, rows, max(1, most_rows // rows)):
                writer.write_table(conform(table, schema), row_group_size=table.num_rows)
                num_rows += table.num_rows
        return num_rows

    def read_batches(self, path: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield a Parquet file in batches, its page checksums verified."""
        with self._explaining(path), self.filesystem.open_input_file(self._full(path)) as file:
            yield from pq.ParquetFile(file, page_checksum_verification=True).iter_batches(columns=columns)

    def first_rows(self, path: str, num_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the first rows of a Parquet file."""
        for batch in self.read_batches(path):
            yield batch.slice(0, num_rows)
            num_rows -= batch.num_rows
            if num_rows <= 0:
                return

    def read_row_group(self, path: str, row_group: int) -> pa.Table:
        """Read one row group of a Parquet file, its page checksums verified; the last one read is kept."""
        with self._explaining(path):
            stamp, footer = self._footer(path)
            known = self._last_group
            if known is None or known[0] != (*stamp, row_group):
                with self.filesystem.open_input_file(self._full(path)) as file:
                    parquet = pq.ParquetFile(file, metadata=footer, page_checksum_verification=True)
                    known = self._last_group = ((*stamp, row_group), parquet.read_row_group(row_group))
            return known[1]

    def row_groups(self, path: str) -> tuple[list[int], int | None]:
        """Return how many rows each row group of a Parquet file has, and how many of them belong together."""
        with self._explaining(path):
            _, footer = self._footer(path)
        together = (footer.metadata or {}).get(TOGETHER)
        sizes = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
        return sizes, None if together is None else int(together)

    def _footer(self, path: str) -> tuple[tuple[str, int, int], pq.FileMetaData]:
        """Return a Parquet file's stamp and footer, the last one read kept: it grows with the row groups."""
        info = self.filesystem.get_file_info(self._full(path))
        stamp = (path, info.size, info.mtime_ns)
        known = self._last_footer
        if known is None or known[0] != stamp:
            known = self._last_footer = (stamp, pq.read_metadata(self._full(path), filesystem=self.filesystem))
        return known

    def _full(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise StoreError(f"{path}: leads out of the store")
        return f"{self.root}/{path}" if path else self.root

    @contextmanager
    def _aside(self, path: str) -> Iterator[str]:
        """Yield a path to write to, and move it into place when the block ends well."""
        full = self._full(path)
        if not self._local:
            yield full
            return
        aside = f"{os.path.dirname(full)}/.aside-{uuid.uuid4().hex}"  # noqa: PTH120
        Path(aside).parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            _sync(Path(aside))
            Path(aside).replace(full)
            _sync(Path(full).parent)
        finally:
            Path(aside).unlink(missing_ok=True)

    def _create_object(self, path: str, payload: bytes) -> bool:
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
        allow_http = endpoint.startswith("http://")
        target = obstore.store.from_url(self.uri, client_options={"allow_http": allow_http})
        try:
            obstore.put(target, path, payload, mode="create")
        except AlreadyExistsError:
            # A lost reply makes the client retry its own put: the bytes tell whether it was ours.
            return self.read(path) == payload and b"nonce" in payload
        except BaseError as error:
            raise OSError(str(error)) from error
        return True

    @contextmanager
    def _explaining(self, path: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"{join_uri(self.uri, path)}: {error.strerror or error}") from error


def _regroup(batches: Iterable[pa.RecordBatch], rows: int, most_lots: int) -> Iterator[pa.Table]:
    """Yield row groups of a stream: `most_lots` times `rows` rows, or fewer lots where they are large."""
    held: list[pa.RecordBatch] = []
    num_held, num_bytes = 0, 0
    for batch in batches:
        held.append(batch)
        num_held += batch.num_rows
        num_bytes += batch.nbytes
        while num_held >= rows and (num_held >= rows * most_lots or num_bytes > MAX_GROUP_BYTES):
            table, lots = pa.Table.from_batches(held), min(most_lots, num_held // rows)
            while lots > 1 and table.slice(0, lots * rows).nbytes > MAX_GROUP_BYTES:
                lots //= 2
            yield table.slice(0, lots * rows)
            held = table.slice(lots * rows).to_batches()
            num_held, num_bytes = num_held - lots * rows, sum(b.nbytes for b in held)
    if num_held:
        yield pa.Table.from_batches(held)


def _write_durably(target: Path, payload: bytes, *, exclusive: bool) -> bool:
    """Write aside, sync, then rename over the target, or link to it where it must not exist."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".aside-{uuid.uuid4().hex}")
    try:
        with aside.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            try:
                os.link(aside, target)
            except FileExistsError:
                return False
        else:
            aside.replace(target)
        _sync(target.parent)
    finally:
        aside.unlink(missing_ok=True)
    return True


def _copy_durably(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".aside-{uuid.uuid4().hex}")
    shutil.copyfile(source, aside)
    _sync(aside)
    aside.replace(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Where a run's artefacts live: a folder on a disk, on NFS or in an object store, addressed by URI.

Bytes and tables in, checksummed files out. Files appear whole or not at all; `create` is put-if-absent, the only
primitive that two processes may race on. What the files mean is not known here.
"""

import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rsft_cluster.config.uris import join_uri, parse_uri
from rsft_cluster.errors import StoreError
from rsft_cluster.records import FileRef, Record
from rsft_cluster.schemas import conform
from rsft_cluster.store.disk import once_more, sync, write_durably
from rsft_cluster.store.filesystem import ObjectFilesystem
from rsft_cluster.store.objects import Objects
from rsft_cluster.store.probing import START_S, probe
from rsft_cluster.store.retrying import timeout_s

R = TypeVar("R", bound=Record)
TOGETHER = b"rsft_rows_together"
"""Metadata key of a Parquet file: its row groups hold multiples of this number of rows."""
MAX_GROUP_BYTES = 8 << 20
"""The most Arrow memory that a row group of several lots takes: reading one lot reads the group."""


class Store:
    """One folder of artefacts. Paths are relative to it; every failure is a StoreError naming the file.

    Requests to a remote one are retried until RSFT_STORE_TIMEOUT_S, or `timeout`, is over.
    """

    def __init__(self, uri: str, *, timeout: float | None = None) -> None:
        parsed = parse_uri(uri)
        self.uri = uri
        self._objects: Objects | None = None
        self._prefix = parsed.path
        if parsed.bucket is None:
            self.filesystem, self.root = pafs.LocalFileSystem(), parsed.path
        else:
            self._objects = Objects(parsed.bucket, timeout_s() if timeout is None else timeout)
            handler = ObjectFilesystem(self._objects)
            self.filesystem, self.root = pafs.PyFileSystem(handler), f"{handler.root}/{parsed.path}".rstrip("/")
        self._last_footer: tuple[tuple[str, int, int], pq.FileMetaData] | None = None
        self._last_group: tuple[tuple[str, int, int, int], pa.Table] | None = None

    def uri_of(self, path: str) -> str:
        """Return the URI of a file or folder of this store."""
        return join_uri(self.uri, path)

    @property
    def timeout_s(self) -> float:
        """For how long requests to a remote store are retried."""
        return self._objects.timeout_s if self._objects else 0.0

    def probe(self) -> None:
        """Write, create twice, read and delete a file; raises StoreError where the store cannot do that."""
        probe(self.within(START_S))

    def within(self, seconds: float) -> "Store":
        """Return the same store with a shorter timeout, for what is of no use when it comes later."""
        return Store(self.uri, timeout=min(seconds, timeout_s()))

    def exists(self, path: str) -> bool:
        """Say whether there is a file or folder."""
        with self._explaining(path):
            return self.filesystem.get_file_info(self._full(path)).type != pafs.FileType.NotFound

    def files(self, folder: str, *, recursive: bool = False) -> list[str]:
        """Return the files of a folder, sorted, relative to the store; empty if there is no such folder."""
        with self._explaining(folder):
            selector = pafs.FileSelector(self._full(folder), allow_not_found=True, recursive=recursive)
            infos = self.filesystem.get_file_info(selector)
        files = (f.path for f in infos if f.type == pafs.FileType.File)
        return sorted(os.path.relpath(p, self.root) for p in files if "/.aside-" not in p)

    def folders(self, folder: str) -> list[str]:
        """Return the folders in a folder, sorted, relative to the store; empty if there is no such folder."""
        with self._explaining(folder):
            selector = pafs.FileSelector(self._full(folder), allow_not_found=True)
            infos = self.filesystem.get_file_info(selector)
        return sorted(os.path.relpath(f.path, self.root) for f in infos if f.type == pafs.FileType.Directory)

    def size(self, path: str) -> int | None:
        """Return the size of a file in bytes, None if there is none."""
        with self._explaining(path):
            info = self.filesystem.get_file_info(self._full(path))
        return info.size if info.type == pafs.FileType.File else None

    def read(self, path: str) -> bytes:
        """Return the bytes of a file."""
        with self._explaining(path):
            full = self._full(path)
            return self._objects.read(self._key(path)) if self._objects else once_more(lambda: _read(full))

    def read_record(self, path: str, kind: type[R]) -> R:
        """Return the record in a JSON file; raises StoreError naming the file when it holds no such record."""
        payload = self.read(path)
        try:
            return kind.from_json(payload)
        except ValueError as error:
            raise StoreError(f"{self.uri_of(path)}: damaged: holds no {kind.__name__}") from error

    def find_record(self, path: str, kind: type[R]) -> R | None:
        """Return the record in a JSON file, None where there is no such file."""
        return self.read_record(path, kind) if self.exists(path) else None

    def write(self, path: str, payload: bytes) -> None:
        """Put a file, replacing what is there; readers see the old bytes or the new ones."""
        with self._explaining(path):
            if self._objects:
                self._objects.write(self._key(path), payload)
            else:
                write_durably(Path(self._full(path)), payload, exclusive=False)

    def create(self, path: str, payload: bytes) -> bool:
        """Put a file if there is none; return whether this call put it. Atomic between processes.

        A reply that is lost on the way changes nothing: the caller that put the file is told so.
        """
        with self._explaining(path):
            if self._objects:
                return self._objects.create(self._key(path), payload)
            return write_durably(Path(self._full(path)), payload, exclusive=True)

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
        sha256 = hashlib.sha256(payload).hexdigest()
        if sha256 != ref.sha256:
            raise StoreError(
                f"{self.uri_of(ref.path)}: damaged: {len(payload)} bytes with sha256 {sha256[:12]}, "
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
            pq.ParquetWriter(aside, schema, compression="zstd", write_page_checksum=True) as writer,
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

    def _key(self, path: str) -> str:
        self._full(path)
        return "/".join(part for part in (self._prefix, path) if part)

    @contextmanager
    def _aside(self, path: str) -> Iterator[Path]:
        """Yield a local file to write to, and move it into place when the block ends well."""
        if self._objects:
            with tempfile.TemporaryDirectory(prefix="rsft-upload-") as folder:
                aside = Path(folder, "file")
                yield aside
                self._objects.write(self._key(path), aside)
            return
        full = Path(self._full(path))
        aside = full.with_name(f".aside-{uuid.uuid4().hex}")
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            sync(aside)
            aside.replace(full)
            sync(full.parent)
        finally:
            aside.unlink(missing_ok=True)

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


def _read(path: str) -> bytes:
    with pafs.LocalFileSystem().open_input_stream(path) as stream:
        return stream.read()

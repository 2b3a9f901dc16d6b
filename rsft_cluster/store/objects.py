"""The objects of one bucket, by their keys. Every call is tried again until a deadline, and safe to try again.

A reply that is lost leaves it open what was done. Reading, listing, replacing and deleting have the same effect when
they are done twice. A put-if-absent does not: it carries a mark, by which it recognises its own object when the key
turns out to be taken.
"""

import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError

from rsft_cluster.errors import StoreError
from rsft_cluster.store.clients import client
from rsft_cluster.store.retrying import patiently

T = TypeVar("T")
CHUNK_BYTES = 8 << 20
"""The most bytes that one request moves: it has to be done within REQUEST_S."""
KEYS_AT_ONCE = 1000
MARK = "rsft-put"
INNER_RETRIES = 2
"""Retries by the client itself, where a call makes many requests: parts of a large object, pages of a listing."""


@dataclass(frozen=True)
class ObjectInfo:
    """An object that is there."""

    key: str
    size: int
    modified: datetime


class Objects:
    """The objects of a bucket, given by its URI. Every failure is a StoreError that names the object."""

    def __init__(self, bucket: str, timeout_s: float) -> None:
        self.bucket = bucket
        self.timeout_s = timeout_s
        self._client = client(bucket, INNER_RETRIES)
        # Each of its errors is that of one request: none is lost in a retry of its own.
        self._exact = client(bucket, 0)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without connections or credentials: the process that unpickles has an environment of its own."""
        return (Objects, (self.bucket, self.timeout_s))

    def uri_of(self, key: str) -> str:
        """Return the URI of an object."""
        return f"{self.bucket}/{key}"

    def find(self, key: str) -> ObjectInfo | None:
        """Return what is there under a key, None if nothing is."""

        def attempt() -> ObjectInfo | None:
            return self._or_absent(lambda: _info(obstore.head(self._client, key)))

        return self._patiently(attempt, key)

    def has_folder(self, key: str) -> bool:
        """Say whether there are objects below a key."""
        return self._patiently(lambda: any(obstore.list(self._client, key or None, chunk_size=1)), key)

    def listed(self, key: str, *, recursive: bool) -> tuple[list[ObjectInfo], list[str]]:
        """Return the objects and the folders below a key: in it, or at any depth."""

        def attempt() -> tuple[list[ObjectInfo], list[str]]:
            if recursive:
                objects = [
                    _info(m) for chunk in obstore.list(self._client, key or None, chunk_size=1000) for m in chunk
                ]
                folders = _parents(objects, key)
                return _without_markers(objects, {*folders, key}), sorted(folders)
            both = obstore.list_with_delimiter(self._client, key or None)
            folders = sorted(both["common_prefixes"])
            return _without_markers([_info(m) for m in both["objects"]], {*folders, key}), folders

        return self._patiently(attempt, key)

    def read(self, key: str) -> bytes:
        """Return an object's bytes."""

        def attempt() -> bytes | int:
            answer = obstore.get(self._client, key)
            size = answer.meta["size"]
            return bytes(answer.bytes()) if size <= CHUNK_BYTES else size

        content = self._patiently(attempt, key)
        if isinstance(content, bytes):
            return content
        size = content
        return b"".join(self.read_range(key, s, min(s + CHUNK_BYTES, size)) for s in range(0, size, CHUNK_BYTES))

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to `end` of an object that has them."""
        content = self._patiently(lambda: bytes(obstore.get_range(self._client, key, start=start, end=end)), key)
        if len(content) != end - start:
            raise StoreError(f"{self.uri_of(key)}: was replaced by something shorter while it was read")
        return content

    def write(self, key: str, payload: bytes | Path) -> None:
        """Put an object, of bytes or of a file's, replacing what is there; it appears whole or not at all."""
        self._patiently(lambda: obstore.put(self._client, key, payload), key)

    def create(self, key: str, payload: bytes) -> bool:
        """Put an object if there is none; return whether this call put it, whatever became of its replies."""
        mark, is_open = uuid.uuid4().hex, False

        def attempt() -> bool:
            nonlocal is_open
            try:
                obstore.put(self._exact, key, payload, mode="create", attributes={MARK: mark}, use_multipart=False)
            except AlreadyExistsError as error:
                existing = self._marked(key)
                if existing is None:
                    # Two puts under way at once may both be refused, and neither be done.
                    raise ConnectionError("another put was under way") from error
                # In a store that keeps no marks, the bytes tell.
                return existing[0] == mark or (is_open and existing == (None, payload))
            except BaseError:
                is_open = True
                raise
            return True

        return self._patiently(attempt, key)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; it is no failure when some are not there."""
        for start in range(0, len(keys), KEYS_AT_ONCE):
            some = list(keys[start : start + KEYS_AT_ONCE])
            self._patiently(lambda some=some: self._or_absent(lambda: obstore.delete(self._client, some)), some[0])

    def _marked(self, key: str) -> tuple[str | None, bytes] | None:
        def attempt() -> tuple[str | None, bytes]:
            answer = obstore.get(self._client, key)
            return answer.attributes.get(MARK), bytes(answer.bytes())

        return self._or_absent(attempt)

    def _or_absent(self, call: Callable[[], T]) -> T | None:
        """Return what a call returns, None where it finds no object; a bucket that is not there is another matter."""
        try:
            return call()
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise
            return None

    def _patiently(self, attempt: Callable[[], T], key: str) -> T:
        return patiently(attempt, self.uri_of(key), self.timeout_s)


def _info(meta: Any) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], meta["last_modified"])


def _without_markers(objects: Sequence[ObjectInfo], folders: Collection[str]) -> list[ObjectInfo]:
    """Leave out the empty objects by which consoles and some tools mark folders."""
    return sorted((f for f in objects if f.size or f.key not in folders), key=lambda f: f.key)


def _parents(objects: Sequence[ObjectInfo], root: str) -> set[str]:
    """Return the folders between objects and `root`, below which they lie."""
    folders: set[str] = set()
    for info in objects:
        folder = info.key.rpartition("/")[0]
        while len(folder) > len(root) and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    return folders

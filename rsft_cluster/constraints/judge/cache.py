"""Earlier answers, by the digest of the question. The first answer to a question stays its answer."""

import asyncio
import json
from collections import OrderedDict
from typing import Protocol

from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.store import Store

MAX_ANSWERS = 50_000
"""Answers kept in memory; the least recently used ones go first."""


class Cache(Protocol):
    """A store of answers."""

    async def get(self, digest: str) -> str | None:
        """Return the answer, None if there is none."""
        ...

    async def put(self, digest: str, answer: str) -> str:
        """Keep an answer; return the one that is kept, which may be an earlier one."""
        ...


class MemoryCache:
    """Answers of this process."""

    def __init__(self) -> None:
        self._answers = OrderedDict[str, str]()

    async def get(self, digest: str) -> str | None:
        """Return the answer, None if there is none."""
        if digest in self._answers:
            self._answers.move_to_end(digest)
        return self._answers.get(digest)

    async def put(self, digest: str, answer: str) -> str:
        """Keep an answer; return the one that is kept."""
        kept = self._answers.setdefault(digest, answer)
        if len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)
        return kept


class FileCache:
    """A folder with one small JSON file an answer, which many processes may share: `ab/abcd....json`."""

    def __init__(self, uri: str) -> None:
        if "://" not in uri and not uri.startswith("/"):
            raise ConfigError(f"judge: cache is {uri!r}; give an absolute path or a URI, the same on every node")
        self._store = Store(uri)

    async def get(self, digest: str) -> str | None:
        """Return the answer, None if there is none; raises StoreError for a damaged file."""
        return await asyncio.to_thread(self._read, _path(digest))

    async def put(self, digest: str, answer: str) -> str:
        """Keep an answer; return the one that is kept."""
        return await asyncio.to_thread(self._create, _path(digest), answer)

    def _read(self, path: str) -> str | None:
        if not self._store.exists(path):
            return None
        try:
            answer = json.loads(self._store.read(path))["answer"]
        except (ValueError, LookupError, TypeError) as error:
            raise StoreError(f"{self._store.uri_of(path)}: damaged: holds no answer of a judge; delete it") from error
        return answer

    def _create(self, path: str, answer: str) -> str:
        if self._store.create(path, json.dumps({"answer": answer}).encode()):
            return answer
        return self._read(path) or answer


def _path(digest: str) -> str:
    return f"{digest[:2]}/{digest}.json"

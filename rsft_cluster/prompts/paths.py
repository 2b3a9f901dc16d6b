"""From `prompts.paths` to files: literal files, folders and globs, local or by URI, in sorted order.

Knows names only; nothing is opened here.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from rsft_cluster.config.uris import SCHEMES as STORES
from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.store import open_uri

JSONL = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
PARQUET = (".parquet",)
SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss")

_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A file to read, and its name in messages and in `source`."""

    name: str
    path: str
    filesystem: fs.FileSystem


def find_files(paths: Sequence[str]) -> list[PromptFile]:
    """Return the files that the paths name, each once, sorted by name.

    A folder gives all JSONL and Parquet files below it but for those under names that begin with `.` or `_`,
    which writers use for unfinished files. In a glob `*` stays within a folder and `**` does not.
    Raises ConfigError naming the path that gives nothing.
    """
    if not paths:
        raise ConfigError("prompts.paths is empty; name at least one JSONL or Parquet file, folder or glob")
    files = {file.name: file for path in paths for file in _expand(path)}
    return [files[name] for name in sorted(files)]


def _expand(pattern: str) -> list[PromptFile]:
    try:
        filesystem, prefix, base, tail = _locate(pattern)
        names = list(_names(filesystem, base, tail))
    except StoreError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"prompts.paths: {pattern} cannot be listed: {error}") from error
    usable = [name for name in names if name.lower().endswith(JSONL + PARQUET)]
    if not usable:
        raise ConfigError(f"prompts.paths: {pattern} {_complaint(names)}")
    return [PromptFile(prefix + name, name, filesystem) for name in usable]


def _complaint(names: Sequence[str]) -> str:
    kinds = ", ".join(JSONL + PARQUET)
    if names:
        return f"gives no file that can be read ({len(names)} others, like {names[0]}); expected {kinds}"
    return f"matches nothing; expected a file, folder or glob with files ending in {kinds}"


def _locate(pattern: str) -> tuple[fs.FileSystem, str, str, str]:
    """Return the file system, a prefix of its paths in names, a path, and the glob below that path."""
    scheme, separator, _ = pattern.partition("://")
    if not separator:
        path = str(Path(pattern).expanduser().absolute())
        base, tail = ("", path) if fs.LocalFileSystem().get_file_info(path).type else _split_glob(path)
        return fs.LocalFileSystem(), "", base or tail, tail if base else ""
    if scheme not in SCHEMES:
        raise ConfigError(f"prompts.paths: {pattern}: unknown scheme; known: {', '.join(SCHEMES)}")
    location, question, options = pattern.partition("?")
    base, tail = _split_glob(location)
    if question or scheme == "file" or scheme not in STORES:
        filesystem, path = fs.FileSystem.from_uri(base + question + options)
    else:
        filesystem, path = open_uri(unquote(base))
    return filesystem, "" if scheme == "file" else f"{scheme}://", path, unquote(tail)


def _split_glob(path: str) -> tuple[str, str]:
    """Cut a path before the first part that holds a wildcard."""
    wildcard = _GLOB.search(path)
    if not wildcard:
        return path, ""
    cut = path.rindex("/", 0, wildcard.start())
    return path[:cut] or "/", path[cut + 1 :]


def _names(filesystem: fs.FileSystem, base: str, tail: str) -> Iterator[str]:
    root = filesystem.get_file_info(base)
    if root.type == fs.FileType.File and not tail:
        yield base
    elif root.type == fs.FileType.Directory:
        deep = not tail or "/" in tail or "**" in tail
        for entry in filesystem.get_file_info(fs.FileSelector(base, recursive=deep)):
            parts = entry.path.removeprefix(base).strip("/").split("/")
            if entry.type == fs.FileType.File and _is_selected(parts, tail):
                yield entry.path


def _is_selected(parts: Sequence[str], tail: str) -> bool:
    if not tail:
        return not any(part.startswith((".", "_")) for part in parts)
    return _matches(parts, tail.split("/"))


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    hidden = bool(parts) and parts[0].startswith(".") and not pattern[0].startswith(".")
    return bool(parts) and not hidden and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])

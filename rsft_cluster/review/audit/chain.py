"""A chain of hashes over lines of JSON: no line can be changed, added or lost without all later hashes changing."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

START = "0" * 64
"""What the first line of the first round stands behind."""


def chained(lines: Iterable[Mapping[str, Any]], previous: str = START) -> Iterator[dict[str, Any]]:
    """Yield the lines with `prev` and `hash` added."""
    for line in lines:
        body = {**line, "prev": previous}
        previous = hash_of(body)
        yield {**body, "hash": previous}


def hash_of(line: Mapping[str, Any]) -> str:
    """Return the sha256 of a line's canonical JSON, its own hash left out."""
    body = {name: value for name, value in line.items() if name != "hash"}
    return hashlib.sha256(to_json(body).encode()).hexdigest()


def to_json(line: Mapping[str, Any]) -> str:
    """Return a line as canonical JSON: sorted keys, no spaces, floats as the shortest text that gives them back."""
    return json.dumps(line, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def broken(line: Mapping[str, Any], previous: str) -> str | None:
    """Return what is wrong with a line's place in the chain, None where nothing is."""
    if line.get("prev") != previous:
        return "does not follow on the line before: one was changed, added or lost"
    if line.get("hash") != hash_of(line):
        return "is not what was written: its hash is another"
    return None

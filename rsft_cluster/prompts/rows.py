"""The results of reading files: a `Row` of fields, or a `BadLine` with the reason why there is none.

`Refused` carries a reason from where it arises to where the line is known. No file format is known here.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

MAX_LINE_BYTES = 16 << 20
"""No prompt needs a longer line, and a file without line ends must not fill the memory."""

MAX_KEPT_BYTES = 4096
"""Bytes of a bad line that its record keeps; the digest covers all of it."""


class Refused(Exception):
    """A row cannot become a prompt; the message says why."""


class Row(NamedTuple):
    """One row of a source file."""

    line: int
    """Number of the line, from 1; for Parquet of the row."""
    byte_offset: int | None
    """Offset of the line in the uncompressed file; None for Parquet."""
    raw: bytes | None
    """The line without its line end; None for Parquet."""
    fields: Mapping[str, object]
    keys: Iterable[str]
    """Names of all fields of the row, for messages; `fields` may hold only the requested ones."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that cannot become a prompt: its place, the reason, and its beginning."""

    file: str
    line: int
    byte_offset: int | None
    reason: str
    sha256: str
    """Digest of the whole line without its line end."""
    content: str
    """Base64 of at most 4 KiB from the line's beginning."""

    @classmethod
    def of_bytes(cls, raw: bytes, *, file: str, line: int, byte_offset: int | None, reason: str) -> "BadLine":
        """Return the record of a line, given its bytes."""
        return cls(file, line, byte_offset, reason, hashlib.sha256(raw).hexdigest(), beginning(raw))

    @classmethod
    def of_row(cls, row: Row, *, file: str, reason: str) -> "BadLine":
        """Return the record of a row that was read; a Parquet row is kept as JSON."""
        raw = row.raw
        if raw is None:
            raw = json.dumps(row.fields, ensure_ascii=False).encode()
        return cls.of_bytes(raw, file=file, line=row.line, byte_offset=row.byte_offset, reason=reason)

    def to_json(self) -> str:
        """Return one line of ASCII JSON, without a line end."""
        return json.dumps(asdict(self), sort_keys=True)


def beginning(raw: bytes) -> str:
    """Return the part of a line that a `BadLine` keeps."""
    return base64.b64encode(raw[:MAX_KEPT_BYTES]).decode()


def shown(names: Iterable[str]) -> str:
    """Return names for a message: escaped, and few and short enough to read."""
    texts = [text if len(text) <= 40 else text[:37] + "..." for text in map(repr, names)]
    more = f" and {len(texts) - 20} more" if len(texts) > 20 else ""
    return ", ".join(texts[:20]) + more or "no keys"

"""A strict reader of JSON lines: bytes in, one `Row` or one `BadLine` for every line that is not empty.

Python's json silently accepts NaN, 1e999, the last of duplicate keys and lone surrogates; each of these would change a
prompt or fail much later, so each is refused here, with its reason.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

from rsft_cluster.prompts.rows import MAX_LINE_BYTES, BadLine, Refused, Row, beginning

_BOM = b"\xef\xbb\xbf"
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD]")


def read_jsonl(stream: BinaryIO, *, file: str) -> Iterator[Row | BadLine]:
    """Yield a row or a bad line for every line. A line ends with LF; a byte order mark may begin the file.

    Memory stays below a few `MAX_LINE_BYTES`, however long a line is.
    """
    offset = 0
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1 and line.startswith(_BOM):
            line = line[len(_BOM) :]
            offset = len(_BOM)
        start = offset
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            bad, num_bytes = _pass_over(stream, line, file=file, number=number, start=start)
            offset += num_bytes
            yield bad
            continue
        offset += len(line)
        raw = line.removesuffix(b"\n")
        if not raw.strip(b" \t\r"):
            continue
        try:
            fields = parse_object(raw)
        except Refused as refused:
            yield BadLine.of_bytes(raw, file=file, line=number, byte_offset=start, reason=str(refused))
        else:
            yield Row(number, start, raw, fields, fields)


def parse_object(raw: bytes) -> dict[str, object]:
    """Return the one JSON object that the bytes hold; raises Refused with the reason."""
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
        if _SURROGATE_ESCAPE.search(raw):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start} of the line") from error
    except UnicodeEncodeError as error:
        surrogate = ord(error.object[error.start])
        raise Refused(f"lone surrogate \\u{surrogate:04x}: half a character is no text") from error
    except json.JSONDecodeError as error:
        raise Refused(_explain(error)) from error
    except RecursionError as error:
        raise Refused("nested too deeply") from error
    except ValueError as error:
        # Python reads no integer of more than 4,300 digits.
        raise Refused(f"number out of range: {error}") from error
    if not isinstance(value, dict):
        raise Refused(f"expected a JSON object, found {kind(value)}")
    return value


def kind(value: object) -> str:
    """Return the type of a JSON value, in words."""
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    names = {type(None): "null", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def _pass_over(stream: BinaryIO, head: bytes, *, file: str, number: int, start: int) -> tuple[BadLine, int]:
    """Read to the end of an overlong line, keeping only its digest."""
    digest = hashlib.sha256()
    num_bytes = 0
    chunk = head
    while chunk:
        digest.update(chunk.removesuffix(b"\n"))
        num_bytes += len(chunk)
        chunk = b"" if chunk.endswith(b"\n") else stream.readline(1 << 20)
    reason = f"longer than {MAX_LINE_BYTES} bytes"
    return BadLine(file, number, start, reason, digest.hexdigest(), beginning(head)), num_bytes


def _explain(error: json.JSONDecodeError) -> str:
    if error.msg == "Extra data":
        return f"more than one JSON value: another begins at column {error.colno}"
    return f"not JSON: {error.msg.removesuffix(' at')} (column {error.colno})"


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Refused(f"key {twice[:80]!r} stands twice")
    return fields


def _constant(name: str) -> NoReturn:
    raise Refused(f"{name} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Refused(f"number out of range: {text[:80]}")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)

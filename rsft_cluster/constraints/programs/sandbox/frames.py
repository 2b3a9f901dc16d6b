"""Messages between a worker and its supervisor: JSON objects with a length before them, and open files beside them.

Both ends are trusted; no program in a sandbox reaches this socket.
"""

import json
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

_LENGTH = struct.Struct("!I")
MAX_FILES = 4


def send(connection: socket.socket, message: Mapping[str, Any], files: Sequence[int] = ()) -> None:
    """Send one message; bytes in it go as text, one character per byte."""
    body = json.dumps(message, default=_text).encode()
    socket.send_fds(connection, [_LENGTH.pack(len(body))], list(files))
    connection.sendall(body)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return the next message and the files that came with it; raises EOFError where the other end is gone."""
    head, files, _, _ = socket.recv_fds(connection, _LENGTH.size, MAX_FILES)
    head += _exactly(connection, _LENGTH.size - len(head))
    return json.loads(_exactly(connection, _LENGTH.unpack(head)[0])), files


def as_bytes(text: str) -> bytes:
    """Return what `send` was given as bytes."""
    return text.encode("latin-1")


def _text(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    raise TypeError(f"{type(value).__name__} is nothing that a message holds")


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            raise EOFError("the other end is gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)

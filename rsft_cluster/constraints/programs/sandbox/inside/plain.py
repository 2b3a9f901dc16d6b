"""Plain values, and how they cross the boundary of a sandbox: numbers, texts, collections of them, numbered handles.

No class of the program's own crosses, no `__eq__` and no code. Builtins and `os` only, so that a sandboxed interpreter
loads it at once.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # `typing` takes longer to load than the rest of an interpreter
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

MAX_VALUE_BYTES = 4 << 20
MAX_DEPTH = 100
REMOTE = "Remote"
"""The kind of a numbered handle that stands for what the receiver holds; any other is the sender's."""
READY = b"ready"
"""The message of the program's side before the program runs."""
REASON_CHARACTERS = 300


class NotPlainError(Exception):
    """A value that cannot cross the wall."""


def encode(value: object, hold: Callable[[object], int] | None = None, *, max_bytes: int = MAX_VALUE_BYTES) -> bytes:
    """Return plain data as bytes; `hold` numbers what is none, else NotPlainError is raised."""
    parts: list[bytes] = []
    _encode(value, parts, 0, hold)
    data = b"".join(parts)
    if len(data) > max_bytes:
        raise NotPlainError(f"a value of {len(data)} bytes, more than {max_bytes}")
    return data


def decode(data: bytes, resolve: Callable[[int, str], object] | None = None) -> Any:
    """Return what `encode` was given, whoever wrote the bytes; raises ValueError where they are none of its."""
    reader = _Reader(data, resolve)
    try:
        value = reader.value(0)
    except (TypeError, IndexError, UnicodeError, OverflowError) as error:
        raise ValueError(f"not an encoded value: {error}") from None
    if reader.at != len(data):
        raise ValueError("something follows the value")
    return value


def frames(data: bytes) -> Iterator[bytes]:
    """Yield the messages of a stream, leaving off one that is cut short."""
    at = 0
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        at += 4 + size
        if at > len(data):
            return
        yield data[at - size : at]


def _encode(value: Any, parts: list[bytes], depth: int, hold: Callable[[object], int] | None) -> None:
    if depth > MAX_DEPTH:
        raise NotPlainError("a value nested too deeply, or within itself")
    if (scalar := _scalar(value)) is not None:
        parts.append(scalar)
    elif isinstance(value, complex):
        parts.append(b"c")
        _encode(value.real, parts, depth, hold)
        _encode(value.imag, parts, depth, hold)
    elif isinstance(value, dict):
        parts.append(b"d%x;" % len(value))
        for key, item in value.items():
            _encode(key, parts, depth + 1, hold)
            _encode(item, parts, depth + 1, hold)
    elif hold is not None and isinstance(value, tuple) and isinstance(fields := getattr(value, "_fields", None), tuple):
        parts.append(b"n")
        _encode(tuple(map(str, fields)), parts, depth + 1, None)
        _encode(tuple(value), parts, depth + 1, hold)
    elif hold is not None and (name := _LIBRARY.get((type(value).__module__, type(value).__qualname__))):
        parts.append(b"x")
        _encode(name, parts, depth, None)
        _encode(_ARGUMENTS[name](value), parts, depth + 1, hold)
    elif isinstance(value, list | tuple | set | frozenset):
        kind = next(mark for mark, kind in _KINDS.items() if isinstance(value, kind))
        parts.append(b"%s%x;" % (kind, len(value)))
        for item in value:
            _encode(item, parts, depth + 1, hold)
    elif type(value).__module__ == "numpy":
        _encode(value.tolist(), parts, depth + 1, hold)
    elif hold is not None:
        parts.append(b"h")
        _encode(hold(value), parts, depth, None)
        _encode(_kind(value), parts, depth, None)
    else:
        raise NotPlainError(f"a value of type {type(value).__name__}, which is no plain data")


def _kind(value: object) -> str:
    """Return the name of a type, with its module where that is one of a library."""
    name, module = type(value).__name__, type(value).__module__
    return name if module in ("candidate", "__main__", "builtins", "tests") or name == REMOTE else f"{module}.{name}"


def _scalar(value: Any) -> bytes | None:
    if value is None or value is True or value is False:
        return b"N" if value is None else b"T" if value else b"F"
    if isinstance(value, int):
        return b"i%s;" % format(int(value), "x").encode()
    if isinstance(value, float):
        return b"f%s;" % float(value).hex().encode()
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        return b"s%x;%s" % (len(text), text)
    if isinstance(value, bytes | bytearray):
        return b"b%x;%s" % (len(value), bytes(value))
    return None


class Record(tuple):
    """A named tuple of the program's: its values, and names for them."""

    _fields: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name in self._fields:
            return self[self._fields.index(name)]
        raise AttributeError(name)

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=False))


_LIBRARY = {
    ("decimal", "Decimal"): "Decimal", ("fractions", "Fraction"): "Fraction", ("collections", "deque"): "deque",
    ("datetime", "date"): "date", ("datetime", "datetime"): "datetime", ("datetime", "timedelta"): "timedelta",
}  # fmt: skip
_ARGUMENTS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "Decimal": lambda value: (str(value),),
    "Fraction": lambda value: (value.numerator, value.denominator),
    "deque": lambda value: (list(value), value.maxlen),
    "date": lambda value: (value.year, value.month, value.day),
    "datetime": lambda v: (v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond),
    "timedelta": lambda value: (value.days, value.seconds, value.microseconds),
}
_MAX_LIBRARY_BYTES = 10_000


def _of_library(name: str, arguments: tuple[Any, ...]) -> object:
    """Return a value of the standard library, built here of plain arguments."""
    module = next((module for (module, _), known in _LIBRARY.items() if known == name), None)
    if module is None or (name != "deque" and len(repr(arguments)) > _MAX_LIBRARY_BYTES):
        raise ValueError("no such value of the standard library")
    return getattr(__import__(module), name)(*arguments)


_KINDS: dict[bytes, type] = {b"l": list, b"t": tuple, b"S": set, b"Z": frozenset}
_CONSTANTS = {b"N": None, b"T": True, b"F": False}
_NUMBERS: dict[bytes, Callable[[str], int | float]] = {b"i": lambda word: int(word, 16), b"f": float.fromhex}


class _Reader:
    """Reads values from bytes that anybody may have written."""

    def __init__(self, data: bytes, resolve: Callable[[int, str], object] | None) -> None:
        self.at = 0
        self._data = data
        self._resolve = resolve

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        mark = self._take(1)
        if mark in _CONSTANTS:
            return _CONSTANTS[mark]
        if mark in _NUMBERS:
            return _NUMBERS[mark](self._word())
        if mark in (b"s", b"b"):
            text = self._take(int(self._word(), 16))
            return text.decode("utf-8", "surrogatepass") if mark == b"s" else text
        return self._compound(mark, depth + 1)

    def _compound(self, mark: bytes, depth: int) -> Any:
        if mark == b"c":
            return complex(self.value(depth), self.value(depth))
        if mark == b"h" and self._resolve is not None:
            return self._resolve(self.value(depth), self.value(depth))
        if mark == b"n" and self._resolve is not None:
            fields, values = self.value(depth), self.value(depth)
            if not isinstance(fields, tuple) or not isinstance(values, tuple):
                raise ValueError("no named tuple")
            record = Record(values)
            record._fields = fields
            return record
        if mark == b"x" and self._resolve is not None:
            name, arguments = self.value(depth), self.value(depth)
            try:
                return _of_library(name, arguments)
            except (TypeError, ArithmeticError, AttributeError) as error:
                raise ValueError(f"no value of the standard library: {error}") from None
        if mark == b"d":
            return {self.value(depth): self.value(depth) for _ in range(self._count())}
        if mark in _KINDS:
            return _KINDS[mark]([self.value(depth) for _ in range(self._count())])
        raise ValueError(f"no value begins with {mark!r}")

    def _take(self, size: int) -> bytes:
        if not 0 <= size <= len(self._data) - self.at:
            raise ValueError("cut short")
        self.at += size
        return self._data[self.at - size : self.at]

    def _word(self) -> str:
        end = self._data.index(b";", self.at)
        word = self._take(end - self.at)
        self.at = end + 1
        return word.decode("ascii")

    def _count(self) -> int:
        count = int(self._word(), 16)
        if not 0 <= count <= len(self._data) - self.at:
            raise ValueError("cut short")
        return count


class Channel:
    """Messages over two pipes."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    def send(self, message: bytes) -> None:
        """Send one message."""
        left = memoryview(len(message).to_bytes(4, "big") + message)
        while left:
            left = left[os.write(self._outgoing, left) :]

    def receive(self) -> bytes:
        """Return the next message; raises EOFError where the other end is closed, ValueError for one too long."""
        size = int.from_bytes(self._exactly(4), "big")
        if size > MAX_VALUE_BYTES + 1024:
            raise ValueError(f"a message of {size} bytes")
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self._incoming, min(size, 1 << 16))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def shown(value: object) -> str:
    """Return a plain value in a line that is not too long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = "a very long number"
    return text if len(text) <= REASON_CHARACTERS else text[: REASON_CHARACTERS - 3] + "..."


def describe(error: BaseException) -> str:
    """Return an exception in a line, with the program's line that it comes from."""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<candidate>":
            line = trace.tb_lineno
        trace = trace.tb_next
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {message}"[:REASON_CHARACTERS] + (f" (line {line})" if line else "")


def silence() -> None:
    """Point the standard streams at nothing."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)

"""What runs inside a sandbox: the program's side, the tests' side, and the plain values between them.

`serve` runs a program and answers what the tests ask of it; `judge` runs the tests, in a sandbox of their own, where
the program's names stand for questions to the other side; `produce` runs a program once an input, or evaluates calls.
Expected values, assertions and verdicts never enter the process that the program runs in, and what leaves it is
decoded as numbers, texts and collections of them, or as a numbered handle: no class of the program's own, no `__eq__`
and no code crosses.

Compiled by `interpreter` and started without site packages: builtins, `os` and `sys` only, which load at once.
"""

from __future__ import annotations

import builtins
import os
import sys

TYPE_CHECKING = False  # `typing` takes longer to load than the rest of an interpreter
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, NoReturn

MAX_VALUE_BYTES = 4 << 20
MAX_DEPTH = 100
MAX_ITEMS = 100_000
MAX_OUTPUT_BYTES = 1 << 20
TASK = "task"
"""The file in the work folder that says what to do, as an encoded mapping."""
READY = b"ready"
REACHED = "__reached__"
"""What the tests call after each assertion."""
_REASON = 300
_MESSAGE = 10_000


class NotPlainError(Exception):
    """A value that cannot cross the wall."""


class CandidateError(Exception):
    """The program raised what is no builtin exception, or what would end the tests' side."""


class GoneError(BaseException):
    """The program's process has ended, or does not keep to the protocol. No test can catch it for long."""


class ArgumentError(Exception):
    """The tests pass something to the program that is no plain data."""


def encode(value: object, hold: Callable[[object], int] | None = None) -> bytes:
    """Return plain data as bytes; `hold` numbers what is none, else NotPlainError is raised."""
    parts: list[bytes] = []
    _encode(value, parts, 0, hold)
    data = b"".join(parts)
    if len(data) > MAX_VALUE_BYTES:
        raise NotPlainError(f"a value of {len(data)} bytes, more than {MAX_VALUE_BYTES}")
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
    if value is None or value is True or value is False:
        parts.append(b"N" if value is None else b"T" if value else b"F")
    elif isinstance(value, int):
        parts.append(b"i%s;" % format(int(value), "x").encode())
    elif isinstance(value, float):
        parts.append(b"f%s;" % float(value).hex().encode())
    elif isinstance(value, complex):
        parts.append(b"c")
        _encode(value.real, parts, depth, hold)
        _encode(value.imag, parts, depth, hold)
    elif isinstance(value, str | bytes | bytearray):
        text = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else bytes(value)
        parts.append(b"%s%x;%s" % (b"s" if isinstance(value, str) else b"b", len(text), text))
    elif isinstance(value, list | tuple | set | frozenset | dict):
        kind = next(mark for mark, kind in _KINDS.items() if isinstance(value, kind))
        parts.append(b"%s%x;" % (kind, len(value)))
        for item in value:
            _encode(item, parts, depth + 1, hold)
            if kind == b"d":
                _encode(value[item], parts, depth + 1, hold)
    elif type(value).__module__ == "numpy":
        _encode(value.tolist(), parts, depth + 1, hold)
    elif hold is not None:
        parts.append(b"h")
        _encode(hold(value), parts, depth, None)
        _encode(type(value).__name__, parts, depth, None)
    else:
        raise NotPlainError(f"a value of type {type(value).__name__}, which is no plain data")


_KINDS: dict[bytes, type] = {b"l": list, b"t": tuple, b"S": set, b"Z": frozenset, b"d": dict}
_CONSTANTS = {b"N": None, b"T": True, b"F": False}


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
        if mark == b"i":
            return int(self._word(), 16)
        if mark == b"f":
            return float.fromhex(self._word())
        if mark == b"c":
            return complex(self.value(depth + 1), self.value(depth + 1))
        if mark in (b"s", b"b"):
            text = self._take(int(self._word(), 16))
            return text.decode("utf-8", "surrogatepass") if mark == b"s" else text
        if mark == b"h" and self._resolve is not None:
            return self._resolve(self.value(depth + 1), self.value(depth + 1))
        if mark == b"d":
            return dict([(self.value(depth + 1), self.value(depth + 1)) for _ in range(self._count())])
        if mark in _KINDS:
            return _KINDS[mark]([self.value(depth + 1) for _ in range(self._count())])
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


def describe(error: BaseException) -> str:
    """Return an exception in a line, with the program's line that it comes from."""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<candidate>":
            line = trace.tb_lineno
        trace = trace.tb_next
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {said}"[:_REASON] + (f" (line {line})" if line else "")


def _load(program: str, name: str) -> dict[str, Any]:
    """Run a program as a module of its own; returns its names."""
    module = type(sys)(name)
    sys.modules[name] = module
    exec(compile(program, "<candidate>", "exec"), module.__dict__)  # noqa: S102 that is what the sandbox is for
    return module.__dict__


def serve(task: Mapping[str, Any]) -> None:
    """Run the program, then answer questions about its names and what they refer to, until nobody asks."""
    channel = Channel(os.dup(0), os.dup(1))
    _silence()
    channel.send(READY)
    held: list[Any] = []
    names: dict[str, Any] = {}
    broken = None
    try:
        names = _load(task["program"], "candidate")
    except BaseException as error:  # noqa: BLE001 whatever it raises is an answer
        broken = RuntimeError(f"the program does not run: {describe(error)}")
    while True:
        try:
            question = decode(channel.receive(), lambda number, _: held[number])
        except EOFError:
            return
        try:
            if broken:
                raise broken
            found = ("value", _answer(question, names, held))
            reply = encode(found, lambda value: held.append(value) or len(held) - 1)
        except BaseException as error:  # noqa: BLE001
            kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
            reply = encode(("error", kinds[0], str(error)[:_MESSAGE], str(error) if error is broken else describe(error)))
        channel.send(reply)


def _answer(question: tuple[Any, ...], names: Mapping[str, Any], held: list[Any]) -> object:
    verb, subject, *rest = question
    if verb == "get":
        if subject not in names:
            raise NameError(f"name {subject!r} is not defined")
        return names[subject]
    thing = held[subject]
    if verb == "call":
        return thing(*rest[0], **rest[1])
    if verb == "attribute":
        return getattr(thing, rest[0])
    if verb == "items":
        items = []
        for item in thing:
            items.append(item)
            if len(items) > MAX_ITEMS:
                raise NotPlainError(f"more than {MAX_ITEMS} items")
        return items
    verbs: dict[str, Callable[..., object]] = {
        "length": len,
        "truth": bool,
        "item": lambda of, key: of[key],
        "contains": lambda of, value: value in of,
    }
    return verbs[verb](thing, *rest)


class Remote:
    """Something of the program's that is no plain data: it can be called and looked into, never compared."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, ask: Callable[..., Any], number: int, kind: str) -> None:
        self._ask = ask
        self._number = number
        self._kind = kind

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return self._ask("call", self._number, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("attribute", self._number, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask("items", self._number))

    def __len__(self) -> int:
        return self._ask("length", self._number)

    def __bool__(self) -> bool:
        return self._ask("truth", self._number) is True

    def __getitem__(self, key: object) -> Any:
        return self._ask("item", self._number, key)

    def __contains__(self, value: object) -> bool:
        return self._ask("contains", self._number, value) is True

    def __eq__(self, other: object) -> bool:
        raise NotPlainError(f"a value of type {self._kind} cannot be compared: only plain data leaves the sandbox")

    def __repr__(self) -> str:
        return f"<{self._kind} of the program>"


class _Names(dict):
    """The globals of the tests: a name that they do not define is the program's, or a standard module."""

    def __init__(self, ask: Callable[..., Any], modules: frozenset[str]) -> None:
        super().__init__(__name__="tests", __builtins__=builtins)
        self._ask = ask
        self._modules = modules

    def __missing__(self, name: str) -> Any:
        if name in self._modules:
            return __import__(name)
        if hasattr(builtins, name) or name.startswith("__"):
            raise KeyError(name)
        found = self._ask("get", name)
        if isinstance(found, Remote):
            self[name] = found
        return found


class _Asking:
    """The tests' end of the channel to the program."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.num_questions = 0
        self.gone = False
        self.last = "nothing was called"

    def __call__(self, *question: object) -> Any:
        asked = encode(question, _number)
        self.num_questions += 1
        try:
            self._channel.send(asked)
            found = decode(self._channel.receive(), lambda number, kind: Remote(self, number, kind))
        except (EOFError, OSError, ValueError):
            self.gone = True
            raise GoneError from None
        match found:
            case ("value", value):
                if question[0] == "call":
                    self.last = f"the last call gave {value!r}"[:_REASON]
                return value
            case ("error", str(kind), str(message), str(description)):
                raise _raised(kind, message, description)
        self.gone = True
        raise GoneError


def _number(value: object) -> int:
    if isinstance(value, Remote):
        return value._number
    raise ArgumentError(f"the tests pass a value of type {type(value).__name__}; only plain data enters the sandbox")


def _raised(kind: str, message: str, description: str) -> Exception:
    """Return what the program raised, as far as it is an ordinary builtin exception; it must not steer the tests."""
    found = getattr(builtins, kind, None)
    ordinary = isinstance(found, type) and issubclass(found, Exception)
    if not ordinary or issubclass(found, StopIteration | StopAsyncIteration | UnicodeError | AssertionError):
        return CandidateError(description)
    error = found(message)
    error.__dict__["description"] = description
    return error


class _Later:
    """The program's entry point, asked for at its first use: its absence fails the tests and not their start."""

    def __init__(self, names: _Names, name: str) -> None:
        self._names = names
        self._name = name

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return self._names[self._name](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._names[self._name], name)


def judge(task: Mapping[str, Any]) -> None:
    """Run the tests' steps one by one, telling stderr of each: (number, status, reason).

    The status is `passed`, `failed`, `gone` after which nothing more is told, or `fault`: then the tests themselves are
    broken, whatever the program does. A step that is said to assert has to reach an assertion.
    """
    report = Channel(-1, os.dup(2))
    channel = Channel(os.dup(0), os.dup(1))
    _silence()
    try:
        if channel.receive() != READY:
            raise EOFError
    except (EOFError, ValueError):
        report.send(encode((-1, "fault", "the program's side did not start")))
        return
    ask = _Asking(channel)
    names = _Names(ask, frozenset(task["modules"]))
    if task["entry_point"]:
        names["candidate"] = _Later(names, task["entry_point"])
    reached: list[None] = []
    names[REACHED] = lambda: reached.append(None)
    for number, (source, asserts) in enumerate(task["steps"]):
        reached.clear()
        status, reason = _step(source, names, ask)
        if status == "passed" and asserts and not reached:
            status, reason = "failed", "no assertion was reached"
        if ask.gone:
            status, reason = "gone", ""
        report.send(encode((number, status, reason)))
        if ask.gone:
            return


def _step(source: str, names: _Names, ask: _Asking) -> tuple[str, str]:
    try:
        exec(compile(source, "<tests>", "exec"), names)  # noqa: S102
    except AssertionError as error:
        return "failed", f"{f'{error}; ' if str(error) else ''}{ask.last}"[:_REASON]
    except (CandidateError, NotPlainError) as error:
        return "failed", str(error)[:_REASON]
    except BaseException as error:  # noqa: BLE001 whatever they raise, they did not pass
        if description := error.__dict__.get("description"):
            return "failed", description
        fault = not ask.num_questions or isinstance(error, ArgumentError | ImportError)
        return "fault" if fault else "failed", describe(error)
    return "passed", ""


def produce(task: Mapping[str, Any]) -> None:
    """Tell stdout of each input or call, in order: ("value", what was printed or returned) or ("error", reason)."""
    report = Channel(-1, os.dup(1))
    _silence()
    report.send(READY)
    results = _printed(task) if "inputs" in task else _returned(task)
    for result in results:
        try:
            report.send(encode(result))
        except NotPlainError as error:
            report.send(encode(("error", str(error))))


def _printed(task: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for text in task["inputs"]:
        given, printed = (os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600) for name in ("stdin", "stdout"))
        os.write(given, text.encode("utf-8", "surrogatepass"))
        os.lseek(given, 0, os.SEEK_SET)
        os.dup2(given, 0)
        os.dup2(printed, 1)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: PTH123, SIM115
        sys.stdout = open(1, "w", encoding="utf-8", errors="surrogatepass", closefd=False)  # noqa: PTH123, SIM115
        problem = ""
        try:
            _load(task["program"], "__main__")
        except SystemExit as error:
            problem = "" if error.code in (None, 0) else f"exit status {error.code!r}"[:_REASON]
        except BaseException as error:  # noqa: BLE001 whatever it raises is an answer
            problem = describe(error)
        try:
            sys.stdout.flush()
        except BaseException as error:  # noqa: BLE001 the program may have put anything there
            problem = problem or describe(error)
        size = os.lseek(printed, 0, os.SEEK_END)
        if size > MAX_OUTPUT_BYTES:
            problem = problem or f"printed {size} bytes, more than {MAX_OUTPUT_BYTES}"
        yield ("error", problem) if problem else ("value", os.pread(printed, size, 0))
        os.close(given)
        os.close(printed)


def _returned(task: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    names: dict[str, Any] = {}
    broken = ""
    try:
        names = _load(task["program"], "candidate")
    except BaseException as error:  # noqa: BLE001
        broken = f"the program does not run: {describe(error)}"
    for call in task["calls"]:
        try:
            yield ("error", broken) if broken else ("value", eval(compile(call, "<call>", "eval"), names))  # noqa: S307
        except BaseException as error:  # noqa: BLE001
            yield "error", describe(error)


def _silence() -> None:
    """Point the standard streams at nothing."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)


def main() -> NoReturn:
    """Do the task that stands in the work folder; ends at once, whatever threads are left."""
    with open(TASK, "rb") as file:  # noqa: PTH123
        task = decode(file.read())
    sys.path.extend(task.get("packages", ()))
    verb = sys.argv.pop(1)
    {"serve": serve, "judge": judge, "produce": produce}[verb](task)
    os._exit(0)


if __name__ == "__main__":
    main()

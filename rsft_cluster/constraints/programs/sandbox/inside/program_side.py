"""The side of the program: `serve` answers what the tests ask of it, `produce` runs it once an input or call.

Expected values, assertions and verdicts never enter this process. What the program does to it, it does to its own
answers alone.
"""

from __future__ import annotations

import builtins
import os
import sys

from rsft_cluster.constraints.programs.sandbox.inside.plain import (
    READY,
    REASON_CHARACTERS,
    REMOTE,
    Channel,
    NotPlainError,
    decode,
    describe,
    encode,
    silence,
)

TYPE_CHECKING = False  # `typing` takes longer to load than the rest of an interpreter
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

MAX_ITEMS = 100_000
MAX_OUTPUT_BYTES = 1 << 20
_MESSAGE_CHARACTERS = 10_000


def _load(program: str, name: str) -> dict[str, Any]:
    """Run a program as a module of its own; returns its names."""
    module = type(sys)(name)
    sys.modules[name] = module
    builtins.exit = builtins.quit = _leave  # `site`, which is not loaded here, gives them to every script
    exec(compile(program, "<candidate>", "exec"), module.__dict__)  # noqa: S102 that is what the sandbox is for
    return module.__dict__


def _leave(code: object = None) -> None:
    raise SystemExit(code)


def serve(task: Mapping[str, Any]) -> None:
    """Run the program, then answer questions about its names and what they refer to, until nobody asks."""
    channel = Channel(os.dup(0), os.dup(1))
    silence()
    channel.send(READY)
    server = _Server(channel)
    try:
        server.names = _load(task["program"], "candidate")
    except BaseException as error:
        server.broken = RuntimeError(f"the program does not run: {describe(error)}")
    try:
        server.answer_until_told()
    except EOFError:
        return


class _Server:
    """Answers the tests' questions, and asks the tests for what their functions give."""

    def __init__(self, channel: Channel) -> None:
        self.names: dict[str, Any] = {}
        self.broken: BaseException | None = None
        self._channel = channel
        self._held: list[Any] = []

    def answer_until_told(self) -> tuple[Any, ...]:
        """Answer questions until a message is none, but what a function of the tests gave; returns that."""
        while True:
            message = decode(self._channel.receive(), self._resolved)
            if message[0] in ("gave", "raised"):
                return message
            self._channel.send(self._reply(message))

    def _reply(self, question: tuple[Any, ...]) -> bytes:
        try:
            if self.broken:
                raise self.broken
            given = question[2:] if question[0] == "call" else ()
            before = encode(given, self._hold_nothing) if given else b""
            value = _answer(question, self.names, self._held)
            changed = given if given and encode(given, self._hold_nothing) != before else None
            return encode(("value", value, changed), self._hold)
        except EOFError:
            raise
        except BaseException as error:
            kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
            said = str(error) if error is self.broken else describe(error)
            return encode(("error", kinds[0], str(error)[:_MESSAGE_CHARACTERS], said))

    def _hold(self, value: object) -> int:
        self._held.append(value)
        return len(self._held) - 1

    def _hold_nothing(self, _value: object) -> int:
        return 0

    def _resolved(self, number: int, kind: str) -> object:
        return self._held[number] if kind == REMOTE else self._function(number)

    def _function(self, number: int) -> Callable[..., Any]:
        def call(*args: object, **kwargs: object) -> Any:
            self._channel.send(encode(("function", number, args, kwargs), self._hold))
            told = self.answer_until_told()
            if told[0] == "gave":
                return told[1]
            found: Any = vars(builtins).get(told[1])
            is_error = isinstance(found, type) and issubclass(found, Exception) and not issubclass(found, UnicodeError)
            kind: Any = found if is_error else RuntimeError
            raise kind(told[2])

        return call


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


def produce(task: Mapping[str, Any]) -> None:
    """Tell stdout of each input or call, in order: ("value", what was printed or returned) or ("error", reason)."""
    report = Channel(-1, os.dup(1))
    silence()
    report.send(READY)
    results = _printed(task) if "inputs" in task else _returned(task)
    for result in results:
        try:
            report.send(encode(result))
        except NotPlainError as error:
            report.send(encode(("error", str(error))))


def _printed(task: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    known = _Modules()
    for text in task["inputs"]:
        given, printed = (os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600) for name in ("stdin", "stdout"))
        os.write(given, text.encode("utf-8", "surrogatepass"))
        os.lseek(given, 0, os.SEEK_SET)
        os.dup2(given, 0)
        os.dup2(printed, 1)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", errors="surrogatepass", closefd=False)  # noqa: SIM115
        problem = ""
        try:
            _load(task["program"], "__main__")
        except SystemExit as error:
            problem = "" if error.code in (None, 0) else f"exit status {error.code!r}"[:REASON_CHARACTERS]
        except BaseException as error:
            problem = describe(error)
        try:
            _end_threads()
            sys.stdout.flush()
        except BaseException as error:
            problem = problem or describe(error)
        size = os.lseek(printed, 0, os.SEEK_END)
        if size > MAX_OUTPUT_BYTES:
            problem = problem or f"printed {size} bytes, more than {MAX_OUTPUT_BYTES}"
        yield ("error", problem) if problem else ("value", os.pread(printed, size, 0))
        os.close(given)
        os.close(printed)
        known.restore()


class _Modules:
    """The modules that are loaded before a program runs, as they are: each input is a run of its own."""

    def __init__(self) -> None:
        self._names = {name: (module, dict(vars(module))) for name, module in sys.modules.items()}
        self._settings = sys.getrecursionlimit(), list(sys.path), list(sys.argv)

    def restore(self) -> None:
        """Forget what was loaded since, and undo what was changed in the others."""
        for name in [name for name in sys.modules if name not in self._names]:
            del sys.modules[name]
        streams = sys.stdin, sys.stdout
        for name, (module, content) in self._names.items():
            sys.modules[name] = module
            for added in [key for key in vars(module) if key not in content]:
                del vars(module)[added]
            vars(module).update(content)
        sys.stdin, sys.stdout = streams
        sys.setrecursionlimit(self._settings[0])
        sys.path[:], sys.argv[:] = self._settings[1:]


def _end_threads() -> None:
    """Wait for the program's threads, and run what it left for its end, as an interpreter does that ends."""
    threading, atexit = sys.modules.get("threading"), sys.modules.get("atexit")
    if threading:
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
    if atexit:
        atexit._run_exitfuncs()


def _returned(task: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    names: dict[str, Any] = {}
    broken = ""
    try:
        names = _load(task["program"], "candidate")
    except BaseException as error:
        broken = f"the program does not run: {describe(error)}"
    for call in task["calls"]:
        try:
            yield ("error", broken) if broken else ("value", eval(compile(call, "<call>", "eval"), names))  # noqa: S307
        except BaseException as error:
            yield "error", describe(error)


VERBS = {"serve": serve, "produce": produce}

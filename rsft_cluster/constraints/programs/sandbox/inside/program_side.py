"""The side of the program: `serve` answers what the tests ask of it, `produce` runs it once an input or call.

Expected values, assertions and verdicts never enter this process. What the program does to it, it does to its own
answers alone.
"""

from __future__ import annotations

import os
import sys

from rsft_cluster.constraints.programs.sandbox.inside.plain import (
    READY,
    REASON_CHARACTERS,
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
    exec(compile(program, "<candidate>", "exec"), module.__dict__)  # noqa: S102 that is what the sandbox is for
    return module.__dict__


def serve(task: Mapping[str, Any]) -> None:
    """Run the program, then answer questions about its names and what they refer to, until nobody asks."""
    channel = Channel(os.dup(0), os.dup(1))
    silence()
    channel.send(READY)
    held: list[Any] = []
    names: dict[str, Any] = {}
    broken = None
    try:
        names = _load(task["program"], "candidate")
    except BaseException as error:
        broken = RuntimeError(f"the program does not run: {describe(error)}")
    while True:
        try:
            question = decode(channel.receive(), lambda number, _: held[number])
        except EOFError:
            return
        try:
            if broken:
                raise broken
            result = ("value", _answer(question, names, held))
            reply = encode(result, lambda value: held.append(value) or len(held) - 1)
        except BaseException as error:
            kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
            reply = encode(
                (
                    "error",
                    kinds[0],
                    str(error)[:_MESSAGE_CHARACTERS],
                    str(error) if error is broken else describe(error),
                )
            )
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
            sys.stdout.flush()
        except BaseException as error:
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
    except BaseException as error:
        broken = f"the program does not run: {describe(error)}"
    for call in task["calls"]:
        try:
            yield ("error", broken) if broken else ("value", eval(compile(call, "<call>", "eval"), names))  # noqa: S307
        except BaseException as error:
            yield "error", describe(error)


VERBS = {"serve": serve, "produce": produce}

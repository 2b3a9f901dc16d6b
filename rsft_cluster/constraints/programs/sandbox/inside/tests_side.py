"""The side of the tests: they run here, the program's names standing for questions to its process."""

from __future__ import annotations

import builtins
import os

from rsft_cluster.constraints.programs.sandbox.inside.plain import (
    READY,
    REASON_CHARACTERS,
    Channel,
    NotPlainError,
    decode,
    describe,
    encode,
    shown,
    silence,
)

TYPE_CHECKING = False  # `typing` takes longer to load than the rest of an interpreter
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

REACHED = "__reached__"
"""The function that the tests call after each assertion."""


class CandidateError(Exception):
    """The program raised what is no builtin exception, or what would end the tests' side."""


class GoneError(BaseException):
    """The program's process has ended, or does not keep to the protocol. No test can catch it for long."""


class ArgumentError(Exception):
    """The tests pass something to the program that is no plain data."""


class Remote:
    """Something of the program's that is no plain data: it can be called and looked into, never compared.

    Its own attributes are named so that the program's are not hidden.
    """

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, ask: Callable[..., Any], number: int, kind: str) -> None:
        self._remote_ask = ask
        self._remote_number = number
        self._remote_kind = kind

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Call it in the program's process."""
        return self._remote_ask("call", self._remote_number, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._remote_ask("attribute", self._remote_number, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._remote_ask("items", self._remote_number))

    def __len__(self) -> int:
        return self._remote_ask("length", self._remote_number)

    def __bool__(self) -> bool:
        return self._remote_ask("truth", self._remote_number) is True

    def __getitem__(self, key: object) -> Any:
        return self._remote_ask("item", self._remote_number, key)

    def __contains__(self, value: object) -> bool:
        return self._remote_ask("contains", self._remote_number, value) is True

    def __eq__(self, other: object) -> bool:
        raise NotPlainError(
            f"a value of type {self._remote_kind} cannot be compared: only plain data leaves the sandbox"
        )

    def __repr__(self) -> str:
        return f"<{self._remote_kind} of the program>"


class _Names(dict):
    """The globals of the tests: a name that they do not define is the program's, or a standard module."""

    def __init__(self, ask: Callable[..., Any], modules: frozenset[str]) -> None:
        super().__init__(__name__="tests", __builtins__=builtins)
        self._ask = ask
        self._modules = modules

    def __missing__(self, name: str) -> Any:
        """Return what a name means that the tests have not given a value."""
        if name in self._modules:
            return __import__(name)
        if hasattr(builtins, name) or name.startswith("__"):
            raise KeyError(name)
        value = self._ask("get", name)
        if isinstance(value, Remote):
            self[name] = value
        return value


class _Asking:
    """The tests' end of the channel to the program."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.num_questions = 0
        self.gone = False
        self.calls: list[object] = []
        """The value of the last call, if there was one."""

    def __call__(self, *question: object) -> Any:
        request = encode(question, _number)
        self.num_questions += 1
        try:
            self._channel.send(request)
            answer = decode(self._channel.receive(), lambda number, kind: Remote(self, number, kind))
        except (EOFError, OSError, ValueError):
            self.gone = True
            raise GoneError from None
        match answer:
            case ("value", value):
                if question[0] == "call":
                    self.calls = [value]
                return value
            case ("error", str(kind), str(message), str(description)):
                raise _raised(kind, message, description)
        self.gone = True
        raise GoneError


def _number(value: object) -> int:
    if isinstance(value, Remote):
        return value._remote_number
    raise ArgumentError(f"the tests pass a value of type {type(value).__name__}; only plain data enters the sandbox")


def _raised(kind: str, message: str, description: str) -> Exception:
    """Return what the program raised, as far as it is an ordinary builtin exception; it must not steer the tests."""
    error_type = vars(builtins).get(kind)
    if not isinstance(error_type, type) or not issubclass(error_type, Exception):
        return CandidateError(description)
    if issubclass(error_type, StopIteration | StopAsyncIteration | UnicodeError | AssertionError | ExceptionGroup):
        return CandidateError(description)
    error: Exception = error_type(message)  # pyright: ignore[reportCallIssue] every other one takes a message
    error.__dict__["description"] = description
    return error


class _Later:
    """The program's entry point, fetched at its first use: its absence fails the tests and not their start."""

    def __init__(self, names: _Names, name: str) -> None:
        self._names = names
        self._name = name

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return self._names[self._name](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._names[self._name], name)


def judge(task: Mapping[str, Any]) -> None:
    """Run the tests' steps one by one, writing of each to stderr: (number, status, reason).

    The status is `passed`, `failed`, `gone` where the program's process is, or `fault`: then the tests themselves are
    broken, whatever the program does. A step that is said to assert has to reach an assertion. What stands after a
    step that is no test and did not pass is not run.
    """
    report = Channel(-1, os.dup(2))
    channel = Channel(os.dup(0), os.dup(1))
    silence()
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
    for number, (source, asserts, is_test) in enumerate(task["steps"]):
        reached.clear()
        status, reason = _step(source, names, ask)
        if status == "passed" and asserts and not reached:
            status, reason = "failed", "no assertion was reached"
        if ask.gone:
            status, reason = "gone", ""
        report.send(encode((number, status, reason)))
        if ask.gone or not (is_test or status == "passed"):
            return


def _step(source: str, names: _Names, ask: _Asking) -> tuple[str, str]:
    try:
        exec(compile(source, "<tests>", "exec"), names)  # noqa: S102
    except AssertionError as error:
        facts = [str(error)] if str(error) else []
        facts += [f"the last call gave {shown(value)}" for value in ask.calls]
        return "failed", "; ".join(facts) or "does not hold"
    except (CandidateError, NotPlainError) as error:
        return "failed", str(error)[:REASON_CHARACTERS]
    except BaseException as error:
        if description := error.__dict__.get("description"):
            return "failed", description
        fault = not ask.num_questions or isinstance(error, ArgumentError | ImportError)
        return "fault" if fault else "failed", describe(error)
    return "passed", ""


VERBS = {"judge": judge}

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


RUN_METHOD = "__run_method__"
"""What runs a test method of a class."""


class CandidateError(Exception):
    """The program raised what is no builtin exception, or what would end the tests' side."""


class GoneError(BaseException):
    """The program's process has ended, or does not keep to the protocol. No test can catch it for long."""


class CarriedOverError(Exception):
    """The program may be right, and what shows it cannot cross the wall."""


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
        if self is other:
            return True
        if "." in self._remote_kind:
            raise CarriedOverError(
                f"a value of type {self._remote_kind} cannot be compared: it does not leave the sandbox"
            )
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
        """What the last call gave, if there was one."""
        self.changed = False
        """Whether a call that gave something changed an argument, which stays as it was here."""
        self._functions: list[Callable[..., Any]] = []

    def __call__(self, *question: object) -> Any:
        asked = encode(question, self._number)
        self.num_questions += 1
        try:
            self._channel.send(asked)
            found = self._told()
        except (EOFError, OSError, ValueError):
            self.gone = True
            raise GoneError from None
        match found:
            case ("value", value, changed):
                if question[0] == "call":
                    self.calls = [value]
                    self._take_over(question[2:], changed, gave_nothing=value is None)
                return value
            case ("error", str(kind), str(message), str(description)):
                raise _raised(kind, message, description)
        self.gone = True
        raise GoneError

    def _told(self) -> tuple[Any, ...]:
        """Return the program's reply; what it asks of functions of the tests meanwhile is answered."""
        while True:
            found = decode(self._channel.receive(), lambda number, kind: Remote(self, number, kind))
            match found:
                case ("function", int(number), tuple(args), dict(kwargs)) if 0 <= number < len(self._functions):
                    self._channel.send(self._given(self._functions[number], args, kwargs))
                case _:
                    return found

    def _given(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        try:
            return encode(("gave", function(*args, **kwargs)), self._number)
        except Exception as error:
            return encode(("raised", type(error).__name__, str(error)[:REASON_CHARACTERS]))

    def _number(self, value: object) -> Any:
        if isinstance(value, Remote):
            return value._remote_number
        if isinstance(value, _Later) or callable(value):
            self._functions.append(value)
            return len(self._functions) - 1
        raise ArgumentError(
            f"the tests pass a value of type {type(value).__name__}; only plain data and functions enter the sandbox"
        )

    def _take_over(self, given: tuple[Any, ...], changed: Any, *, gave_nothing: bool) -> None:
        """Change arguments as a call changed its copies, where changing them is all that it did."""
        if changed is None:
            return
        if not gave_nothing:
            self.changed = True
            return
        for mine, theirs in zip((*given[0], *given[1].values()), (*changed[0], *changed[1].values()), strict=True):
            _update(mine, theirs)


def _update(mine: Any, theirs: Any) -> None:
    """Make a collection hold what its copy holds, the collections within it staying the same objects."""
    if isinstance(mine, list) and isinstance(theirs, list):
        for old, new in zip(mine, theirs, strict=False):
            _update(old, new)
        mine[:] = [mine[i] if i < len(mine) and _is_equal(mine[i], new) else new for i, new in enumerate(theirs)]
    elif isinstance(mine, dict) and isinstance(theirs, dict):
        kept = {key: mine[key] if key in mine and _is_equal(mine[key], theirs[key]) else theirs[key] for key in theirs}
        mine.clear()
        mine.update(kept)
    elif isinstance(mine, set) and isinstance(theirs, set):
        mine.clear()
        mine.update(theirs)
    elif isinstance(mine, bytearray) and isinstance(theirs, bytes):
        mine[:] = theirs


def _is_equal(mine: Any, theirs: Any) -> bool:
    try:
        return type(mine) is type(theirs) and mine == theirs
    except NotPlainError:
        return False


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
    names[RUN_METHOD] = lambda case, name: _run_method(case, name, reached)
    __import__("sys").modules.setdefault("pytest", _pytest(reached))
    for number, (source, asserts, is_test) in enumerate(task["steps"]):
        reached.clear()
        ask.changed = False
        status, reason = _step(source, names, ask)
        if status == "passed" and asserts and not reached:
            status, reason = "failed", "no assertion was reached"
        if ask.gone:
            status, reason = "gone", ""
        report.send(encode((number, status, reason)))
        if ask.gone or not (is_test or status == "passed"):
            return


def _run_method(case: Any, name: str, reached: list[None]) -> None:
    """Run a test method of a class as unittest or pytest would; its assert methods count as assertions."""
    is_unittest = hasattr(case, "setUpClass")
    instance = case(name) if is_unittest else case()
    if is_unittest:
        for assertion in [found for found in dir(instance) if found.startswith("assert")]:
            setattr(instance, assertion, _reaching(getattr(instance, assertion), reached))
        case.setUpClass()
    before, after = ("setUp", "tearDown") if is_unittest else ("setup_method", "teardown_method")
    getattr(instance, before, lambda: None)()
    try:
        getattr(instance, name)()
    finally:
        getattr(instance, after, lambda: None)()
        if is_unittest:
            instance.doCleanups()
            case.tearDownClass()


def _reaching(assertion: Callable[..., Any], reached: list[None]) -> Callable[..., Any]:
    def call(*args: object, **kwargs: object) -> Any:
        found = assertion(*args, **kwargs)
        reached.append(None)
        return found

    return call


class _Raises:
    """What `pytest.raises` gives."""

    def __init__(self, reached: list[None], kinds: Any, match: str | None = None) -> None:
        self._reached, self._kinds, self._match = reached, kinds, match
        self.value: BaseException | None = None

    def __enter__(self) -> _Raises:
        return self

    def __exit__(self, kind: Any, error: Any, _trace: object) -> bool:
        self._reached.append(None)
        if kind is None:
            raise AssertionError(f"did not raise {self._kinds}")
        self.value = error
        if not isinstance(error, self._kinds):
            return False
        if self._match is not None and not __import__("re").search(self._match, str(error)):
            raise AssertionError(f"{str(error)!r} does not match {self._match!r}")
        return True


class _Approximately:
    """What `pytest.approx` gives."""

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, expected: Any, rel: float = 1e-6, abs: float = 1e-12) -> None:
        self._expected, self._rel, self._abs = expected, rel, abs

    def __eq__(self, found: object) -> bool:
        return self._same(found, self._expected)

    def _same(self, found: Any, expected: Any) -> bool:
        if isinstance(expected, list | tuple):
            return len(found) == len(expected) and all(map(self._same, found, expected))
        if isinstance(expected, dict):
            return found.keys() == expected.keys() and all(self._same(found[key], expected[key]) for key in expected)
        return bool(builtins.abs(found - expected) <= max(self._abs, self._rel * builtins.abs(expected)))


def _pytest(reached: list[None]) -> Any:
    """Return what tests use of pytest, which is not installed in here."""

    def raises(kinds: Any, *call: Any, match: str | None = None) -> Any:
        context = _Raises(reached, kinds, match)
        if not call:
            return context
        with context:
            call[0](*call[1:])
        return context

    def parametrize(names: Any, values: Any, **_: object) -> Callable[..., Any]:
        keys = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)

        def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
            def each(**others: object) -> None:
                for value in values:
                    row = value if len(keys) > 1 else (value,)
                    function(**others, **dict(zip(keys, row, strict=True)))

            return each

        return decorated

    module = type(os)("pytest")
    module.raises, module.approx = raises, _Approximately
    module.mark = type(os)("mark")
    module.mark.parametrize = parametrize
    return module


def _step(source: str, names: _Names, ask: _Asking) -> tuple[str, str]:  # noqa: PLR0911 one ending each
    try:
        exec(compile(source, "<tests>", "exec"), names)  # noqa: S102
    except AssertionError as error:
        if ask.changed:
            return "fault", "the program changed an argument in place and gave something, which cannot be told together"
        said = [str(error)] if str(error) else []
        said += [f"the last call gave {shown(value)}" for value in ask.calls]
        return "failed", "; ".join(said) or "does not hold"
    except CarriedOverError as error:
        return "fault", str(error)
    except (CandidateError, NotPlainError) as error:
        return "failed", str(error)[:REASON_CHARACTERS]
    except BaseException as error:
        if description := error.__dict__.get("description"):
            return "failed", description
        fault = not ask.num_questions or isinstance(error, ArgumentError | ImportError)
        return "fault" if fault else "failed", describe(error)
    return "passed", ""


VERBS = {"judge": judge}

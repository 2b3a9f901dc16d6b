"""`Sandbox`: run an untrusted program, and know how it ended.

    with Sandbox() as sandbox:
        result = sandbox.run(Program(sandbox.python.argv("-c", "print(6 * 7)")))

It takes the strongest of the tiers that a hostile probe could not get out of (`escape_probe`); where there is none,
building raises ConfigError. `tiers` documents what each tier promises.
"""

import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from rsft_cluster.constraints.programs.sandbox import frames, supervisor
from rsft_cluster.constraints.programs.sandbox.interpreter import Interpreter, interpreter
from rsft_cluster.constraints.programs.sandbox.program import Limits, Program, ProgramResult
from rsft_cluster.errors import StageError

_ROOT = str(Path(__file__).resolve().parents[__name__.count(".")])
"""The folder that holds the package: an interpreter with -I -S finds nothing by itself."""
_SUPERVISOR = f"""
import sys
sys.path.insert(0, sys.argv[3])
import socket
from {supervisor.__name__} import serve
serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
"""
_STOP_WITHIN_S = 10.0
_LIMITS = Limits()


class Sandbox:
    """One tier, ready to run programs one after another; used by one thread.

    Holds a supervisor process, which ends with this object or with the process that made it. A program sees of the
    machine's files the system's libraries, the interpreter, and the folders `packages`, all read only.
    """

    def __init__(self, tier: str, *, python: str = sys.executable, packages: Sequence[str] = ()) -> None:
        self.tier = tier
        self.python: Interpreter = interpreter(python)
        self._readable = [*self.python.folders, *(str(Path(p).resolve()) for p in packages)]
        mine, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(  # noqa: S603 our own supervisor
                [sys.executable, "-I", "-S", "-c", _SUPERVISOR, str(theirs.fileno()), str(os.getpid()), _ROOT],
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        self._control = mine
        self._close = weakref.finalize(self, _stop, mine, process)

    def run(self, program: Program, limits: Limits = _LIMITS) -> ProgramResult:
        """Run a program to its end; raises StageError where the sandbox itself fails."""
        self.start(program, limits)
        return self.wait()

    def start(
        self,
        program: Program,
        limits: Limits = _LIMITS,
        *,
        stdin: int | None = None,
        stdout: int | None = None,
    ) -> None:
        """Start a program; open files given as `stdin` and `stdout` are used instead of its text and the result's."""
        request = {
            "tier": self.tier, "argv": program.argv, "files": dict(program.files), "stdin": program.stdin,
            "limits": asdict(limits), "readable": self._readable,
            "takes_stdin": stdin is not None, "takes_stdout": stdout is not None,
        }  # fmt: skip
        self._exchange(request, [file for file in (stdin, stdout) if file is not None])

    def wait(self) -> ProgramResult:
        """Return how the program that was started ended; blocks until then."""
        answer = self._exchange(None, ())
        return ProgramResult(**{**answer, **{name: frames.as_bytes(answer[name]) for name in ("stdout", "stderr")}})

    def cancel(self) -> None:
        """End the program that was started; `wait` tells of it."""
        try:
            frames.send(self._control, {"cancel": True})
        except OSError as error:
            raise StageError(f"the sandbox's supervisor is gone: {error}") from error

    def close(self) -> None:
        """End the supervisor and whatever it runs."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exchange(self, request: dict[str, Any] | None, files: Sequence[int]) -> dict[str, Any]:
        try:
            if request is not None:
                frames.send(self._control, request, files)
            answer, _ = frames.receive(self._control)
        except (OSError, EOFError) as error:
            raise StageError(f"the sandbox's supervisor is gone: {error}") from error
        if "problem" in answer:
            raise StageError(f"the {self.tier} sandbox cannot start the program: {answer['problem']}")
        return answer


def _stop(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    try:
        process.wait(_STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

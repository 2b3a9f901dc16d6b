"""The process that stands between a worker and its sandboxed programs: `serve` runs one after another.

Started by `sandbox.Sandbox` with a socket; ends, with everything below it, when the other end of that socket is
closed or the worker is gone. It is a subreaper: what a program starts, and however it hides, becomes its child at
the latest when the program ends, and a run is over only when no child is left. Standard library only: it is started
without site packages.
"""

import fcntl
import os
import selectors
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsft_cluster.constraints.programs.sandbox import frames, system_calls, tiers
from rsft_cluster.constraints.programs.sandbox.program import Limits, ProgramResult, Stopped

_TICK_S = 0.05
_IDLE_S = 1.0
_END_WITHIN_S = 5.0
_LOST_STATUS = 255
_PREFIX = "rsft-sandbox-"
_STALE_S = 60.0


def serve(control: socket.socket, worker_pid: int) -> None:
    """Answer requests until the worker is gone: `{"started"}` or `{"problem"}`, and later an outcome."""
    system_calls.become_subreaper()
    _sweep()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as base:
        held = os.open(base, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
        Path(base).chmod(0o711)  # a program's own user has to pass through
        for number, (request, files) in enumerate(_requests(control, worker_pid)):
            scratch = f"{base}/{number}"
            Path(scratch).mkdir(0o711)
            with suppress(BrokenPipeError, ConnectionResetError):  # the worker is gone, and nobody is left to answer
                _answer(request, files, scratch, control, worker_pid)
            shutil.rmtree(scratch)


def _sweep() -> None:
    """Remove the folders of supervisors that were killed, which nobody holds any more, and what is left of their runs.

    Bubblewrap that loses its parent while it sets itself up waits without end.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # somebody else's, in use, or swept by another at this moment
            if time.time() - path.stat().st_mtime > _STALE_S:
                held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _kill_tier_programs(f"{path}/".encode())
                shutil.rmtree(path)
                os.close(held)


def _kill_tier_programs(mark: bytes) -> None:
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = command.read_bytes()
            if words.startswith((b"bwrap\0", b"runsc")) and mark in words:
                os.kill(int(command.parent.name), signal.SIGKILL)


def _answer(
    request: Mapping[str, Any], files: list[int], scratch: str, control: socket.socket, worker_pid: int
) -> None:
    try:
        run = _start(request, files, scratch)
    except (OSError, ValueError) as error:
        frames.send(control, {"problem": f"{type(error).__name__}: {error}"})
        return
    finally:
        for file in files:
            os.close(file)
    with suppress(BrokenPipeError, ConnectionResetError):  # the run is watched to its end all the same
        frames.send(control, {"started": run.pid})
    frames.send(control, _watched(run, control, worker_pid))


@dataclass
class _Run:
    """A program that was started; what is read of it so far."""

    pid: int
    limits: Limits
    work: str
    launch: tiers.Launch
    began: float
    pipes: dict[str, int]
    output: dict[str, bytearray] = field(default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray()})
    status: int | None = None
    stopped: Stopped = ""


def _requests(control: socket.socket, worker_pid: int) -> Iterator[tuple[dict[str, Any], list[int]]]:
    control.settimeout(_IDLE_S)
    while os.getppid() == worker_pid:
        try:
            control.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            continue
        except ConnectionResetError:
            return
        control.settimeout(None)
        try:
            request, files = frames.receive(control)
        except (EOFError, ConnectionResetError):
            return
        if "cancel" not in request:  # a cancel that came when its run was already over
            yield request, files
        control.settimeout(_IDLE_S)


def _start(request: Mapping[str, Any], files: list[int], scratch: str) -> _Run:
    """Fork the program; returns when it has been executed, raises OSError where it could not be."""
    limits, work = Limits(**request["limits"]), f"{scratch}/work"
    Path(work).mkdir(0o710)  # our group: bubblewrap goes there before it changes the user
    spec = tiers.LaunchSpec(request["argv"], limits, work, scratch, request["readable"])
    launch = tiers.launch(request["tier"], spec)
    _write(work, request["files"], launch.owner)
    given = iter(files)
    stdin = next(given) if request["takes_stdin"] else _holding(frames.as_bytes(request["stdin"]))
    stdout = (None, next(given)) if request["takes_stdout"] else os.pipe()
    stderr, problem = os.pipe(), os.pipe()
    began = time.monotonic()
    supervisor, pid = os.getpid(), os.fork()
    if pid == 0:
        _become(launch, work, (stdin, stdout[1], stderr[1]), problem[1], supervisor)
    for file in {stdin, stdout[1], stderr[1], problem[1]} - set(files):
        os.close(file)
    pipes = {"stdout": stdout[0], "stderr": stderr[0]}
    run = _Run(pid, limits, work, launch, began, {name: pipe for name, pipe in pipes.items() if pipe is not None})
    with os.fdopen(problem[0], "rb") as stream:
        message = stream.read()
    if message:
        _end(run)
        for pipe in run.pipes.values():
            os.close(pipe)
        raise OSError(message.decode("utf-8", "replace"))
    return run


def _become(launch: tiers.Launch, work: str, streams: tuple[int, int, int], problem: int, supervisor: int) -> None:
    """Turn the forked process into the program; writes to `problem` what prevents it, and never returns."""
    try:
        os.setsid()
        for descriptor, stream in enumerate(streams):
            os.dup2(stream, descriptor)
        os.dup2(problem, 3, inheritable=False)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        os.chdir(work)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and what it executes would too
            signal.signal(number, signal.SIG_DFL)
        with suppress(OSError):  # the kernel's first choice, should the machine run out of memory
            Path("/proc/self/oom_score_adj").write_text("1000")
        launch.confine()
        if os.getppid() != supervisor:
            os._exit(127)
        os.execvpe(launch.argv[0], list(launch.argv), dict(launch.env))  # noqa: S606
    except BaseException as error:
        os.write(3, f"{type(error).__name__}: {error}".encode())
    os._exit(127)


def _write(work: str, files: Mapping[str, str], owner: int | None) -> None:
    for name, text in files.items():
        path = Path(work, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(frames.as_bytes(text))
    if owner is not None:
        for folder, _, names in os.walk(work):
            for path in (folder, *(f"{folder}/{name}" for name in names)):
                os.chown(path, owner, -1)


def _holding(text: bytes) -> int:
    """Return an open file in memory that holds a text, at its start."""
    file = os.memfd_create("stdin")
    with open(file, "wb", closefd=False) as stream:
        stream.write(text)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _watched(run: _Run, control: socket.socket, worker_pid: int) -> dict[str, Any]:
    """Read what the program writes until it ends or reaches a limit; returns the outcome as a message."""
    pidfd = os.pidfd_open(run.pid)
    deadline = run.began + run.limits.wall_s
    with selectors.DefaultSelector() as selector:
        for name, pipe in run.pipes.items():
            os.set_blocking(pipe, False)
            selector.register(pipe, selectors.EVENT_READ, name)
        selector.register(pidfd, selectors.EVENT_READ, "end")
        selector.register(control, selectors.EVENT_READ, "control")
        look_at = run.began + _TICK_S
        while not run.stopped:
            events = [key.data for key, _ in selector.select(max(0.0, min(look_at, deadline) - time.monotonic()))]
            for name in events:
                if name in run.pipes and not _read(run, name):
                    selector.unregister(run.pipes[name])
            if "end" in events:
                break
            now = time.monotonic()
            if "control" in events or os.getppid() != worker_pid:
                run.stopped = "cancelled"
            elif now >= deadline:
                run.stopped = "time"
            elif now >= look_at:
                run.stopped, look_at = run.stopped or _exceeded(run), now + _TICK_S
    os.close(pidfd)
    _end(run)
    for name, pipe in run.pipes.items():
        while _read(run, name):
            pass
        os.close(pipe)
    status = os.waitstatus_to_exitcode(run.status) if run.status is not None else _LOST_STATUS
    result = ProgramResult(
        128 - status if status < 0 else status, bytes(run.output["stdout"]), bytes(run.output["stderr"]),
        time.monotonic() - run.began, run.stopped,
    )  # fmt: skip
    return {name: getattr(result, name) for name in ProgramResult.__slots__}


def _read(run: _Run, name: str) -> bool:
    """Take what a pipe has, at most what the limit leaves; False where nothing more is to come."""
    held = run.output[name]
    room = run.limits.output_bytes - len(held)
    try:
        part = os.read(run.pipes[name], min(room + 1, 1 << 16))
    except BlockingIOError:
        return False
    held += part[:room]
    if len(part) > room:
        run.stopped = run.stopped or "output"
        return False
    return bool(part)


def _exceeded(run: _Run) -> Stopped:
    if run.launch.counted and _num_threads(run.pid) > run.limits.num_tasks:
        return "tasks"
    return "disk" if _is_too_much(run.work, run.limits) else ""


def _num_threads(pid: int) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
    except FileNotFoundError:
        return 0


def _is_too_much(work: str, limits: Limits) -> bool:
    """Return whether the work folder holds more than it may; stops looking as soon as it does."""
    num_files, num_bytes, folders = 0, 0, [work]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    num_files += 1
                    info = entry.stat(follow_symlinks=False)
                    num_bytes += info.st_blocks * 512
                    if num_files > limits.num_files or num_bytes > limits.file_bytes:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except OSError:  # the program removed or barred it meanwhile; it is looked at again at the next tick
            continue
    return False


def _end(run: _Run) -> None:
    """Kill the program and whatever it left, until no child is left; raises StageError's cause where one stays."""
    _kill(run.pid)
    if run.launch.uid is not None and run.limits.may_fork:
        _kill_all_of(run.launch.uid)
    deadline = time.monotonic() + _END_WITHIN_S
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == run.pid:
            run.status = status
        elif pid == 0:
            if time.monotonic() > deadline:
                raise TimeoutError("a process of the sandbox cannot be killed")
            for child in _children():
                _kill(child)
            time.sleep(0.001)


def _kill(pid: int) -> None:
    """Kill a child that was not waited for; its number can be nobody else's."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _kill_all_of(uid: int) -> None:
    """Kill every process of a user at one stroke, which no race of forks outruns."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(uid, uid, uid)
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def _children() -> list[int]:
    """Return the processes whose parent this is, orphans that were adopted among them."""
    me, pids = os.getpid(), []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parent = int(stat.read_bytes().rsplit(b")", 1)[1].split()[1])
            if parent == me:
                pids.append(int(stat.parent.name))
    return pids

"""Programs for the sandbox, their limits, and how they ended. Plain records, standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

Stopped = Literal["", "time", "output", "tasks", "disk", "cancelled"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one program. Whatever reaches a limit gets an error from the kernel, or is killed."""

    wall_s: float = 10.0
    cpu_s: int = 10
    """CPU time of each process; the kernel kills it."""
    memory_bytes: int = 512 << 20
    """Address space of each process."""
    may_fork: bool = False
    """True if it may start processes; threads it may always start."""
    num_tasks: int = 32
    """Threads and processes together."""
    file_bytes: int = 16 << 20
    """Size of one file, and of the work folder; the folder is looked at 20 times a second."""
    num_files: int = 1000
    """Files in the work folder."""
    num_open_files: int = 64
    output_bytes: int = 1 << 20
    """Size of stdout, and of stderr; more ends the program."""

    def __post_init__(self) -> None:
        for name in ("wall_s", "cpu_s", "memory_bytes", "num_tasks", "file_bytes", "num_files", "num_open_files"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is positive, not {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class Program:
    """A command, and the files of its work folder, in which it starts."""

    argv: tuple[str, ...]
    """The first is an absolute path: of the interpreter, or of something below /usr."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Names relative to the work folder."""
    stdin: bytes = b""

    def __post_init__(self) -> None:
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise ValueError(f"a file's name is relative to the work folder, not {name!r}")


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """How a program ended."""

    exit_status: int
    """As in a shell: 128 + n where signal n ended it."""
    stdout: bytes
    stderr: bytes
    duration_s: float
    stopped: Stopped = ""
    """The limit for which the sandbox ended it; empty where it ended by itself or by the kernel."""

    @property
    def timed_out(self) -> bool:
        """True if wall time or CPU time was used up."""
        return self.stopped == "time" or self.exit_status == 128 + 24

"""The tiers that confine programs on this machine, probed by trying to get out of them.

A tier counts only where a small hostile program, run in it, reached none of the targets set up for it: a file, a
folder to write to, TCP, UDP and Unix sockets, another process and its environment. Versions do not count.
"""

import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from select import select

from rsft_cluster.constraints.programs.sandbox import tiers
from rsft_cluster.constraints.programs.sandbox.program import Limits, Program
from rsft_cluster.constraints.programs.sandbox.sandbox import Sandbox
from rsft_cluster.errors import ConfigError, StageError

LIMITS = Limits(wall_s=20.0, cpu_s=10)
_RAN = "ran to its end"
_HOSTILE = """
import os, socket, sys
folder, tcp, udp, victim = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
def attempt(name, act):
    try:
        act()
    except (OSError, MemoryError):
        return
    if name:
        print(name)
def connect(family, kind, address):
    with socket.socket(family, kind) as made:
        made.settimeout(2)
        made.connect(address)
        made.send(b"out")
attempt("reads a file of this machine", lambda: open(folder + "/canary").read())
attempt("", lambda: open(folder + "/written", "w").close())
attempt("reads the environment of a process", lambda: open(f"/proc/{victim}/environ").read())
attempt("", lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", tcp)))
attempt("", lambda: connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", udp)))
attempt("", lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, folder + "/socket"))
for name in set(os.environ) - {"PATH", "LANG", "LC_CTYPE", "HOME", "TMPDIR", "PWD", "PYTHONHASHSEED"}:
    print("sees the environment variable", name)
for number in range(3, 40):
    attempt(f"holds the open file {number}", lambda: os.fstat(number))
print("ran to its end", flush=True)
os.kill(victim, 9)
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of probing one tier."""

    tier: str
    problem: str
    """Why it cannot be used; empty where it holds."""

    @property
    def holds(self) -> bool:
        """True if programs may be run in it."""
        return not self.problem


def survey(python: str = sys.executable) -> list[Probe]:
    """Return the result of every tier, strongest first."""
    return [probed(tier, python) for tier in tiers.TIERS]


def choose(tier: str = "auto", python: str = sys.executable) -> str:
    """Return the strongest tier that holds, or the named one if it does; raises ConfigError where there is none."""
    names = tiers.TIERS if tier == "auto" else (tier,)
    problems = []
    for name in names:
        probe = probed(name, python)
        if probe.holds:
            return name
        problems.append(f"{name}: {probe.problem}")
    raise ConfigError(f"code is run in a sandbox only, and this machine gives none. {'; '.join(problems)}")


@cache
def probed(tier: str, python: str = sys.executable) -> Probe:
    """Run the hostile program in a tier, once per process."""
    if problem := tiers.absent(tier):
        return Probe(tier, problem)
    with _targets() as (arguments, reached), Sandbox(tier, python=python) as sandbox:
        try:
            result = sandbox.run(Program(sandbox.python.argv("-c", _HOSTILE, *arguments)), LIMITS)
        except StageError as error:
            return Probe(tier, str(error))
        lines = result.stdout.decode("utf-8", "replace").splitlines()
        if _RAN not in lines:
            end = result.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            return Probe(tier, f"a program does not run in it: {(end or [f'exit status {result.exit_status}'])[0]}")
        through = [line for line in lines if line != _RAN] + reached()
        return Probe(tier, f"a hostile program got out of it: {', '.join(through)}" if through else "")


@contextmanager
def _targets() -> Iterator[tuple[list[str], Callable[[], list[str]]]]:
    """Set up targets for a hostile program; yield its arguments, and a function that lists the targets reached."""
    with (
        tempfile.TemporaryDirectory(prefix="rsft-probe-") as folder,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as local,
        subprocess.Popen(["/bin/sleep", "60"]) as victim,
    ):
        Path(folder).chmod(0o777)  # readable for whatever gets here at all
        Path(folder, "canary").write_text("not for the sandbox")
        udp.bind(("127.0.0.1", 0))
        local.bind(f"{folder}/socket")
        local.listen()
        Path(folder, "socket").chmod(0o777)
        before = sorted(path.name for path in Path(folder).iterdir())

        def reached() -> list[str]:
            listeners = {"TCP": tcp, "UDP": udp, "a Unix socket": local}
            through = [f"reaches {name}" for name, listener in listeners.items() if select([listener], [], [], 0)[0]]
            if sorted(path.name for path in Path(folder).iterdir()) != before:
                through.append("writes a file")
            if victim.poll() is not None:
                through.append("kills a process")
            return through

        try:
            ports = (str(listener.getsockname()[1]) for listener in (tcp, udp))
            yield [folder, *ports, str(victim.pid)], reached
        finally:
            victim.kill()

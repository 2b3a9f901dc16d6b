"""The sandbox, by what tries to get out of it, on every tier that this machine gives.

Adversarially checked: nothing outside is reached, nothing outlives the run, every limit holds and is told, and each
layer is needed: with it taken away the same program gets through.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from select import select

import pytest
from payloads import GRANTED_BY_A_KERNEL_OF_ITS_OWN, LIMITS, PAYLOADS, Payload

from rsft_cluster.constraints.programs.sandbox import escape_probe, tiers
from rsft_cluster.constraints.programs.sandbox import sandbox as sandbox_module
from rsft_cluster.constraints.programs.sandbox.interpreter import interpreter
from rsft_cluster.constraints.programs.sandbox.program import Limits, Program, ProgramResult
from rsft_cluster.constraints.programs.sandbox.sandbox import Sandbox
from rsft_cluster.errors import ConfigError, StageError

MARKER = f"rsft-payload-{os.getpid()}"
FOUND = {found.tier: found for found in escape_probe.survey()}
HOLDING = [tier for tier, found in FOUND.items() if found.holds]


@pytest.fixture(scope="module", params=tiers.TIERS)
def sandbox(request) -> Iterator[Sandbox]:
    if request.param not in HOLDING:
        pytest.skip(f"no {request.param} here: {FOUND[request.param].problem}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RSFT_CANARY", "secret")
        with Sandbox(request.param) as made:
            yield made


def test_a_tier_that_does_not_hold_is_refused_for_what_the_machine_lacks():
    assert not [tier for tier, found in FOUND.items() if "supervisor is gone" in found.problem]


@dataclass
class World:
    """What stands ready to be reached."""

    folder: Path
    listeners: dict[str, socket.socket]
    victim: subprocess.Popen[bytes]

    def places(self, sandbox: Sandbox) -> dict[str, object]:
        return {
            "folder": self.folder,
            "tcp": self.listeners["tcp"].getsockname()[1],
            "udp": self.listeners["udp"].getsockname()[1],
            "abstract": self.listeners["abstract"].getsockname()[1:].decode(),
            "free": 0,
            "victim": self.victim.pid,
            "parent": os.getpid(),
            "marker": MARKER,
            "shared": sandbox.tier == tiers.LANDLOCK,
        }

    def check(self) -> None:
        """Assert that nothing was reached and nothing is left."""
        assert self.victim.poll() is None
        assert "State:\tT" not in Path(f"/proc/{self.victim.pid}/status").read_text()
        assert os.getpriority(os.PRIO_PROCESS, self.victim.pid) == os.getpriority(os.PRIO_PROCESS, 0)
        assert sorted(p.name for p in self.folder.iterdir()) == ["canary", "datagrams", "socket"]
        canary = self.folder / "canary"
        assert (canary.read_text(), canary.stat().st_mode & 0o777, canary.stat().st_mtime) == ("secret", 0o666, 1e9)
        for name, listener in self.listeners.items():
            assert not select([listener], [], [], 0)[0], f"{name} was reached"
        assert not Path("/dev/shm/made").exists()
        assert not left()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    for above in (folder, *folder.parents[:2]):  # whoever gets here at all shall be let in
        above.chmod(0o777)
    (folder / "canary").write_text("secret")
    (folder / "canary").chmod(0o666)
    os.utime(folder / "canary", (1e9, 1e9))
    listeners = {
        "tcp": socket.create_server(("127.0.0.1", 0)),
        "udp": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "socket": socket.socket(socket.AF_UNIX),
        "datagrams": socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        "abstract": socket.socket(socket.AF_UNIX),
    }
    listeners["udp"].bind(("127.0.0.1", 0))
    for name in ("socket", "datagrams"):
        listeners[name].bind(str(folder / name))
        (folder / name).chmod(0o777)
    listeners["abstract"].bind(f"\0{MARKER}")
    for name in ("socket", "abstract"):
        listeners[name].listen()
    for listener in listeners.values():
        listener.setblocking(False)
    victim = subprocess.Popen(["/bin/sleep", "600"])
    yield World(folder, listeners, victim)
    victim.kill()
    victim.wait()
    for listener in listeners.values():
        listener.close()


ORPHANS_END_WITHIN_S = 2.0
"""A neighbour's programs whose supervisor was just killed have nobody above them until they end too."""


def left() -> list[str]:
    """What is alive of this process's sandboxed programs, whatever else sandboxes programs on the machine.

    Ours is what bears the marker or stands below this process. A sandbox's user with nobody but sandboxed programs
    above it is an orphan, whose it is cannot be told: it counts unless it ends by itself.
    """
    deadline = time.monotonic() + ORPHANS_END_WITHIN_S
    while True:
        ours, orphans = sandboxed()
        if ours or not orphans or time.monotonic() > deadline:
            return [*ours, *orphans]
        time.sleep(0.02)


def sandboxed() -> tuple[list[str], list[str]]:
    """This process's sandboxed programs, and those that stand below nobody."""
    ours, orphans = [], []
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            uid = user_of(int(status.parent.name))
            command = (status.parent / "cmdline").read_bytes()
            is_marked = MARKER.encode() in command
            is_container = command.startswith(b"runsc") and b"/rsft-sandbox-" in command
            if is_marked or is_container or uid >= tiers._FIRST_UID:
                line = f"{status.parent.name} {uid} {command!r}"
                above = above_of(int(status.parent.name))
                if is_marked or os.getpid() in above:
                    ours.append(line)
                elif all(user_of(pid) >= tiers._FIRST_UID for pid in above):
                    orphans.append(line)
    return ours, orphans


def above_of(pid: int) -> list[int]:
    """The processes above one, the first of the machine left out."""
    above = []
    while (pid := int(field_of(pid, "PPid"))) > 1:
        above.append(pid)
    return above


def user_of(pid: int) -> int:
    return int(field_of(pid, "Uid").split()[0])


def field_of(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/status").read_text().split(f"{name}:")[1].split("\n")[0]


def run(sandbox: Sandbox, payload: Payload, places: dict[str, object]) -> ProgramResult:
    code = payload.code.format(**places)
    return sandbox.run(Program(sandbox.python.argv("-c", code, MARKER)), payload.limits)


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_hostile_program_gets_nothing_and_leaves_nothing(sandbox, world, name) -> None:
    payload = PAYLOADS[name]
    if sandbox.tier == tiers.GVISOR and name in GRANTED_BY_A_KERNEL_OF_ITS_OWN:
        pytest.skip("the kernel that grants this is the program's alone")
    if payload.limits.may_fork and sandbox.tier == tiers.LANDLOCK and os.geteuid() != 0:
        pytest.skip("without root this tier starts no processes")
    outcome = run(sandbox, payload, world.places(sandbox))
    payload.check(outcome)
    world.check()
    assert outcome.duration_s < payload.limits.wall_s + 2


def test_an_honest_program_has_what_it_needs(sandbox) -> None:
    code = """
import asyncio, dataclasses, json, os, random, re, sys, tempfile, threading
with open("here.txt", "w") as file: file.write("\\u5e73\\u5747 \\U0001f600")
print(open("here.txt").read(), sys.stdin.read())
thread = threading.Thread(target=lambda: print("thread")); thread.start(); thread.join()
async def later(): return 7
print(asyncio.run(later()), os.path.exists(tempfile.mkstemp()[1]), len(os.urandom(8)))
"""
    outcome = sandbox.run(Program(sandbox.python.argv("-c", code), stdin="\u516c\u5e73".encode()))
    assert (outcome.exit_status, outcome.stderr, outcome.stopped) == (0, b"", "")
    assert outcome.stdout.decode() == "\u5e73\u5747 \U0001f600 \u516c\u5e73\nthread\n7 True 8\n"


def test_files_stand_in_the_work_folder_and_are_gone_the_next_time(sandbox) -> None:
    code = "import os; print(sorted(os.listdir('.'))); open('left', 'w').write('x'); print(open('in/a').read())"
    for _ in range(2):
        outcome = sandbox.run(Program(sandbox.python.argv("-c", code), files={"in/a": b"text"}))
        assert outcome.stdout == b"['in']\ntext\n", outcome
    with pytest.raises(ValueError, match="relative"):
        Program(("/bin/true",), files={"../a": b""})


def test_a_program_is_given_the_packages_that_are_named_alone(sandbox, tmp_path) -> None:
    (tmp_path / "greeting.py").write_text("WORD = 'hello'")
    tmp_path.chmod(0o755)
    code = "import sys; sys.path.append(sys.argv[1]); import greeting; print(greeting.WORD)"
    assert sandbox.run(Program(sandbox.python.argv("-c", code, str(tmp_path)))).exit_status == 1
    with Sandbox(sandbox.tier, packages=[str(tmp_path)]) as given:
        assert given.run(Program(given.python.argv("-c", code, str(tmp_path)))).stdout == b"hello\n"


def test_output_is_kept_up_to_the_limit(sandbox) -> None:
    limits = Limits(output_bytes=1000)
    outcome = sandbox.run(Program(sandbox.python.argv("-c", "print('x' * 999)")), limits)
    assert (outcome.stopped, len(outcome.stdout)) == ("", 1000)
    outcome = sandbox.run(Program(sandbox.python.argv("-c", "print('x' * 1000)")), limits)
    assert (outcome.stopped, len(outcome.stdout)) == ("output", 1000)


@pytest.mark.skipif(tiers.LANDLOCK not in HOLDING, reason="the other tiers' own programs start")
def test_what_cannot_be_started_is_an_error_and_no_outcome() -> None:
    with Sandbox(tiers.LANDLOCK) as sandbox:
        with pytest.raises(StageError, match="cannot start"):
            sandbox.run(Program(("/usr/bin/there-is-no-such-program",)))
        assert sandbox.run(Program(sandbox.python.argv("-c", "print(1)"))).stdout == b"1\n"


NEIGHBOUR = """
import sys
from rsft_cluster.constraints.programs.sandbox.sandbox import *
with Sandbox(sys.argv[1]) as sandbox:
    sandbox.start(Program(sandbox.python.argv("-c", "import time; time.sleep(60)")))
    print("started", flush=True)
    sandbox.wait()
"""


def test_programs_that_a_neighbour_sandboxes_are_not_taken_for_what_is_left(sandbox) -> None:
    # Once below nobody of ours, as in another process of tests.
    argv = [sys.executable, "-c", NEIGHBOUR, sandbox.tier]
    code = f"import subprocess; p = subprocess.Popen({argv!r}); print(p.pid, flush=True)"
    start = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert start.stdout is not None
    neighbour = int(start.stdout.readline())
    try:
        assert start.stdout.readline() == "started\n"
        start.wait()
        assert os.getpid() not in above_of(neighbour)
        assert not left()
        sandbox.start(Program(sandbox.python.argv("-c", "import time; time.sleep(60)")))
        deadline = time.monotonic() + 10
        while not left():  # until it has become another user
            assert time.monotonic() < deadline
        sandbox.cancel()
        sandbox.wait()
        assert not left()
    finally:
        start.stdout.close()
        os.kill(neighbour, signal.SIGKILL)


def test_a_program_that_is_cancelled_is_over_at_once(sandbox) -> None:
    sandbox.start(Program(sandbox.python.argv("-c", "import time; time.sleep(60)", MARKER)))
    sandbox.cancel()
    assert sandbox.wait().stopped == "cancelled"
    assert not left()


@pytest.mark.parametrize("how", ["worker", "supervisor"])
def test_a_program_dies_with_its_worker_and_with_its_supervisor(sandbox, how) -> None:
    script = (
        "import sys, time; from rsft_cluster.constraints.programs.sandbox.sandbox import *\n"
        "s = Sandbox(sys.argv[1]); s.start(Program(s.python.argv('-c', 'import time; time.sleep(60)', sys.argv[2])))\n"
        "print(open('/proc/self/task/%d/children' % __import__('os').getpid()).read(), flush=True); time.sleep(60)"
    )
    worker = subprocess.Popen([sys.executable, "-c", script, sandbox.tier, MARKER], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    try:
        supervisor = int(worker.stdout.readline().split()[0])
        running = (f"b'{sandbox.python.executable}", "b'runsc-sandbox")
        while not any(line.split(" ", 2)[2].startswith(running) for line in others(worker.pid)):
            time.sleep(0.02)
        os.kill(worker.pid if how == "worker" else supervisor, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while others(worker.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not others(worker.pid)
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()
        for line in left():
            os.kill(int(line.split()[0]), signal.SIGKILL)


def others(pid: int) -> list[str]:
    return [line for line in left() if not line.startswith(f"{pid} ")]


def test_what_a_killed_supervisor_left_is_removed_by_the_next(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    stale = tmp_path / "rsft-sandbox-stale"
    (stale / "0" / "work").mkdir(parents=True)
    with subprocess.Popen(["bwrap", "-c", "sleep 60; :", f"{stale}/0/work"], executable="/bin/sh") as hung:
        os.utime(stale, (1e9, 1e9))
        with Sandbox(tiers.LANDLOCK):
            assert hung.wait(10) == -signal.SIGKILL
    assert not stale.exists()


LAYERS = {
    "landlock": ("system_calls.landlock = lambda **places: None", "reads a file"),
    "system calls": ("seccomp.program = lambda **rules: struct.pack('=HBBI', 6, 0, 0, 0x7FFF0000)", "sends by UDP"),
    "memory": ("tiers._rlimits = without('RLIMIT_AS')", "fills memory"),
    "files": ("tiers._rlimits = without('RLIMIT_NOFILE')", "opens files without end"),
    "environment": ("tiers._environment = lambda home: dict(os.environ, HOME=home)", "sees the environment"),
    "open files": ("os.closerange = lambda first, last: None", "holds open files"),
    "output": ("supervisor._read = all_of_it", "writes a million times"),
    "disk": ("supervisor._is_too_much = lambda work, limits: False", "makes many files"),
    "what is left": ("supervisor._end = reap_one", "leaves a daemon"),
}
BEFORE = """
import os, resource, struct, sys, socket
sys.path.insert(0, sys.argv[3])
from rsft_cluster.constraints.programs.sandbox import seccomp, supervisor, system_calls, tiers
rlimits = tiers._rlimits
def without(name):
    return lambda limits: {key: value for key, value in rlimits(limits).items() if key != name}
def all_of_it(run, name):
    try: part = os.read(run.pipes[name], 1 << 16)
    except BlockingIOError: return False
    run.output[name] += part
    return bool(part)
def reap_one(run):
    _, run.status = os.waitpid(run.pid, 0)
"""


@pytest.mark.skipif(tiers.LANDLOCK not in HOLDING or os.geteuid() != 0, reason="layers are taken away as root")
@pytest.mark.parametrize("layer", LAYERS)
def test_without_a_layer_its_program_gets_through(monkeypatch, world, layer) -> None:
    line, name = LAYERS[layer]
    serve = "supervisor.serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))"
    monkeypatch.setattr(sandbox_module, "_SUPERVISOR", f"{BEFORE}\n{line}\n{serve}")
    monkeypatch.setenv("RSFT_CANARY", "secret")
    payload = PAYLOADS[name]
    with Sandbox(tiers.LANDLOCK) as sandbox:
        limits = Limits(
            wall_s=5.0 if layer == "output" else 1.5,
            may_fork=payload.limits.may_fork,
            memory_bytes=LIMITS.memory_bytes,
            num_files=100,
        )
        bomb = "x = bytearray(400 << 20); print('ESCAPED')"
        code = bomb if layer == "memory" else payload.code
        outcome = run(sandbox, Payload(code, limits=limits), world.places(sandbox))
        through = b"ESCAPED" in outcome.stdout
        if layer == "system calls":
            through = world.listeners["udp"].recv(1) == b"x"
        elif layer == "output":
            through = len(outcome.stdout) > LIMITS.output_bytes
        elif layer == "disk":
            through = outcome.stopped == "time"
        elif layer == "what is left":
            through = bool(left())
        assert through, outcome
    for line in left():
        os.kill(int(line.split()[0]), signal.SIGKILL)
    while left():
        time.sleep(0.01)


def test_without_any_tier_nothing_is_run_and_it_is_said_what_is_missing(monkeypatch) -> None:
    monkeypatch.setattr(tiers, "absent", lambda tier: f"no {tier} for this test")
    escape_probe.probed.cache_clear()
    with pytest.raises(ConfigError, match=r"gvisor: no gvisor for this test; bubblewrap: .*; landlock: no landlock"):
        escape_probe.choose()
    escape_probe.probed.cache_clear()


@pytest.mark.skipif(tiers.LANDLOCK not in HOLDING, reason="no Landlock here")
def test_a_tier_that_leaks_does_not_count(monkeypatch) -> None:
    serve = "supervisor.serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))"
    hole = "seccomp.program = lambda **rules: struct.pack('=HBBI', 6, 0, 0, 0x7FFF0000)"
    monkeypatch.setattr(sandbox_module, "_SUPERVISOR", f"{BEFORE}\n{hole}\n{serve}")
    escape_probe.probed.cache_clear()
    assert "reaches UDP" in escape_probe.probed(tiers.LANDLOCK).problem
    escape_probe.probed.cache_clear()


def test_an_interpreter_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="'/bin/false' is no Python"):
        interpreter("/bin/false")
    with pytest.raises(ConfigError, match="is no Python"):
        interpreter("/there/is/none")

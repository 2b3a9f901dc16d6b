"""The three ways to confine a program, strongest first: gVisor, bubblewrap, Landlock with seccomp.

A tier turns a program into a command and into what the forked process does to itself before it executes that. All
share a work folder, resource limits, an empty environment, closed files, a session of their own and no_new_privs.

| tier       | files            | network and processes       | user                          | needs                |
|------------|------------------|-----------------------------|-------------------------------|----------------------|
| gvisor     | own mounts       | a kernel of its own         | nobody, no capabilities       | runsc                |
| bubblewrap | mount namespace  | empty namespaces, seccomp   | one of its own, or namespaced | bwrap, namespaces    |
| landlock   | Landlock, seccomp| no sockets, signals to none | one of its own if we are root | Linux 5.13, Landlock |

Not promised: that the kernel has no hole (gVisor puts its own between); that nothing is learnt from timing, or, in the
tier landlock, from `stat`, which says that a file exists. Of a supervisor killed by force while bubblewrap sets itself
up, an idle process remains, which has not come to run the program; the next supervisor removes it.
"""

import json
import os
import random
import resource
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsft_cluster.constraints.programs.sandbox import seccomp, system_calls
from rsft_cluster.constraints.programs.sandbox.program import Limits

GVISOR, BUBBLEWRAP, LANDLOCK = "gvisor", "bubblewrap", "landlock"
TIERS = (GVISOR, BUBBLEWRAP, LANDLOCK)

_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_INSIDE_WORK = "/work"
_FILTER_FILE = 9
_NOBODY = 65534
_FIRST_UID, _NUM_UIDS = 0x70000000, 1 << 24
"""A range that no system assigns."""
_FIRST_SMALL_UID, _NUM_SMALL_UIDS = 40_000, 20_000
"""Where a container maps no more than 65,536 users."""


@dataclass(frozen=True)
class LaunchSpec:
    """A program to launch, with the folders that the tier works on."""

    argv: Sequence[str]
    limits: Limits
    work: str
    """The work folder on the machine, made by the supervisor."""
    scratch: str
    """A folder for the tier's own files, which the program does not see."""
    readable: Sequence[str]


@dataclass(frozen=True)
class Launch:
    """How the forked process becomes the confined program."""

    argv: Sequence[str]
    env: Mapping[str, str]
    confine: Callable[[], None]
    """Called in the forked process; raises where a layer cannot be put up, so that nothing is executed."""
    uid: int | None = None
    """A user id that no other process has; None where it shares one."""
    owner: int | None = None
    """User id that gets the work folder; None leaves it."""
    counted: bool = False
    """True if the supervisor has to count its threads, as the kernel counts those of a user."""


def launch(tier: str, spec: LaunchSpec) -> Launch:
    """Return how a tier launches a program; raises OSError or ValueError where the tier cannot."""
    return {GVISOR: _gvisor, BUBBLEWRAP: _bubblewrap, LANDLOCK: _landlock}[tier](spec)


def absent(tier: str) -> str:
    """Return what the machine plainly lacks for a tier, or nothing; whether it works only a probe can say."""
    if tier == GVISOR:
        return "" if shutil.which("runsc") else "runsc is not on PATH: install gVisor"
    if not seccomp.supported():
        return "seccomp filters are known for x86_64 and aarch64 only"
    if tier == LANDLOCK:
        return "" if system_calls.landlock_version() else "no Landlock: Linux 5.13 or newer with lsm=...,landlock"
    needed = {"bwrap": "bubblewrap", "setpriv" if _rules_namespaces() else "prlimit": "util-linux"}
    return "; ".join(f"{name} is not on PATH: install {of}" for name, of in needed.items() if not shutil.which(name))


def _landlock(spec: LaunchSpec) -> Launch:
    uid, keep = _own_uid(), 0
    if not all(map(_open_to_all, spec.readable)):
        # A user of its own cannot reach an interpreter in somebody's home, unless it may pass there. Landlock's rules
        # hold for it all the same.
        passing = (system_calls.CAP_DAC_READ_SEARCH, system_calls.CAP_DAC_OVERRIDE)
        keep = next((1 << bit for bit in passing if system_calls.capabilities() >> bit & 1), 0)
        uid = uid if keep else None
    if uid is None and spec.limits.may_fork:
        raise ValueError("without a user of its own, a program that starts processes needs namespaces: a stronger tier")

    def confine() -> None:
        _limit(spec.limits, num_tasks=spec.limits.num_tasks if uid is not None else None)
        if uid is not None:
            system_calls.become(uid, keep=keep)
        else:
            system_calls.drop_capabilities()
        system_calls.die_with_parent(signal.SIGKILL)
        system_calls.no_new_privileges()
        system_calls.landlock(readable=spec.readable, writable=[spec.work], devices=_DEVICES)
        system_calls.install_filter(seccomp.program(may_fork=spec.limits.may_fork, among_others=True))

    return Launch(spec.argv, _environment(spec.work), confine, uid=uid, owner=uid, counted=uid is None)


def _bubblewrap(spec: LaunchSpec) -> Launch:
    uid = _own_uid() if _rules_namespaces() else None
    if uid is not None:
        user = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        inner = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all", "--"]
    else:
        user = ["--unshare-user", "--uid", str(_NOBODY), "--gid", str(_NOBODY), "--cap-drop", "ALL"]
        inner = ["prlimit", f"--nproc={spec.limits.num_tasks}", "--"]
    mounts = [part for path in spec.readable for part in _bound(path)]
    devices = ["--perms", "0755", "--dir", "/dev"]
    devices += [part for path in _DEVICES for part in ("--dev-bind", path, path)]
    argv = [
        "bwrap", "--die-with-parent", "--new-session", "--unshare-ipc", "--unshare-pid", "--unshare-net",
        "--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox", *user, *mounts, *devices,
        "--bind", spec.work, _INSIDE_WORK, "--remount-ro", "/", "--chdir", _INSIDE_WORK,
        "--seccomp", str(_FILTER_FILE), "--", *inner, *spec.argv,
    ]  # fmt: skip

    def confine() -> None:
        _limit(spec.limits, num_tasks=spec.limits.num_tasks if uid is not None else None)
        system_calls.die_with_parent(signal.SIGKILL)
        rules = os.memfd_create("filter")
        os.write(rules, seccomp.program(may_fork=spec.limits.may_fork, among_others=False))
        os.lseek(rules, 0, os.SEEK_SET)
        os.dup2(rules, _FILTER_FILE, inheritable=True)

    return Launch(argv, _environment(_INSIDE_WORK), confine, uid=uid, owner=uid)


def _gvisor(spec: LaunchSpec) -> Launch:
    is_root = os.geteuid() == 0
    bundle, root = f"{spec.scratch}/bundle", f"{spec.scratch}/root"
    Path(bundle, "empty").mkdir(parents=True)
    Path(root).mkdir()
    Path(bundle, "config.json").write_text(json.dumps(_bundle(spec, uid=_NOBODY if is_root else 0)), encoding="utf-8")
    flags = [] if is_root else ["--rootless"]
    argv = ["runsc", "--root", root, "--network=none", "--ignore-cgroups", *flags]
    argv += ["run", "--bundle", bundle, "-".join(Path(spec.scratch).parts[-2:])]

    def confine() -> None:
        system_calls.die_with_parent(signal.SIGKILL)

    return Launch(argv, {"PATH": os.environ.get("PATH", os.defpath)}, confine, owner=_NOBODY if is_root else None)


def _bundle(spec: LaunchSpec, *, uid: int) -> dict[str, object]:
    limits = [
        {"type": name, "soft": value, "hard": value}
        for name, value in {**_rlimits(spec.limits), "RLIMIT_NPROC": spec.limits.num_tasks}.items()
    ]
    mounts = [
        {"destination": path, "source": str(Path(path).resolve()), "type": "bind", "options": ["ro", "bind"]}
        for path in spec.readable
        if Path(path).exists()
    ]
    mounts += [{"destination": "/dev", "source": "tmpfs", "type": "tmpfs"}]
    mounts += [{"destination": _INSIDE_WORK, "source": spec.work, "type": "bind", "options": ["rw", "bind"]}]
    return {
        "ociVersion": "1.0.2",
        "hostname": "sandbox",
        "root": {"path": "empty", "readonly": True},
        "process": {
            "user": {"uid": uid, "gid": uid},
            "args": list(spec.argv),
            "env": [f"{name}={value}" for name, value in _environment(_INSIDE_WORK).items()],
            "cwd": _INSIDE_WORK,
            "capabilities": {},
            "noNewPrivileges": True,
            "rlimits": limits,
        },
        "mounts": mounts,
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }


def _environment(home: str) -> dict[str, str]:
    """Return the whole environment; the hash seed is fixed so that judging twice gives the same."""
    return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": home, "TMPDIR": home, "PYTHONHASHSEED": "0"}


def _rlimits(limits: Limits) -> dict[str, int]:
    return {
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_CPU": limits.cpu_s,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": limits.num_open_files,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }


def _limit(limits: Limits, *, num_tasks: int | None) -> None:
    for name, value in _rlimits(limits).items():
        # A second more of CPU time before the signal that cannot be ignored.
        resource.setrlimit(getattr(resource, name), (value, value + (name == "RLIMIT_CPU")))
    if num_tasks is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (num_tasks, num_tasks))


def _bound(path: str) -> list[str]:
    """Return how bubblewrap shows a path of the machine: a link as the same link, the rest read only."""
    if Path(path).is_symlink():
        return ["--symlink", str(Path(path).readlink()), path]
    # Folders on the way may be closed on the machine; here there is nothing else in them.
    above = [part for folder in reversed(Path(path).parents) for part in ("--perms", "0755", "--dir", str(folder))]
    return [*above[4:], "--ro-bind-try", path, path]


def _own_uid() -> int | None:
    """Return a user id that no other process has, or None where this process may not take one."""
    needed = (system_calls.CAP_SETUID, system_calls.CAP_SETGID, system_calls.CAP_KILL, system_calls.CAP_CHOWN)
    held = system_calls.capabilities()
    if os.geteuid() != 0 or not all(held >> bit & 1 for bit in needed):
        return None
    ranges = ((_FIRST_UID, _NUM_UIDS), (_FIRST_SMALL_UID, _NUM_SMALL_UIDS))
    return next((random.randrange(a, a + n) for a, n in ranges if _is_mapped(a, n)), None)


def _is_mapped(first: int, num: int) -> bool:
    spans = [[int(word) for word in line.split()] for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(inside <= first and first + num <= inside + length for inside, _, length in spans)


def _rules_namespaces() -> bool:
    """Return whether namespaces can be made without a user namespace."""
    return os.geteuid() == 0 and bool(system_calls.capabilities() >> system_calls.CAP_SYS_ADMIN & 1)


def _open_to_all(path: str) -> bool:
    """Return whether any user may reach a path."""
    return all(folder.stat().st_mode & 0o001 for folder in Path(path).parents)

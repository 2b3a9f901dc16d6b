"""The few system calls that Python has no name for: Landlock, seccomp, prctl, capabilities.

Each raises OSError with what the kernel answered. Landlock: https://docs.kernel.org/userspace-api/landlock.html.
"""

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ABI_VERSION, _BENEATH = 1, 1

_FS_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
"""All rights to files by the version of Landlock's interface."""
_EXECUTE, _WRITE, _READ, _READ_FOLDER, _TRUNCATE = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_OF_A_FILE = _EXECUTE | _WRITE | _READ | _TRUNCATE
_MAKE_DEVICES = (1 << 6) | (1 << 11)
_TCP = 0x3
_ABSTRACT_SOCKETS_AND_SIGNALS = 0x3

_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP = 1, 8, 22
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _RAISE = 36, 38, 47, 2
_FILTER_MODE = 2
_CAPABILITY_VERSION_3 = 0x20080522
CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN = 0, 1, 2, 5, 6, 7, 21


def landlock_version() -> int:
    """Return the version of Landlock's interface; 0 where the kernel has none, or has it switched off."""
    return max(0, int(_LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ABI_VERSION)))


def landlock(*, readable: Iterable[str], writable: Iterable[str], devices: Iterable[str]) -> None:
    """Leave this process nothing but these files: no TCP, no signals and abstract sockets to others where it can.

    Below `readable` files are read and executed, below `writable` everything but devices is made; `devices` are
    files that are read and written. Paths that do not exist are left out. Needs no_new_privs.
    """
    version = landlock_version()
    handled = _FS_RIGHTS[min(version, max(_FS_RIGHTS))]
    attributes = struct.pack(
        "=QQQ", handled, _TCP if version >= 4 else 0, _ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0
    )
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _call(_LIBC.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0), "landlock_create_ruleset")
    rights = dict.fromkeys(readable, _EXECUTE | _READ | _READ_FOLDER)
    rights |= dict.fromkeys(writable, handled & ~_MAKE_DEVICES)
    rights |= dict.fromkeys(devices, _READ | _WRITE)
    for path, allowed in rights.items():
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        kind = handled if Path(path).is_dir() else handled & _OF_A_FILE
        rule = struct.pack("=Qi", allowed & kind, descriptor)
        _call(_LIBC.syscall(_ADD_RULE, ruleset, _BENEATH, rule, 0), f"landlock_add_rule({path})")
        os.close(descriptor)
    _call(_LIBC.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def install_filter(program: bytes) -> None:
    """Install a seccomp filter in this thread; what it starts has it too. Needs no_new_privs."""
    held = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(held))
    _prctl(_PR_SET_SECCOMP, _FILTER_MODE, described)


def no_new_privileges() -> None:
    """Let nothing that this process executes gain rights, whatever its set-uid bit."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent(signal: int) -> None:
    """Have the kernel send this process a signal when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal)


def become_subreaper() -> None:
    """Make orphaned descendants children of this process, whatever they do to get away."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def capabilities() -> int:
    """Return the effective capabilities of this process, a bit each."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    capability_sets = ctypes.create_string_buffer(24)
    _call(_LIBC.capget(header, capability_sets), "capget")
    low, _, _, high, _, _ = struct.unpack("=6I", capability_sets.raw)
    return low | high << 32


def become(uid: int, *, keep: int = 0) -> None:
    """Take on a user and group with no other rights but the capabilities of the mask `keep`, past an exec too."""
    if keep:
        _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    drop_capabilities(keep=keep)


def drop_capabilities(*, keep: int = 0) -> None:
    """Give up all capabilities but those of the mask `keep`; with no_new_privs no exec brings one back."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _call(_LIBC.capset(header, struct.pack("=6I", keep, keep, keep, 0, 0, 0)), "capset")
    for bit in range(32):
        if keep >> bit & 1:
            _prctl(_PR_CAP_AMBIENT, _RAISE, bit)


def _prctl(option: int, *arguments: int | bytes) -> None:
    padded = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in (*arguments, *[0] * (4 - len(arguments)))]
    _call(_LIBC.prctl(option, *padded), f"prctl({option})")


def _call(result: int, name: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return int(result)

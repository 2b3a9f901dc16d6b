"""The system calls that a sandboxed program may not make, as a seccomp filter written out by hand.

A list of what is refused: what makes sockets, namespaces, mounts, keys, shared memory that outlives a process, what
looks into or signals other processes, and every number above those that were looked at. Refused calls fail with
EPERM (ENOSYS where libraries then take another way); a program of another architecture is killed. Filters are
classic BPF (Linux, Documentation/userspace-api/seccomp_filter.rst); numbers are those of the kernel's headers.
"""

import os
import platform
import struct

_NEWEST = 450
"""Calls numbered above are unknown here, and do not exist for the program."""

# name: (x86_64, aarch64); None where the architecture has no such call
_ALWAYS: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "swapon": (167, 224), "swapoff": (168, 225),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "seccomp": (317, 277),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "acct": (163, 89),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162), "syslog": (103, 116), "vhangup": (153, 58),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "personality": (135, 92),
    "uselib": (134, None), "ustat": (136, None), "sysfs": (139, None), "_sysctl": (156, None),
    "lookup_dcookie": (212, 18), "nfsservctl": (180, 42),
    "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    "inotify_init": (253, None), "inotify_init1": (294, 26), "inotify_add_watch": (254, 27),
    "move_pages": (279, 239), "migrate_pages": (256, 238),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "mknod": (133, None), "mknodat": (259, 33),
}  # fmt: skip
# Landlock governs neither a file's mode, owner, times and attributes, nor the scheduling of other processes.
_AMONG_OTHERS: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "truncate": (76, 45), "tkill": (200, 130), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
}  # fmt: skip
_FORK: dict[str, tuple[int | None, int | None]] = {"fork": (57, None), "vfork": (58, None)}
_CLONE, _CLONE3, _SOCKETPAIR = (56, 220), (435, 435), (53, 199)
_PRCTL, _PRLIMIT, _KILL, _TGKILL = (157, 167), (302, 261), (62, 129), (234, 131)

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000

_LOAD, _EQUAL, _GREATER, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_ALLOW, _KILL_PROCESS, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026

_CLONE_THREAD = 0x00010000
_NEW_NAMESPACES = 0x7E020000
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPES = 1, 1, 0xF
_PR_SET_PDEATHSIG, _PR_SET_PTRACER = 1, 0x59616D61


def supported() -> bool:
    """True if the numbers of this machine's system calls are known."""
    return platform.machine() in _ARCHITECTURES and struct.calcsize("P") == 8


def program(*, may_fork: bool, among_others: bool) -> bytes:
    """Return the filter for the process that installs it, an array of `struct sock_filter`.

    `among_others`: it shares files and processes with the machine (no namespaces). Then it may signal only itself,
    unless it may start processes; it has a user of its own in that case, whose signals reach nobody else's.
    """
    column, architecture = _ARCHITECTURES[platform.machine()]
    lines = [
        _line(_LOAD, _ARCHITECTURE),
        _line(_EQUAL, architecture, 1, 0),
        _line(_RETURN, _KILL_PROCESS),
        _line(_LOAD, _NUMBER),
        _line(_AT_LEAST, _X32, 0, 1),
        _line(_RETURN, _KILL_PROCESS),
        _line(_GREATER, _NEWEST, 0, 1),
        _line(_RETURN, _ENOSYS),
    ]
    refused = _ALWAYS | (_AMONG_OTHERS if among_others else {}) | ({} if may_fork else _FORK)
    for numbers in refused.values():
        if (number := numbers[column]) is not None:
            lines += [_line(_EQUAL, number, 0, 1), _line(_RETURN, _EPERM)]
    lines += _call(_CLONE3[column], [_line(_RETURN, _ENOSYS)])
    lines += _call(_CLONE[column], _clone(may_fork=may_fork))
    lines += _call(_SOCKETPAIR[column], _only(0, _AF_UNIX) + _only(1, _SOCK_STREAM, mask=_SOCK_TYPES))
    lines += _call(_PRCTL[column], _never(0, _PR_SET_PDEATHSIG) + _never(0, _PR_SET_PTRACER))
    if among_others:
        lines += _call(_PRLIMIT[column], _only(0, 0))
    if among_others and not may_fork:
        lines += _call(_KILL[column], _only(0, os.getpid()))
        lines += _call(_TGKILL[column], _only(0, os.getpid()))
    return b"".join([*lines, _line(_RETURN, _ALLOW)])


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _call(number: int, body: list[bytes]) -> list[bytes]:
    """Return the body, of the rules for a single call; falling out of it allows the call."""
    allowed = [*body, _line(_RETURN, _ALLOW)]
    return [_line(_EQUAL, number, 0, len(allowed)), *allowed]


def _argument(index: int) -> bytes:
    """Load the low half of an argument, which is all that these calls look at."""
    return _line(_LOAD, _ARGUMENTS + 8 * index)


def _only(index: int, value: int, *, mask: int | None = None) -> list[bytes]:
    masked = [] if mask is None else [_line(_AND, mask)]
    return [_argument(index), *masked, _line(_EQUAL, value, 1, 0), _line(_RETURN, _EPERM)]


def _never(index: int, value: int) -> list[bytes]:
    return [_argument(index), _line(_EQUAL, value, 0, 1), _line(_RETURN, _EPERM)]


def _clone(*, may_fork: bool) -> list[bytes]:
    refuse = [_argument(0), _line(_ANY_BIT, _NEW_NAMESPACES, 0, 1), _line(_RETURN, _EPERM)]
    return refuse if may_fork else [*refuse, _line(_ANY_BIT, _CLONE_THREAD, 1, 0), _line(_RETURN, _EPERM)]

"""Programs that nobody should run: what they try, and how each has to end in a sandbox.

Each prints ESCAPED where it got what it wanted; most print `tried` at their end. `{...}` are filled in with what
stands ready on the machine: a folder with a canary, ports, sockets, a process, a marker for the command line.
"""

from dataclasses import dataclass

from rsft_cluster.constraints.programs.sandbox.program import Limits, ProgramResult

TRIED = b"tried\n"
WAIT = "time.sleep(5)\nprint('ESCAPED')"
LIMITS = Limits(wall_s=8.0, cpu_s=4, memory_bytes=256 << 20, file_bytes=2 << 20, num_files=100, output_bytes=64 << 10)
SHORT = Limits(wall_s=0.7, cpu_s=4, memory_bytes=256 << 20)


@dataclass(frozen=True)
class Payload:
    """A hostile program, and what has to come of it."""

    code: str
    limits: Limits = LIMITS
    stopped: str | None = ""
    """None where it is a matter of speed."""
    ends: tuple[int, ...] = (0,)
    says: bytes | None = TRIED

    def check(self, outcome: ProgramResult) -> None:
        """Assert that the program got nothing, and that its end is told as it was."""
        assert b"ESCAPED" not in outcome.stdout, outcome
        assert self.stopped in (None, outcome.stopped), outcome
        if self.stopped == "":
            assert outcome.exit_status in self.ends, outcome
            assert self.says is None or outcome.stdout.endswith(self.says), outcome


def attempts(*lines: str, more: str = "") -> str:
    """A program that tries each expression, telling which one was not refused."""
    tries = "\n".join(f"attempt({line!r}, lambda: {line})" for line in lines)
    return f"""
import os, sys, socket, signal, ctypes
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, act):
    try:
        found = act()
    except (OSError, MemoryError, RuntimeError, ValueError) as error:
        return
    if found != -1:
        print("ESCAPED", name, repr(found)[:200], flush=True)
def opened(path, flags=os.O_RDONLY):
    return os.open(path, flags, 0o600)
{more}
{tries}
print("tried")
"""


def _syscalls(*numbers: int) -> str:
    return attempts(*(f"libc.syscall({number}, 0, 0, 0, 0, 0, 0)" for number in numbers))


FILES = {
    "reads a file": attempts("open('{folder}/canary').read()"),
    "reads secrets of the system": attempts("open('/etc/passwd').read()", "open('/etc/shadow').read()"),
    "lists folders": attempts("os.listdir('/')[:0] or os.listdir('/home') or -1", "os.listdir('{folder}')"),
    "reads /proc": attempts(
        "open('/proc/{victim}/environ').read()", "open('/proc/{victim}/cmdline').read()", "os.listdir('/proc/{victim}')"
    ),
    "writes its own memory file": attempts("opened('/proc/self/mem', os.O_RDWR) if {shared} else -1"),
    "writes to a file": attempts("open('{folder}/canary', 'w').write('x')", "open('{folder}/made', 'w')"),
    "writes where it may only read": attempts(
        "open(os.__file__, 'a')",
        "open('/usr/made', 'w')",
        "os.mkdir('/usr/made')",
        "os.unlink(sys.executable)",
        "os.rename(os.__file__, os.__file__ + 'x')",
        "os.truncate(os.__file__, 0)",
    ),
    "takes the way of links": attempts(
        "open('link').read()",
        "open('hard').read()",
        more="for make, name in ((os.symlink, 'link'), (os.link, 'hard')):\n"
        "    try: make('{folder}/canary', name)\n    except OSError: pass",
    ),
    "takes the way of dots": attempts(
        "open('../../../../../../../../{folder}/canary').read()", "os.listdir('../..') if {shared} else -1"
    ),
    "changes modes and times": attempts(
        "os.chmod('{folder}/canary', 0o777)", "os.utime('{folder}/canary', (1, 1))", "os.chown('{folder}/canary', 1, 1)"
    ),
    "fills /dev/shm": attempts(
        "open('/dev/shm/made', 'w').write('x' * 100)", "open('/tmp/made', 'w') if {shared} else -1"
    ),
    "opens devices": attempts("opened('/dev/mem')", "opened('/dev/kmsg')", "opened('/dev/vda')", "opened('/dev/tty')"),
    "makes devices": attempts("os.mknod('device', 0o20666, os.makedev(1, 1))"),
    "mounts": attempts("libc.mount(b'none', b'.', b'tmpfs', 0, None)", "libc.umount2(b'/usr', 2)", "os.chroot('.')"),
    "opens by handle": _syscalls(303, 304),
}
NETWORK = {
    "connects by TCP": attempts("socket.create_connection(('127.0.0.1', {tcp}), timeout=2)"),
    "sends by UDP": attempts(
        "made.sendto(b'x', ('127.0.0.1', {udp})) and -1",
        more="try: made = socket.socket(2, 2)\nexcept OSError: made = None\n"
        "class Nothing:\n    def sendto(self, *a): raise OSError\nmade = made or Nothing()",
    ),
    "connects to a Unix socket": attempts("socket.socket(1).connect('{folder}/socket')"),
    "connects to an abstract socket": attempts("socket.socket(1).connect('\\0{abstract}')"),
    "sends through a pair of sockets": attempts(
        "pair(2).sendto(b'x', '{folder}/datagrams')",
        "pair(2).connect('{folder}/datagrams')",
        "pair(1).sendto(b'x', '{folder}/socket')",
        "pair(1).connect('{folder}/socket')",
        more="def pair(kind): return socket.socketpair(1, kind)[0]",
    ),
    "listens": attempts("socket.create_server(('0.0.0.0', {free})) and (-1 if not {shared} else 0)"),
    "speaks to the kernel": attempts("socket.socket(16, 3, 0)", "socket.socket(17, 3, 0)", "socket.socket(40, 1, 0)"),
}
PROCESSES = {
    "kills all": Payload(attempts("os.kill(-1, 9)"), ends=(0, 137), says=None),
    "kills its parent": Payload(attempts("os.kill(os.getppid(), 9) if {shared} else -1")),
    "kills a process": Payload(
        attempts("os.kill({victim}, 9) if {shared} else -1", "os.kill({parent}, 0) if {shared} else -1")
    ),
    "stops a process another way": Payload(
        attempts("signal.pthread_kill(1, 0) if 0 else -1", "os.pidfd_open({victim})", "libc.syscall(200, {victim}, 19)")
    ),
    "traces a process": Payload(attempts("libc.ptrace(16, {victim}, 0, 0)", "libc.ptrace(0, 0, 0, 0)")),
    "reads memory of a process": Payload(_syscalls(310, 311, 312, 438, 440)),
    "lowers limits of a process": Payload(
        attempts(
            "resource.prlimit({victim}, resource.RLIMIT_CPU, (1, 1))",
            "os.setpriority(0, {victim}, 19)",
            "os.sched_setaffinity({victim}, [0])",
            more="import resource",
        )
    ),
    "starts a process": Payload(
        attempts(
            "os.fork()", "os.posix_spawn('/bin/true', ['true'], {{}})", "__import__('subprocess').run(['/bin/true'])"
        ),
    ),
    "makes namespaces": Payload(
        attempts(
            "libc.unshare(0x10000000)",
            "libc.unshare(0x20000)",
            "libc.syscall(56, 0x10000011, 0, 0, 0, 0)",
            "libc.syscall(435, 0, 0)",
            "libc.setns(0, 0)",
        )
    ),
    "uses what few need": Payload(_syscalls(321, 298, 323, 250, 248, 425, 319, 447, 29, 240, 317)),
    "gains rights": Payload(
        attempts(
            "capable() or -1",
            "os.setuid(0) or -1 if os.getuid() == 0 else os.setuid(0)",
            "os.setgroups([0])",
            "resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))",
            "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
            more="import resource, struct\n"
            "def capable():\n"
            "    found = ctypes.create_string_buffer(24)\n"
            "    assert libc.capget(struct.pack('=Ii', 0x20080522, 0), found) == 0\n"
            "    low, _, _, high, _, _ = struct.unpack('=6I', found.raw)\n"
            "    return low & ~0b110 | high or -1",  # but to pass through folders, which Landlock rules
        )
    ),
    "uses another architecture": Payload(
        """
import ctypes, mmap, os, platform
code = b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3"      # getpid as a 32-bit program makes it
page = mmap.mmap(-1, 4096, prot=7)
page.write(code)
if platform.machine() == "x86_64":
    found = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
    print("ESCAPED", found)
else:
    print("tried")
""",
        ends=(0, 139, 159),
        says=None,
    ),
    "uses numbers of x32": Payload(
        "import ctypes; found = ctypes.CDLL(None).syscall(0x40000000 + 39); print('ESCAPED' if found > 0 else 'tried')",
        ends=(0, 159),
        says=None,
    ),
    "leaves a daemon": Payload(
        """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(3): os.close(number)
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)", "{marker}"])
    os._exit(0)
time.sleep(0.1)
print("tried")
""",
        limits=Limits(wall_s=8.0, may_fork=True),
    ),
    "forks without end": Payload(
        """
import os
while True:
    try: os.fork()
    except OSError: pass
""",
        limits=Limits(wall_s=0.7, may_fork=True),
        stopped="time",
    ),
    "starts threads without end": Payload(
        """
import threading, time
threading.stack_size(32768)
count = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        count += 1
except (RuntimeError, MemoryError):
    pass
print("ESCAPED" if count > 100 else "tried", flush=True)
import os; os._exit(0)
""",
        stopped=None,
    ),
    "ignores signals": Payload(
        """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""",
        limits=SHORT,
        stopped="time",
    ),
}
EXHAUSTION = {
    "is busy": Payload("while True: pass", limits=SHORT, stopped="time"),
    "is busy in C": Payload("print(sum(iter(int, 1)))", limits=SHORT, stopped="time"),
    "uses up CPU time": Payload("while True: pass", limits=Limits(wall_s=6.0, cpu_s=1), ends=(152, 137), says=None),
    "sleeps": Payload("import time; time.sleep(60)", limits=SHORT, stopped="time"),
    "hangs when it is imported": Payload("import threading; threading.Event().wait()", limits=SHORT, stopped="time"),
    "fills memory": Payload("x = []\nwhile True: x.append(bytearray(1 << 20))", ends=(1, 137), says=None),
    "unpacks a bomb": Payload(
        "import zlib\nbomb = zlib.compress(bytes(1 << 26))\nx = [zlib.decompress(bomb) for _ in range(64)]",
        ends=(1, 137),
        says=None,
    ),
    "recurses without end": Payload(
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return [f(y) for y in [x]]\nf(1)",
        limits=SHORT,
        stopped=None,
    ),
    "crashes": Payload("import ctypes; ctypes.string_at(0)", ends=(139, 1), says=None),
    "writes to address 0": Payload("import ctypes; ctypes.memset(0, 1, 100)", ends=(139, 1), says=None),
    "floods stdout": Payload("while True: print('x' * 10000)", stopped="output"),
    "floods stderr": Payload("import sys\nwhile True: sys.stderr.write('x' * 10000)", stopped="output"),
    "writes a million times": Payload("import os\nfor _ in range(10**6): os.write(1, b'x')", stopped="output"),
    "writes now and then": Payload(
        "import time\nwhile True:\n    print('x', flush=True)\n    time.sleep(0.01)", limits=SHORT, stopped="time"
    ),
    "makes a big file": Payload(
        "with open('big', 'wb') as file:\n    while True: file.write(bytes(1 << 20))",
        ends=(1, 153),
        says=None,
    ),
    "makes many files": Payload(
        "import time\nfor n in range(1000): open(f'file-{{n}}', 'w').close()\n" + WAIT,
        stopped="disk",
    ),
    "fills the disk with files": Payload(
        "import time\nfor n in range(50): open(f'file-{{n}}', 'wb').write(bytes(1 << 20))\n" + WAIT,
        stopped="disk",
    ),
    "opens files without end": Payload(
        "n = []\ntry:\n    while len(n) < 999: n += [open('/dev/null')]\n    print('ESCAPED')\nexcept OSError: pass\n"
        "n.clear()\nprint('tried')",
    ),
}
LEAKS = {
    "sees the environment": Payload(
        "import os\nif 'RSFT_CANARY' in os.environ or len(os.environ) > 7: print('ESCAPED', os.environ)\nprint('tried')"
    ),
    "holds open files": Payload(
        "import os\nfor n in range(3, 1024):\n    try: print('ESCAPED', n, os.fstat(n))\n    except OSError: pass\n"
        "print('tried')"
    ),
    "sees packages": Payload(
        "import sys\nif 'site' in sys.modules or any('site-packages' in p for p in sys.path): print('ESCAPED')\n"
        "try:\n    import pydantic\n    print('ESCAPED')\nexcept ImportError: pass\nprint('tried')"
    ),
}
PAYLOADS: dict[str, Payload] = {
    **{name: Payload(code) for name, code in {**FILES, **NETWORK}.items()},
    **PROCESSES,
    **EXHAUSTION,
    **LEAKS,
}

GRANTED_BY_A_KERNEL_OF_ITS_OWN = {
    "speaks to the kernel", "traces a process", "starts a process", "makes namespaces", "uses another architecture",
    "uses numbers of x32", "uses up CPU time",
}  # fmt: skip
"""What gVisor's kernel, which is the program's alone, lets it do to itself; the wall time ends it as everything."""

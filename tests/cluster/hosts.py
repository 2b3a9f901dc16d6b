"""Several hosts on one machine: network, process and name spaces that share nothing but files and a bridge.

No space has a name outside this module: all of them, with every process, address and interface in them, end with the
process that made them, however that ends. Nothing of the machine's own network is touched, and any number of such
networks can be there at once with the same addresses. Needs root, iproute2 and util-linux.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

SUBNET = "10.77.0"
START_TIMEOUT_S = 20.0
TOOLS = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
}
"""Programs and the Debian packages that they come from."""


def missing(tools: Mapping[str, str] = TOOLS) -> str:
    """Return what is missing here to make hosts, in words; empty if nothing is."""
    if os.geteuid() != 0:
        return "making hosts needs root"
    packages = sorted({package for tool, package in tools.items() if shutil.which(tool) is None})
    return f"missing: apt-get install {' '.join(packages)}" if packages else ""


class Space:
    """Namespaces with a first process that does nothing but wait for orphans; they last as long as it does."""

    def __init__(self, name: str, folder: Path, setup: str = ":") -> None:
        self.name = name
        # The first process reaps what is left to it, as an init does; `wait` alone would not return for orphans.
        script = f"{setup}; ip link set lo up; while :; do sleep 3600 & wait $!; done"
        self._unshare = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--uts", "--mount", "--ipc", "--pid", "--fork",
             "--kill-child", "--mount-proc", "bash", "-c", f"hostname {name}; {script}"],
            stdin=subprocess.DEVNULL, stderr=(folder / f"{name}.log").open("w"), start_new_session=True,
        )  # fmt: skip
        self.pid = self._first_pid()
        self.call("sh", "-c", "until ip -o link show lo | grep -q LOOPBACK,UP; do sleep 0.05; done")

    def _first_pid(self) -> int:
        """Return the first process's id outside."""
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self._unshare.poll() is None, f"{self.name}: namespaces could not be made"
            if (found := children.read_text().split()) and _command(int(found[0])) == "bash":
                return int(found[0])
            time.sleep(0.02)
        raise TimeoutError(f"{self.name}: its first process never began")

    def entering(self, command: Sequence[object]) -> list[str]:
        """Return the command line that runs a command in here."""
        return ["nsenter", f"--target={self.pid}", "--net", "--uts", "--mount", "--ipc", "--pid", *map(str, command)]

    def call(self, *command: object, timeout: float = START_TIMEOUT_S) -> str:
        """Run a command that must succeed and return what it printed."""
        done = subprocess.run(self.entering(command), capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"{self.name}: {command}: {done.stderr}"
        return done.stdout

    def kill(self) -> None:
        """Kill every process in here at once, as a power cut does; interfaces and addresses go with them."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._unshare.wait(timeout=10)
        if self._unshare.poll() is None:
            self._unshare.kill()
            self._unshare.wait()


class Host(Space):
    """A computer on the network: address, name, processes and temporary files of its own."""

    def __init__(self, name: str, address: str, folder: Path, port: str, switch: Space) -> None:
        self.address, self.folder, self._port, self._switch = address, folder, port, switch
        self.tmp = folder / name
        self.tmp.mkdir()
        self.environment: dict[str, str] = {}
        """What its processes find in their environment beside PATH and HOME."""
        # Names are looked up in a file and nowhere else: there is no name server to wait for.
        super().__init__(
            name,
            folder,
            f"mount --bind {folder}/hosts /etc/hosts; mount --bind {folder}/nsswitch.conf /etc/nsswitch.conf",
        )

    def popen(
        self, command: Sequence[object], *, env: Mapping[str, str | None] | None = None, **how
    ) -> subprocess.Popen:
        """Start a process here. It has this host's environment alone, and `env`, where None takes a name away."""
        whole = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.tmp), "TMPDIR": str(self.tmp), "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1", **self.environment, **(env or {}),
        }  # fmt: skip
        return subprocess.Popen(
            self.entering(command),
            env={name: value for name, value in whole.items() if value is not None},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **how,
        )

    def run(
        self, command: Sequence[object], *, timeout: float, env: Mapping[str, str | None] | None = None
    ) -> subprocess.CompletedProcess:
        """Run a command to its end; one that takes longer is killed with its children and raises TimeoutExpired."""
        process = self.popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def cut(self) -> None:
        """Pull the cable: packets are lost, nobody is told."""
        self._switch.call("ip", "link", "set", self._port, "down")

    def mend(self) -> None:
        """Put the cable back."""
        self._switch.call("ip", "link", "set", self._port, "up")


class Network:
    """A switch and the hosts at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: dict[str, Host] = {}
        (folder / "hosts").write_text("127.0.0.1 localhost\n")
        (folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        self._switch = Space("switch", folder)
        self._switch.call("ip", "link", "add", "bridge", "type", "bridge")
        self._switch.call("ip", "link", "set", "bridge", "up")

    def add(self, name: str) -> Host:
        """Plug a new host in."""
        number = 11 + len(self.hosts)
        address, port, inside = f"{SUBNET}.{number}", f"port{number}", f"host{number}"
        with (self.folder / "hosts").open("a") as names:
            names.write(f"{address} {name}\n")
        host = Host(name, address, self.folder, port, self._switch)
        self.hosts[name] = host
        wire = self._switch.call
        wire("ip", "link", "add", port, "type", "veth", "peer", "name", inside)
        # The switch knows its own processes' numbers alone, so the end is handed over from outside of them.
        subprocess.run(
            ["nsenter", f"--target={self._switch.pid}", "--net", "ip", "link", "set", inside, "netns", str(host.pid)],
            check=True, timeout=START_TIMEOUT_S,
        )  # fmt: skip
        wire("ip", "link", "set", port, "master", "bridge", "up")
        host.call("ip", "link", "set", inside, "name", "eth0")
        host.call("ip", "address", "add", f"{address}/24", "dev", "eth0")
        host.call("ip", "link", "set", "eth0", "up")
        return host

    def close(self) -> None:
        """End every host and the switch."""
        for host in self.hosts.values():
            host.kill()
        self._switch.kill()


@contextmanager
def network() -> Iterator[Network]:
    """A network for the length of the block, with a short folder: Ray's sockets lie below it."""
    folder = Path(tempfile.mkdtemp(prefix="rsft-hosts-"))
    made: Network | None = None
    try:
        made = Network(folder)
        yield made
    finally:
        if made is not None:
            made.close()
        shutil.rmtree(folder, ignore_errors=True)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""

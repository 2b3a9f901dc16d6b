"""A Slurm of one controller and some nodes, each a host of its own; nothing of the machine's own Slurm is used.

What Debian's slurmd needs in namespaces: processes tracked without cgroups, no task plugin, and a cgroup.conf that
names version 1, which it then leaves alone.
"""

import os
import subprocess
import time
from pathlib import Path

from hosts import Host, Network

CPUS_PER_NODE = 2
REQUEUE_DELAY_S = 15
"""How long a requeued job waits before it starts again: the life of a step's credential, two minutes by default."""
TOOLS = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
START_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 60.0


class Slurm:
    """A controller with a munge daemon, and nodes."""

    def __init__(self, network: Network, num_nodes: int) -> None:
        self.folder = network.folder / "slurm"
        self.folder.mkdir()
        self.controller = network.add("controller")
        self.nodes = [network.add(f"node{i + 1}") for i in range(num_nodes)]
        self._write_config()
        self._start_munge()
        environment = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        for host in (self.controller, *self.nodes):
            host.environment = environment
        self._daemon(self.controller, "slurmctld", "-D")
        for node in self.nodes:
            self._daemon(node, "slurmd", "-D", "-N", node.name)
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._states() != ["idle"] * num_nodes:
            assert time.monotonic() < deadline, f"the nodes are {self._states()}"
            time.sleep(0.5)

    def batch(self, script: Path, *options: str, **environment: str) -> str:
        """Submit a script and return the job's id."""
        return self.command("sbatch", "--parsable", *options, str(script), **environment).strip()

    def state(self, job: str) -> str:
        """Return a job's state as the controller tells it."""
        return self.field(job, "JobState")

    def field(self, job: str, name: str) -> str:
        """Return one field of what the controller knows of a job."""
        told = self.command("scontrol", "show", "job", job)
        return next(word.split("=", 1)[1] for word in told.split() if word.startswith(f"{name}="))

    def wait(self, job: str, states: tuple[str, ...], timeout_s: float) -> str:
        """Wait until a job is in one of the states and return which."""
        deadline = time.monotonic() + timeout_s
        while (state := self.state(job)) not in states:
            assert time.monotonic() < deadline, f"job {job} is still {state}"
            time.sleep(0.5)
        return state

    def command(self, *command: str, **environment: str) -> str:
        """Run a client's command on the controller's host; it must succeed."""
        done = self.controller.run(command, timeout=COMMAND_TIMEOUT_S, env=environment)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def _states(self) -> list[str]:
        done = self.controller.run(["sinfo", "--noheader", "--Node", "--format=%T"], timeout=COMMAND_TIMEOUT_S)
        return done.stdout.split()

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self._daemon(self.controller, "munged", "--foreground", "--force", f"--socket={self._socket}", *files)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._socket.exists():
            assert time.monotonic() < deadline, "munge never listened"
            time.sleep(0.1)

    @property
    def _socket(self) -> Path:
        return self.folder / "munge.socket"

    def _daemon(self, host: Host, *command: str) -> None:
        log = (self.folder / f"{host.name}.{command[0]}.log").open("w")
        host.popen(command, stdout=log, stderr=subprocess.STDOUT)

    def _write_config(self) -> None:
        place = self.folder
        (place / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        nodes = "\n".join(
            f"NodeName={n.name} NodeAddr={n.address} CPUs={CPUS_PER_NODE} RealMemory=4000" for n in self.nodes
        )
        (place / "slurm.conf").write_text(
            f"""
ClusterName=hosts
SlurmctldHost={self.controller.name}({self.controller.address})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={self._socket},cred_expire={REQUEUE_DELAY_S}
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool.%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
        )

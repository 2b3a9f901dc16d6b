"""A Ray cluster with token authentication over several hosts, set up as deploy/ describes it."""

import json
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from hosts import Host, Network

REPOSITORY = Path(__file__).resolve().parent.parent.parent
RAY = Path(sys.executable).with_name("ray")
NODE_TIMEOUT_S = 90.0
COMMAND_TIMEOUT_S = 120.0


def shipped_settings() -> dict[str, str]:
    """Return the settings of deploy/ray.env."""
    lines = (REPOSITORY / "deploy" / "ray.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


class RayCluster:
    """A head and workers, and a desk: a host without Ray from which people send their commands."""

    def __init__(self, network: Network, num_cpus: dict[str, int]) -> None:
        self._network = network
        self.folder = network.folder
        self.printed: list[str] = []
        """All that commands and the dashboard have answered at the desk."""
        self.token = secrets.token_hex(32)
        self.token_file = network.folder / "token"
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(self.token)
        self.settings = shipped_settings()
        self.nodes: dict[str, Host] = {}
        self.desk = network.add("desk")
        self.start("head", num_cpus["head"])
        wait_until(lambda: self.num_living() == 1, NODE_TIMEOUT_S, "the head never came up")
        for name, cpus in num_cpus.items():
            if name != "head":
                self.start(name, cpus)
        wait_until(lambda: self.num_living() == len(num_cpus), NODE_TIMEOUT_S, "the workers never joined")

    @property
    def head(self) -> Host:
        return self.nodes["head"]

    @property
    def dashboard(self) -> str:
        return f"http://{self.head.address}:8265"

    @property
    def gcs(self) -> str:
        return f"{self.head.address}:6379"

    def start(self, name: str, num_cpus: int) -> Host:
        """Plug a host in and start Ray there; returns before it has joined."""
        host = self.nodes[name] = self._network.add(name)
        host.environment = self.settings | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)}
        # As deploy/README.md has it; the dashboard is bound to an address that the desk can reach.
        where = (
            [
                "--head",
                "--port=6379",
                f"--dashboard-host={host.address}",
                f"--temp-dir={host.tmp}/ray",
                '--resources={"driver": 1}',
            ]
            if name == "head"
            else [f"--address={self.gcs}", f"--temp-dir={host.tmp}/ray"]
        )
        log = (host.tmp / "start.log").open("w")
        host.popen(
            [RAY, "start", "--block", *where, f"--node-ip-address={host.address}", f"--num-cpus={num_cpus}",
             "--object-store-memory=100000000", "--disable-usage-stats"],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return host

    def lose(self, name: str) -> None:
        """Kill a host with all that runs on it."""
        self.nodes.pop(name).kill()

    def num_living(self) -> int:
        """Return how many nodes the cluster takes for living; 0 where its dashboard does not answer."""
        status, body = self.ask("/nodes?view=summary", token=self.token)
        if status != 200:
            return 0
        return sum(node["raylet"].get("state") == "ALIVE" for node in json.loads(body)["data"]["summary"])

    def ask(self, path: str, *, token: str | None = None, method: str = "GET", body: str = "") -> tuple[int, str]:
        """Ask the dashboard from the desk; return status and answer, (0, why) where nothing answers."""
        done = self.desk.run(
            [sys.executable, __file__, self.dashboard + path, method, body],
            env={"ASKING_TOKEN": token or ""}, timeout=COMMAND_TIMEOUT_S,
        )  # fmt: skip
        status, _, text = done.stdout.partition("\n")
        self.printed += [text, done.stderr]
        return int(status or 0), text or done.stderr

    def submitted(self) -> list[dict]:
        """Return the jobs that somebody has sent, as the job API tells them; it lists those who joined, too."""
        return [job for job in json.loads(self.ask("/api/jobs/", token=self.token)[1]) if job["type"] == "SUBMISSION"]

    def actors(self) -> list[dict]:
        """Return the living actors of the cluster, as its dashboard tells them."""
        return [actor for actor in self._listed("actors") if actor["state"] == "ALIVE"]

    def actors_on(self, name: str) -> list[str]:
        """Return the classes of the actors that live on a node."""
        nodes = {node["node_id"]: node["node_ip"] for node in self._listed("nodes")}
        return [a["class_name"] for a in self.actors() if nodes.get(a["node_id"]) == self.nodes[name].address]

    def _listed(self, what: str) -> list[dict]:
        return json.loads(self.ask(f"/api/v0/{what}?detail=1", token=self.token)[1])["data"]["result"]["result"]

    def begin(self, *arguments: object, host: Host | None = None, token: bool = True, **env) -> subprocess.Popen:
        """Start `rsft` at the desk, or on another host, with the token or without."""
        shown = {"RAY_AUTH_TOKEN_PATH": str(self.token_file)} if token else {}
        command = [sys.executable, "-m", "rsft_cluster", *arguments]
        whole = {"PYTHONPATH": str(REPOSITORY), **shown, **env}
        return (host or self.desk).popen(command, env=whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def rsft(self, *arguments: object, **how) -> subprocess.CompletedProcess:
        """Run `rsft` to its end, as `begin` starts it."""
        process = self.begin(*arguments, **how)
        try:
            out, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
        finally:
            process.kill()
        self.printed += [out, err]
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def wait_until(condition: Callable[[], object], timeout_s: float, otherwise: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.25)


def _answer(url: str, method: str, body: str, token: str) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, body.encode() or None, {**headers, "Content-Type": "application/json"})
    request.method = method
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError as error:
        return 0, str(error)


if __name__ == "__main__":
    import os

    status, text = _answer(*sys.argv[1:], os.environ["ASKING_TOKEN"])
    print(status, text, sep="\n")

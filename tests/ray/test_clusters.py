"""A cluster of several nodes on this machine, and the job API with token authentication."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster
from running import NUM_PROMPTS, write_config

pytestmark = pytest.mark.ray

TIMEOUT_S = 400


def rsft(*arguments, **environment):
    command = [sys.executable, "-m", "rsft_cluster", *map(str, arguments)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=env)


def test_sampling_actors_run_on_all_nodes_of_a_cluster(tmp_path):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        # A second and more a unit, so that no actor is done with all of them before the last one is up.
        slow = {"use": "scripted", "params": {"delay_s": 0.3}}
        config = write_config(tmp_path, "nodes", sampling__workers=3, sampling__generator=slow)
        process = subprocess.Popen(
            [sys.executable, "-m", "rsft_cluster", "sample", str(config), "--quiet"],
            env=os.environ | {"RAY_ADDRESS": cluster.address}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        raylets: set[int] = set()
        while process.poll() is None:
            raylets |= raylets_of_samplers(tmp_path / "runs" / "nodes" / "rounds" / "0001" / "attempts")
            time.sleep(0.02)
        assert process.returncode == 0, process.stderr.read()
        assert len(raylets) == 3
    finally:
        cluster.shutdown()
    manifest = json.loads((tmp_path / "runs" / "nodes" / "rounds" / "0001" / "manifest.json").read_text())
    assert manifest["totals"]["num_candidates"] == 4 * NUM_PROMPTS


def raylets_of_samplers(attempts: Path) -> set[int]:
    found = set()
    for marker in attempts.glob("*.json"):
        try:
            found.add(psutil.Process(json.loads(marker.read_text())["pid"]).ppid())
        except (psutil.NoSuchProcess, ValueError):
            continue
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """The URL of a head that wants a token, and the token's file."""
    folder = tmp_path_factory.mktemp("head")
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    port, dashboard = free_port(), free_port()
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PATH": f"{scripts}:{os.environ['PATH']}"
    }  # fmt: skip
    ray = str(Path(sys.executable).with_name("ray"))
    head = subprocess.Popen(
        [ray, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=4",
         "--include-dashboard=true", "--disable-usage-stats", "--node-ip-address=127.0.0.1",
         f"--dashboard-agent-listen-port={free_port()}"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", dashboard), timeout=1).close()
            break
        except OSError:
            assert time.monotonic() < deadline, "the dashboard never came up"
            assert head.poll() is None, "the head died"
            time.sleep(0.5)
    yield f"http://127.0.0.1:{dashboard}", token
    for child in psutil.Process(head.pid).children(recursive=True):
        child.kill()
    head.kill()
    head.wait()


def test_a_run_is_submitted_followed_and_listed(guarded, tmp_path):
    address, token = guarded
    config = write_config(tmp_path, "submitted")
    done = rsft("submit", config, "--address", address, "--follow", RAY_AUTH_TOKEN_PATH=str(token))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rsft-submitted")
    assert "round 1" in done.stderr
    listed = json.loads(rsft("jobs", "--json", "--address", address, RAY_AUTH_TOKEN_PATH=str(token)).stdout)
    assert [(j["job"], j["status"]) for j in listed] == [("rsft-submitted", "SUCCEEDED")]
    printed = rsft("logs", "rsft-submitted", "--address", address, RAY_AUTH_TOKEN_PATH=str(token)).stdout
    assert "promoted" in printed or "kept old" in printed
    assert token.read_text() not in printed + done.stdout + done.stderr
    assert (tmp_path / "runs" / "submitted" / "rounds" / "0001" / "decision.json").exists()


@pytest.mark.parametrize(("content", "said"), [(None, "asks for a token"), ("0" * 64, "refused the token")])
def test_without_the_right_token_nothing_is_sent(guarded, tmp_path, content, said):
    address, _ = guarded
    environment = {}
    if content:
        (tmp_path / "token").write_text(content)
        environment["RAY_AUTH_TOKEN_PATH"] = str(tmp_path / "token")
    done = rsft("submit", write_config(tmp_path, "refused"), "--address", address, HOME=str(tmp_path), **environment)
    assert done.returncode == 2
    assert f"the cluster {said}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_is_stopped_and_its_run_goes_on_elsewhere(guarded, tmp_path):
    address, token = guarded
    environment = {"RAY_AUTH_TOKEN_PATH": str(token)}
    config = write_config(tmp_path, "stopped")
    assert rsft("submit", config, "--address", address, **environment).returncode == 0
    assert rsft("submit", config, "--address", address, **environment).returncode == 75  # already there
    run = tmp_path / "runs" / "stopped"
    deadline = time.monotonic() + TIMEOUT_S
    while not any(run.glob("rounds/0000/evaluation/attempts/*")):
        assert time.monotonic() < deadline, "the job never began"
        time.sleep(0.2)
    assert rsft("stop", "rsft-stopped", "--address", address, **environment).returncode == 0
    deadline = time.monotonic() + 60
    status = "RUNNING"
    while status not in ("STOPPED", "FAILED"):
        assert time.monotonic() < deadline, "the job never stopped"
        said = rsft("status", "rsft-stopped", "--job", "--address", address, **environment)
        status = json.loads(said.stdout)["status"]
    done = rsft("sample", config, "--quiet")
    assert done.returncode == 0, done.stderr

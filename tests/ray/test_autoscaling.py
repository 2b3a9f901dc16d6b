"""A cluster that adds nodes on demand: what a run needs is asked for, waited for, and given back.

The autoscaler is Ray's own; the nodes that it adds are processes on this machine, with GPUs that exist in its books
alone.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from running import NUM_PROMPTS, write_config

pytestmark = pytest.mark.ray

TIMEOUT_S = 400
ALIVE = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a head without GPUs, whose autoscaler may add two nodes with one each."""
    folder, port = tmp_path_factory.mktemp("scaling"), free_port()
    config = {
        "cluster_name": "scaling", "max_workers": 2, "idle_timeout_minutes": 0.2, "upscaling_speed": 10.0,
        "provider": {
            "type": "external", "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID, "gcs_address": f"127.0.0.1:{port}",
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 3}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "auth": {}, "docker": {}, "initialization_commands": [], "setup_commands": [], "head_setup_commands": [],
        "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [], "file_mounts": {},
        "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
    }  # fmt: skip
    (folder / "autoscaler.json").write_text(json.dumps(config))
    environment = os.environ | {
        "RAY_AUTH_MODE": "disabled", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    head = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=3",
         "--num-gpus=0", f"--autoscaling-config={folder / 'autoscaler.json'}", "--include-dashboard=false",
         "--disable-usage-stats", "--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={free_port()}"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while num_nodes(f"127.0.0.1:{port}") != 1:
        assert time.monotonic() < deadline, "the head never came up"
        assert head.poll() is None, "the head died"
    yield f"127.0.0.1:{port}"
    for child in [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]:
        child.kill()
    head.wait()


def num_nodes(address: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", ALIVE, address], capture_output=True, text=True, env=os.environ | DISABLED
    )
    return int(done.stdout) if done.returncode == 0 else 0


DISABLED = {"RAY_AUTH_MODE": "disabled"}


def rsft(*arguments):
    command = [sys.executable, "-m", "rsft_cluster", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ | DISABLED)


def scaling(folder, name, address, **changes):
    return write_config(
        folder, name, cluster={"address": address, "autoscaling": True, "wait_for_nodes_s": 200},
        sampling__generator="scripted", sampling__workers=2, sampling__num_gpus=1, sampling__num_cpus=0.5,
        training__workers=1, **changes,
    )  # fmt: skip


def test_what_the_cluster_lacks_is_said_before_a_run(address, tmp_path):
    config = scaling(tmp_path, "checked", address)
    done = rsft("check", config, "--address", address, "--json")
    assert done.returncode == 0, done.stderr
    said = [finding for finding in json.loads(done.stdout) if finding["about"] == "cluster"]
    assert said[1]["says"] == "has 1 node: 3 CPUs and 0 GPUs"
    assert said[2]["warns"]
    assert "one actor of sampling asks for 0.5 CPUs and 1 GPUs, and no node has as much" in said[2]["says"]
    done = rsft("check", config, "--address", address, "--set", "cluster.autoscaling=false")
    assert done.returncode == 2
    assert "cluster: one actor of sampling asks for 0.5 CPUs and 1 GPUs, and no node has as much" in done.stderr


def test_a_run_asks_for_nodes_waits_for_them_and_gives_them_back(address, tmp_path):
    done = rsft("sample", scaling(tmp_path, "scaled", address))
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "runs" / "scaled" / "rounds" / "0001" / "manifest.json").read_text())
    assert manifest["totals"]["num_candidates"] == 4 * NUM_PROMPTS
    deadline = time.monotonic() + 180
    while num_nodes(address) != 1:
        assert time.monotonic() < deadline, "the nodes were never given back"


def test_what_no_node_can_ever_hold_is_refused_with_its_name(address, tmp_path):
    config = scaling(tmp_path, "too-large", address)
    done = rsft("run", config, "--set", "sampling.num_gpus=8", "--set", "cluster.wait_for_nodes_s=5")
    assert done.returncode == 2
    assert "in 5 s the autoscaler brought no room: one actor of sampling asks for 0.5 CPUs and 8 GPUs" in done.stderr
    done = rsft("run", config, "--set", "cluster.autoscaling=false")
    assert done.returncode == 2
    assert "one actor of sampling asks for 0.5 CPUs and 1 GPUs, and no node has as much (1 node" in done.stderr

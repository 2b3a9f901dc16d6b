"""A Ray cluster of three hosts with token authentication, and a fourth host from which people send their runs.

Adversarially checked: everything that answers on the network asks for the token and shows it nowhere; the same run is
sent once; a host that is cut off or dies in the middle of sampling changes nothing but the time that it takes.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import hosts
import pytest
from comparing import FAST, NUM_UNITS, accepted, num_commits, sampled_on, started_on, write_run
from rays import REPOSITORY, RayCluster, wait_until

RUN_TIMEOUT_S = 300
AFTER_LOSS_S = 150
"""A cut takes some half a minute to notice; what was open there is then done again elsewhere."""

why = hosts.missing()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(why), reason=why)]


@pytest.fixture(scope="module")
def cluster():
    with hosts.network() as network:
        yield RayCluster(network, {"head": 1, "worker1": 2, "worker2": 2})


def submit(cluster: RayCluster, config: Path, *options: object, timeout: float = 120) -> str:
    """Send a run from the desk and return the job's id."""
    done = cluster.rsft("submit", config, "--address", cluster.dashboard, *options, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def status(cluster: RayCluster, job: str) -> dict:
    done = cluster.rsft("status", job, "--job", "--address", cluster.dashboard)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def printed(cluster: RayCluster, job: str) -> str:
    return cluster.rsft("logs", job, "--address", cluster.dashboard).stdout


APIS = (
    "/api/jobs/", "/api/version", "/nodes?view=summary", "/api/v0/nodes?detail=1", "/api/v0/actors?detail=1",
    "/api/v0/jobs?detail=1", "/api/v0/runtime_envs?detail=1", "/api/v0/workers?detail=1", "/api/cluster_status",
    "/api/component_activities", "/events",
)  # fmt: skip


@pytest.mark.parametrize("path", APIS)
def test_the_dashboard_answers_nobody_without_the_token(cluster, path):
    assert cluster.ask(path)[0] == 401
    assert cluster.ask(path, token="0" * 64)[0] == 403
    assert cluster.ask(path, token=cluster.token)[0] == 200


def test_nobody_sends_or_stops_jobs_without_the_token(cluster):
    job = json.dumps({"entrypoint": "touch /tmp/never"})
    assert cluster.ask("/api/jobs/", method="POST", body=job)[0] == 401
    assert cluster.ask("/api/jobs/", method="POST", body=job, token="0" * 64)[0] == 403
    assert cluster.ask("/api/jobs/x/stop", method="POST")[0] == 401
    assert cluster.ask("/api/jobs/x", method="DELETE")[0] == 401
    assert json.loads(cluster.ask("/api/jobs/", token=cluster.token)[1]) == []


JOIN = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print('IN', ray.cluster_resources())"
CLIENT = "import ray, sys; ray.init('ray://' + sys.argv[1]); print('IN', ray.cluster_resources())"


@pytest.mark.parametrize(
    "shown",
    [
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": None},
        {"RAY_AUTH_MODE": "disabled"},
    ],
)
@pytest.mark.parametrize(("program", "port"), [(JOIN, 6379), (CLIENT, 10001)])
def test_nobody_joins_without_the_token(cluster, program, port, shown):
    """From a node of the cluster, whose own Ray is in: what is refused is the newcomer alone."""
    command = [sys.executable, "-c", program, f"{cluster.head.address}:{port}"]
    outside = {"RAY_AUTH_TOKEN_PATH": None, "RAY_gcs_server_port_wait_time_s": "3", **shown}
    began = time.monotonic()
    done = cluster.nodes["worker1"].run(command, env=outside, timeout=120)
    assert done.returncode != 0
    assert "IN {" not in done.stdout
    assert "oken" in done.stderr or "Unauthenticated" in done.stderr
    assert time.monotonic() - began < 60


def test_whoever_has_the_token_joins(cluster):
    for program, port in ((JOIN, 6379), (CLIENT, 10001)):
        command = [sys.executable, "-c", program, f"{cluster.head.address}:{port}"]
        done = cluster.nodes["worker1"].run(command, timeout=120)
        assert "IN {" in done.stdout, done.stderr


@pytest.mark.parametrize(("shown", "said"), [(None, "asks for a token"), ("0" * 64, "refused the token")])
def test_without_the_right_token_nothing_is_sent(cluster, project, shown, said):
    env = {"RAY_AUTH_TOKEN": shown} if shown else {}
    config = write_run(project, "refused")
    for command in (["submit", config], ["jobs"], ["logs", "x"], ["stop", "x"], ["status", "x", "--job"]):
        done = cluster.rsft(*command, "--address", cluster.dashboard, token=False, **env)
        assert done.returncode == 2, command
        assert f"the cluster {said}" in done.stderr
        assert "Traceback" not in done.stderr
    assert json.loads(cluster.ask("/api/jobs/", token=cluster.token)[1]) == []


def test_a_run_does_not_join_without_the_right_token(cluster, project):
    config = write_run(project, "outside", cluster__address=cluster.gcs)
    done = cluster.rsft(
        "sample", config, host=cluster.nodes["worker1"], token=False, RAY_AUTH_TOKEN="0" * 64, RAY_AUTH_TOKEN_PATH=None
    )
    assert done.returncode == 2
    assert "the cluster refused the token, or got none" in done.stderr


def test_the_same_run_sent_twice_at_once_is_one_job(cluster, project, undisturbed):
    driver = {"num_cpus": 0.5, "memory_bytes": 50_000_000, "resources": {"driver": 1}}
    config = write_run(project, "twice", sampling__generator=FAST, cluster__driver=driver)
    dry = cluster.rsft("submit", config, "--address", cluster.dashboard, "--dry-run")
    sent = json.loads(dry.stdout)
    assert sent["files"] == ["config.json"]
    assert json.loads(cluster.ask("/api/jobs/", token=cluster.token)[1]) == []

    both = [
        cluster.desk.popen(
            [sys.executable, "-m", "rsft_cluster", "submit", str(config), "--address", cluster.dashboard, *more],
            env={"PYTHONPATH": str(REPOSITORY), "RAY_AUTH_TOKEN_PATH": str(cluster.token_file)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for more in (["--follow"], ["--follow"])
    ]  # fmt: skip
    told = [process.communicate(timeout=RUN_TIMEOUT_S) for process in both]
    cluster.printed += [text for pair in told for text in pair]
    assert sorted(process.returncode for process in both) == [0, 75], told
    (first,) = [pair for process, pair in zip(both, told, strict=True) if process.returncode == 0]
    assert first[0] == "rsft-twice\n"
    assert "round 1: train" in first[1]
    (second,) = [pair for process, pair in zip(both, told, strict=True) if process.returncode == 75]
    assert "job rsft-twice is already" in second[1]

    (job,) = json.loads(cluster.ask("/api/jobs/", token=cluster.token)[1])
    assert job["submission_id"] == sent["submission_id"] == "rsft-twice"
    assert job["entrypoint"] == sent["entrypoint"]
    assert job["driver_info"]["node_ip_address"] == cluster.head.address
    assert sent["entrypoint_num_cpus"] == 0.5
    assert sent["entrypoint_memory"] == 50_000_000
    assert sent["entrypoint_resources"] == {"driver": 1}
    stored = json.loads((project / "runs" / "twice" / "config.json").read_text())
    assert stored == sent["config"]
    assert status(cluster, "rsft-twice")["status"] == "SUCCEEDED"
    assert first[1].splitlines()[-1].strip() in printed(cluster, "rsft-twice")
    listed = cluster.rsft("jobs", "--json", "--address", cluster.dashboard)
    assert [(j["job"], j["status"]) for j in json.loads(listed.stdout)] == [("rsft-twice", "SUCCEEDED")]
    assert accepted(project / "runs" / "twice") == undisturbed


def test_a_host_cut_off_in_the_middle_changes_nothing(cluster, project, undisturbed):
    config, run = write_run(project, "cut"), project / "runs" / "cut"
    job = submit(cluster, config)
    wait_until(lambda: num_commits(run) >= 2, RUN_TIMEOUT_S, f"sampling never began: {printed(cluster, job)}")
    assert "worker1" in started_on(run)
    cluster.nodes.pop("worker1").cut()
    assert num_commits(run) < NUM_UNITS
    sealed = (run / "rounds" / "0001" / "manifest.json").exists
    wait_until(sealed, AFTER_LOSS_S, f"the run did not go on: {printed(cluster, job)}")
    assert accepted(run) == undisturbed

    stopped = cluster.rsft("stop", job, "--address", cluster.dashboard)
    assert (stopped.returncode, stopped.stderr.strip()) == (0, "stopping")
    ended = ("STOPPED", "FAILED")
    wait_until(lambda: status(cluster, job)["status"] in ended, 60, "the job did not stop")


def test_a_host_that_dies_is_replaced_by_one_that_comes_later(cluster, project, undisturbed):
    cluster.start("worker3", 2)
    wait_until(lambda: cluster.num_living() == 3, RUN_TIMEOUT_S, "the new host never joined")
    gate, run = project / "gate", project / "runs" / "died"
    generator = {"use": "gated:Gated", "params": {"gate": str(gate), "delay_s": 0.2}}
    (project / "gated.py").write_text((REPOSITORY / "tests" / "cluster" / "gated.py").read_text())
    job = submit(cluster, write_run(project, "died", sampling__generator=generator, sampling__workers=3))
    wait_until(lambda: num_commits(run) >= 2, RUN_TIMEOUT_S, f"sampling never began: {printed(cluster, job)}")
    gate.touch()
    assert num_commits(run) < NUM_UNITS - 3
    assert "worker2" in started_on(run)
    cluster.lose("worker2")
    cluster.start("worker4", 2)
    wait_until(lambda: "worker4" in started_on(run), AFTER_LOSS_S, f"no work went there: {printed(cluster, job)}")
    gate.unlink()
    wait_until(lambda: status(cluster, job)["status"] != "RUNNING", RUN_TIMEOUT_S, f"no end: {printed(cluster, job)}")
    assert status(cluster, job)["exit_code"] == 0, printed(cluster, job)
    assert "worker4" in sampled_on(run)
    assert accepted(run) == undisturbed


def test_the_token_stands_nowhere(cluster, project):
    pages = [cluster.ask(path, token=cluster.token) for path in ("/", *APIS)]
    assert [code for code, _ in pages] == [200] * len(pages)
    assert cluster.printed
    files = [p for folder in (cluster.folder, project) for p in folder.rglob("*") if p.is_file()]
    assert len(files) > 100
    found = [path for path in files if cluster.token.encode() in path.read_bytes()]
    assert found == [cluster.token_file]
    assert cluster.token_file.stat().st_mode & 0o777 == 0o600
    processes = cluster.head.run(["ps", "axww"], timeout=20).stdout
    assert "raylet" in processes
    assert not [text for text in (*cluster.printed, processes) if cluster.token in text]

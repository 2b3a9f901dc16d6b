"""A Ray cluster of three hosts with token authentication, and a fourth host from which people send their runs.

Adversarially checked: everything that answers on the network asks for the token and shows it nowhere; the same run is
sent once; a host that is cut off or dies in the middle of sampling changes nothing but the time that it takes.
"""

import json
import subprocess
import sys

import hosts
import pytest
from comparing import NUM_UNITS, accepted, num_commits, num_samplers, started_on, worked_on, write_run
from rays import COMMAND_TIMEOUT_S, REPOSITORY, RayCluster, wait_until

RUN_TIMEOUT_S = 500
AFTER_LOSS_S = 150
"""A cut takes some half a minute to notice; what was open there is then done again elsewhere."""

STOP_TIMEOUT_S = 60

why = hosts.missing()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(why), reason=why)]


@pytest.fixture(scope="module")
def cluster():
    with hosts.network() as network:
        yield RayCluster(network, {"head": 1, "worker1": 2, "worker2": 2})


def worker(cluster: RayCluster) -> hosts.Host:
    return next(host for name, host in cluster.nodes.items() if name != "head")


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
    assert cluster.submitted() == []


JOIN = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print('IN', ray.cluster_resources())"
CLIENT = "import ray, sys; ray.init('ray://' + sys.argv[1]); print('IN', ray.cluster_resources())"


WRONG = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}


def join(cluster: RayCluster, program: str, port: int, **shown: str | None) -> subprocess.CompletedProcess:
    """Join from a node of the cluster, whose own Ray is in: what is refused can be the newcomer alone."""
    command = [sys.executable, "-c", program, f"{cluster.head.address}:{port}"]
    return worker(cluster).run(command, env={"RAY_gcs_server_port_wait_time_s": "3", **shown}, timeout=120)


@pytest.mark.parametrize(
    "shown", [WRONG, {"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_MODE": "disabled"}], ids=["wrong", "none", "disabled"]
)
def test_nobody_joins_without_the_token(cluster, shown):
    done = join(cluster, JOIN, 6379, RAY_AUTH_TOKEN_PATH=None, **shown)
    assert done.returncode != 0
    assert "IN {" not in done.stdout
    assert "token" in done.stderr.lower() or "Unauthenticated" in done.stderr


def test_nobody_connects_as_a_client_without_the_token(cluster):
    done = join(cluster, CLIENT, 10001, RAY_AUTH_TOKEN_PATH=None, **WRONG)
    assert done.returncode != 0
    assert "IN {" not in done.stdout


@pytest.mark.parametrize(("program", "port"), [(JOIN, 6379), (CLIENT, 10001)], ids=["node", "client"])
def test_whoever_has_the_token_gets_in(cluster, program, port):
    done = join(cluster, program, port)
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
    assert cluster.submitted() == []


def test_a_run_does_not_join_without_the_right_token(cluster, project):
    config = write_run(project, "outside", cluster__address=cluster.gcs)
    done = cluster.rsft(
        "sample", config, host=worker(cluster), token=False, RAY_AUTH_TOKEN="0" * 64, RAY_AUTH_TOKEN_PATH=None
    )
    assert done.returncode == 2
    assert "the cluster refused the token, or got none" in done.stderr


@pytest.fixture(scope="module")
def sent(cluster, project):
    """A run sent twice at once: what a dry run says of it, and stdout, stderr and exit code of both."""
    driver = {"num_cpus": 0.5, "memory_bytes": 50_000_000, "resources": {"driver": 1}}
    config = write_run(project, "cut", cluster__driver=driver)
    dry = cluster.rsft("submit", config, "--address", cluster.dashboard, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert cluster.submitted() == []
    both = [cluster.begin("submit", config, "--address", cluster.dashboard) for _ in range(2)]
    told = [(*process.communicate(timeout=COMMAND_TIMEOUT_S), process.returncode) for process in both]
    cluster.printed += [text for out, err, _ in told for text in (out, err)]
    return json.loads(dry.stdout), sorted(told, key=lambda one: one[2])


def test_the_same_run_sent_twice_at_once_is_one_job(cluster, sent):
    _, (first, second) = sent
    assert first[0] == "rsft-cut\n"
    assert (first[2], second[2]) == (0, 75), sent
    assert "job rsft-cut is already" in second[1]
    assert "INFO" not in first[1] + second[1]
    assert [job["submission_id"] for job in cluster.submitted()] == ["rsft-cut"]


def test_what_a_dry_run_says_is_what_arrives(cluster, project, sent):
    said, _ = sent
    stored = project / "runs" / "cut" / "config.json"
    wait_until(stored.exists, RUN_TIMEOUT_S, f"the run never began: {printed(cluster, 'rsft-cut')}")
    (job,) = cluster.submitted()
    assert job["submission_id"] == said["submission_id"]
    assert job["entrypoint"] == said["entrypoint"]
    assert set(job["runtime_env"]) == set(said["runtime_env"])
    assert said["files"] == ["config.json"]
    assert json.loads(stored.read_text()) == said["config"]
    # Placed by what was asked for: the resource is the head's alone.
    assert job["driver_info"]["node_ip_address"] == cluster.head.address
    (supervisor,) = [actor for actor in cluster.actors() if actor["class_name"] == "JobSupervisor"]
    asked = {"CPU": said["entrypoint_num_cpus"], "memory": said["entrypoint_memory"], **said["entrypoint_resources"]}
    assert supervisor["required_resources"] == asked


def test_a_host_cut_off_in_the_middle_changes_nothing(cluster, project, undisturbed, sent):
    job, run = "rsft-cut", project / "runs" / "cut"

    def begun() -> bool:
        return num_commits(run) >= 2 and "worker" in max(started_on(run))

    wait_until(begun, RUN_TIMEOUT_S, f"sampling never began: {printed(cluster, job)}")
    cluster.nodes.pop(max(started_on(run))).cut()
    assert num_commits(run) < NUM_UNITS
    sealed = (run / "rounds" / "0001" / "manifest.json").exists
    wait_until(sealed, AFTER_LOSS_S, f"the run did not go on: {printed(cluster, job)}")
    assert accepted(run) == undisturbed


def test_a_job_is_stopped_and_lets_go_of_its_run(cluster, project, sent):
    stopped = cluster.rsft("stop", "rsft-cut", "--address", cluster.dashboard)
    assert (stopped.returncode, stopped.stderr.strip()) == (0, "stopping")
    wait_until(lambda: status(cluster, "rsft-cut")["status"] == "STOPPED", STOP_TIMEOUT_S, "the job did not stop")
    (lease,) = (project / "runs" / "cut" / "lease").glob("*.json")
    assert json.loads(lease.read_text())["released"]
    again = cluster.rsft("stop", "rsft-cut", "--address", cluster.dashboard)
    assert (again.returncode, again.stderr.strip()) == (0, "was not running")


def test_a_host_that_dies_is_replaced_by_one_that_comes_later(cluster, project, undisturbed):
    cluster.start("worker3", 2)
    wait_until(lambda: cluster.num_living() == 3, RUN_TIMEOUT_S, "the new host never joined")
    gate, run = project / "gate", project / "runs" / "died"
    generator = {"use": "gated:Gated", "params": {"gate": str(gate), "delay_s": 0.2}}
    (project / "gated.py").write_text((REPOSITORY / "tests" / "cluster" / "gated.py").read_text())
    config = write_run(project, "died", sampling__generator=generator, sampling__workers=3)
    job, follower = "rsft-died", cluster.begin("submit", config, "--address", cluster.dashboard, "--follow")
    # The gate closes before the round's first unit: every sampler begins one, and none is done.
    evaluated = (run / "rounds" / "0000" / "evaluation" / "manifest.json").exists
    wait_until(evaluated, RUN_TIMEOUT_S, f"no policy was evaluated: {printed(cluster, job)}")
    gate.touch()
    wait_until(lambda: num_samplers(run) == 3, RUN_TIMEOUT_S, f"sampling never began: {printed(cluster, job)}")
    assert num_commits(run) < NUM_UNITS - 3
    victim = max(started_on(run))
    assert "worker" in victim
    cluster.lose(victim)
    cluster.start("worker4", 2)
    # The others hold three of the four actors, so one of them, a sampler or the scorer, has to go to the new host.
    working = "MapWorker(MapBatches("
    wait_until(
        lambda: any(name.startswith(working) for name in cluster.actors_on("worker4")),
        AFTER_LOSS_S, f"no work went there: {printed(cluster, job)}",
    )  # fmt: skip
    gate.unlink()
    out, err = follower.communicate(timeout=RUN_TIMEOUT_S)
    cluster.printed += [out, err]
    assert (follower.returncode, out) == (0, f"{job}\n"), err
    assert "round 1: train" in err
    assert status(cluster, job)["status"] == "SUCCEEDED"
    listed = json.loads(cluster.rsft("jobs", "--json", "--address", cluster.dashboard).stdout)
    assert {j["job"]: j["status"] for j in listed} == {"rsft-cut": "STOPPED", job: "SUCCEEDED"}
    assert "round 1: train" in printed(cluster, job)
    assert "worker4" in worked_on(run)
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

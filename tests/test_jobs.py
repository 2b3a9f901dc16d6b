"""Jobs without a cluster: what would travel, and what is said when nobody, a stranger or a guard answers.

A server on loopback plays the dashboard; what a real one does is in tests/ray.
"""

import http.server
import json
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from projects import write_project

from rsft_cluster.cluster import jobs
from rsft_cluster.cluster.connection import explain_connection
from rsft_cluster.cluster.needs import needs
from rsft_cluster.config.file import load_config
from rsft_cluster.errors import AlreadyRunningError, ConfigError, StageError

VERSION = {"version": "4", "ray_version": "2.60.0", "ray_commit": "c"}


def job(status="RUNNING", submission_id="rsft-sums"):
    return {"type": "SUBMISSION", "submission_id": submission_id, "status": status, "entrypoint": "e"}


@contextmanager
def answering(status=200, jobs_there=(), token=None, rival=None):
    """A server that answers as a dashboard does: a version, a list of jobs; yields its URL and what it was asked.

    A `rival` is a job that somebody else has sent by the time that ours arrives.
    """
    asked, there = [], list(jobs_there)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.command, self.path))
            admitted = token is None or self.headers.get("Authorization") == f"Bearer {token}"
            body = VERSION if self.path.startswith("/api/version") else there
            payload = json.dumps(body if admitted and status == 200 else {"error": "no"}).encode()
            self.send_response(status if admitted else 401)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_DELETE = do_GET

        def do_POST(self):
            if rival is None:
                self.do_GET()
                return
            there.append(rival)
            self.send_response(500)
            self.end_headers()
            self.wfile.write(b"Job with submission_id rsft-sums already exists")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RSFT_ALLOW_UNAUTHENTICATED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def submission(tmp_path):
    path = write_project(tmp_path)
    (tmp_path / "rules.py").write_text("def good(candidate):\n    return True\n")
    with jobs.packed(load_config(path), path) as packed:
        yield packed


def refusal(address, error=ConfigError):
    began = time.monotonic()
    with pytest.raises(error) as caught:
        jobs.describe(address)
    assert time.monotonic() - began < 2
    assert str(caught.value).startswith(f"--address {address}: ")
    return str(caught.value)


def test_a_submission_holds_the_resolved_config_and_the_modules_beside_it(submission, tmp_path):
    sent = {path.name for path in Path(submission.working_dir).iterdir()}
    assert sent == {"config.json", "rules.py"}
    config = load_config(f"{submission.working_dir}/config.json")
    assert config.prompts.paths == (str(tmp_path / "prompts.jsonl"),)
    assert submission.submission_id == "rsft-sums"
    assert submission.entrypoint == "exec python -m rsft_cluster run config.json"
    (package,) = submission.py_modules
    assert package.endswith("/rsft_cluster")


def test_code_of_a_model_is_trusted_only_where_the_user_said_so(tmp_path):
    path = write_project(tmp_path)
    with jobs.packed(load_config(path), path, trust_remote_code=True) as packed:
        assert packed.entrypoint.endswith(" --trust-remote-code")


def test_a_driver_asks_for_what_the_config_says_and_else_for_nothing(submission, tmp_path):
    assert set(submission.request()) == {"submission_id", "entrypoint", "runtime_env"}
    path = tmp_path / "run.yaml"
    asked = ["cluster.driver.num_cpus=0.5", "cluster.driver.memory_bytes=1000", "cluster.driver.resources={head: 1}"]
    with jobs.packed(load_config(path, asked), path) as packed:
        asking = packed.request()
    assert asking["entrypoint_num_cpus"] == 0.5
    assert asking["entrypoint_memory"] == 1000
    assert asking["entrypoint_resources"] == {"head": 1}
    assert needs(load_config(path, asked)).num_cpus == needs(load_config(path)).num_cpus + 0.5


def test_no_token_travels(submission, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-token")
    assert "secret" not in json.dumps(submission.runtime_env())


@pytest.mark.parametrize(
    "address",
    ["foo", "127.0.0.1:8265", "http://", "http://h:x", "http://h:99999", "http://h:0", "http://[::1", "ray://h:1", ""],
)
def test_what_is_no_url_of_a_dashboard_is_told_what_one_looks_like(address):
    assert "expected the URL of a Ray dashboard, like http://127.0.0.1:8265" in refusal(address)


def test_a_closed_port_is_told_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "no Ray dashboard answers there (Connection refused)" in refusal(f"http://127.0.0.1:{port}")


def test_a_name_that_nobody_has_is_told():
    assert "no Ray dashboard answers there" in refusal("http://no-such-host.invalid:8265")


@pytest.mark.parametrize("status", [404, 500, 302])
def test_another_web_server_is_no_dashboard(status):
    with answering(status) as (address, _):
        assert f"what answers there is no Ray dashboard (HTTP status {status})" in refusal(address)


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\n\r\n<html>", b"\x00\x00\x04"])
def test_something_else_on_the_port_is_no_dashboard(greeting):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(greeting)

        threading.Thread(target=answer, daemon=True).start()
        assert "Ray dashboard" in refusal(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_a_guarded_cluster_asks_for_a_token_and_refuses_a_wrong_one(monkeypatch, tmp_path):
    with answering(token="right") as (address, _):
        assert "the cluster asks for a token. Put the cluster's token into a file and name it in" in refusal(address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        assert "the cluster refused the token of RAY_AUTH_TOKEN. Put the" in refusal(address)
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        (tmp_path / "token").write_text("right\n")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
        assert jobs.describe(address) == []


def test_a_token_file_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/no/such/token")
    with answering(token="right") as (address, _), pytest.raises(ConfigError) as caught:
        jobs.describe(address)
    assert str(caught.value) == "RAY_AUTH_TOKEN_PATH: /no/such/token: cannot be read: No such file or directory"


def test_a_cluster_that_lets_everybody_in_is_refused_unless_it_is_on_this_machine(monkeypatch):
    for host in ("127.0.0.1", "localhost", "::1"):
        jobs.refuse_open(f"http://{host}:8265", host)
    with pytest.raises(ConfigError, match="this cluster runs whatever anybody sends it, without a token"):
        jobs.refuse_open("http://cluster:8265", "cluster")
    monkeypatch.setenv("RSFT_ALLOW_UNAUTHENTICATED", "1")
    jobs.refuse_open("http://cluster:8265", "cluster")


def test_the_token_is_not_shown_to_a_cluster_before_it_asked():
    with answering() as (address, asked):
        assert jobs.describe(address) == []
    assert asked[0] == ("GET", "/api/jobs/")


def test_only_runs_of_ours_are_listed():
    with answering(jobs_there=[job(), job(submission_id="somebody-elses")]) as (address, _):
        assert [(j["job"], j["status"]) for j in jobs.describe(address)] == [("rsft-sums", "RUNNING")]


def test_a_run_that_is_there_already_is_not_sent_twice(submission):
    with answering(jobs_there=[job("PENDING")]) as (address, asked), pytest.raises(AlreadyRunningError) as caught:
        jobs.submit(submission, address)
    assert "job rsft-sums is already pending there; `rsft logs` shows what it does, `rsft stop` ends it" in str(
        caught.value
    )
    assert caught.value.exit_code == 75
    assert not [path for method, path in asked if method in ("POST", "DELETE")]


def test_a_run_that_somebody_sends_at_the_same_moment_is_not_sent_twice(submission):
    with answering(rival=job()) as (address, _), pytest.raises(AlreadyRunningError) as caught:
        jobs.submit(submission, address)
    assert "job rsft-sums is already running there" in str(caught.value)
    with answering(rival=job("FAILED")) as (address, _), pytest.raises(StageError, match="already exists"):
        jobs.submit(submission, address)


def test_why_a_cluster_could_not_be_joined_is_told_in_words():
    behind = RuntimeError("Failed to connect to GCS. Unauthenticated: InvalidAuthToken")
    refused = ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:40123")
    assert explain_connection(refused).startswith("no Ray cluster answers there (Failed to connect")
    refused.__cause__ = behind
    assert "the cluster refused the token, or got none. Put the cluster's token" in explain_connection(refused)

"""`rsft schedule`: the files that one config makes for every scheduler, and what starts a night in Kubernetes.

Adversarially checked: nights begin once a day at their time in UTC whatever zone a machine is in, paths with spaces and
percent signs survive every syntax on the way, and the pod that creates a night's job creates it once.
"""

import ast
import http.server
import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import typer.main
from deploying import ROOT, example, manifests
from projects import settings, write_project

from rsft_cluster.cli import app
from rsft_cluster.cluster.needs import needs
from rsft_cluster.config import NightlyConfig, RunConfig
from rsft_cluster.config.parts import most
from rsft_cluster.errors import ConfigError, StageError
from rsft_cluster.scheduling import kuberay, starter
from rsft_cluster.scheduling.cronjob import JOB_NAME
from rsft_cluster.scheduling.installing import install
from rsft_cluster.scheduling.kinds import KINDS, ON_KUBERNETES
from rsft_cluster.scheduling.order import Kubernetes, cron_schedule, on_calendar
from rsft_cluster.scheduling.pods import groups
from rsft_cluster.scheduling.rules import DNS_1035, MAX_NAMES

ODD = Path("/srv/our runs/100% $HOME/it's")


def config(**changes) -> RunConfig:
    return RunConfig.model_validate(settings(store="s3://bucket/runs", **changes))


def remote(**changes) -> RunConfig:
    """A config whose every place is a URI."""
    places = {"policy__model": "org/model", "prompts__paths": ["s3://b/p"], "evaluation__prompts__paths": ["s3://b/h"]}
    return config(**places, **changes)


def made(kind: str, **changes) -> dict[str, str]:
    return {file.name: file.text for file in KINDS[kind](example(**changes))}


# ---- times -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nightly", "cron", "calendar"),
    [
        ({}, "0 2 * * *", "*-*-* 02:00:00 UTC"),
        ({"at": "23:45", "weekdays": ("sun", "mon")}, "45 23 * * 0,1", "Mon,Sun *-*-* 23:45:00 UTC"),
        ({"at": "00:07", "weekdays": ("fri", "fri")}, "7 0 * * 5", "Fri *-*-* 00:07:00 UTC"),
    ],
)
def test_times_are_written_as_each_scheduler_reads_them(nightly, cron, calendar):
    assert cron_schedule(NightlyConfig(**nightly)) == cron
    assert on_calendar(NightlyConfig(**nightly)) == calendar
    if shutil.which("systemd-analyze"):
        done = subprocess.run(["systemd-analyze", "calendar", calendar], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert NightlyConfig(**nightly).at in next(x for x in done.stdout.splitlines() if "Next elapse" in x)


def line_of(crontab: str) -> tuple[set[int], str]:
    """The minutes at which cron starts a line, and the shell's command that it makes of it."""
    (line,) = [line for line in crontab.splitlines() if line[:1].isdigit()]
    minutes, hour, day, month, weekday, command = line.split(" ", 5)
    assert (hour, day, month, weekday) == ("*", "*", "*", "*")
    assert "%" not in command.replace(r"\%", "")
    return {int(m) for m in minutes.split(",")}, command.replace(r"\%", "%")


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """Set what `date` says; everything else of it is the machine's own."""
    folder = tmp_path / "clock"
    folder.mkdir()
    shim = folder / "date"
    shim.write_text(f'#!/bin/sh\nexec {shutil.which("date")} -d "@$NOW" "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return lambda moment: monkeypatch.setenv("NOW", str(int(moment.timestamp())))


@pytest.mark.parametrize("zone", ["UTC", "America/St_Johns", "Asia/Kathmandu", "Europe/Berlin", "Pacific/Chatham"])
def test_a_crontab_begins_each_night_once_at_its_time_in_utc_in_every_zone(zone, clock):
    nightly = {"at": "01:10", "weekdays": ["tue", "sat"]}
    ((_, text),) = made("cron", config=config(nightly=nightly)).items()
    assert "CRON_TZ=UTC" in text.splitlines()
    minutes, command = line_of(text)
    guard = command.split(" && ")[0]
    began, moment = [], datetime(2026, 10, 23, 23, 0, tzinfo=UTC)  # across the end of summer time in Europe
    while moment < datetime(2026, 10, 28, 3, 0, tzinfo=UTC):
        # A cron that heeds no CRON_TZ reads the minutes in the machine's zone.
        if moment.astimezone(ZoneInfo(zone)).minute in minutes and moment.hour in (0, 1, 2, 23):
            clock(moment + timedelta(seconds=3))
            if subprocess.run(["sh", "-c", guard], capture_output=True).returncode == 0:
                began.append(moment)
        moment += timedelta(minutes=5)
    assert began == [datetime(2026, 10, 24, 1, 10, tzinfo=UTC), datetime(2026, 10, 27, 1, 10, tzinfo=UTC)]


def test_cron_itself_reads_the_crontab(tmp_path):
    if not shutil.which("crontab"):
        pytest.skip("needs crontab")
    usage = subprocess.run(["crontab", "--help"], capture_output=True, text=True)
    if "[-n]" not in usage.stderr + usage.stdout:
        pytest.skip("this crontab does not only look (-n)")
    ((name, text),) = made("cron", config=config(), folder=ODD).items()
    for content, reads in [(text, True), (text.replace("0,15,30,45", "0,15,30,65"), False)]:
        (tmp_path / name).write_text(content)
        assert (subprocess.run(["crontab", "-n", tmp_path / name], capture_output=True).returncode == 0) == reads


def test_a_crontabs_command_runs_as_it_was_given(tmp_path, clock):
    folder = tmp_path / "our runs 100% $HOME it's"
    folder.mkdir()
    shows = folder / "python"
    shows.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    shows.chmod(0o755)
    changes = {"python": str(shows), "folder": folder, "path": folder / "n.yaml", "words": ("--set", "a={b: 1}")}
    ((_, text),) = made("cron", config=config(), **changes).items()
    clock(datetime(2026, 11, 26, 2, 0, 1, tzinfo=UTC))
    _, command = line_of(text)
    assert subprocess.run(["sh", "-c", command]).returncode == 0
    said = (folder / "rsft-sums.log").read_text().splitlines()
    assert said == [
        str(folder), "-m", "rsft_cluster", "nightly", str(folder / "n.yaml"), "--set", "a={b: 1}", "--quiet"
    ]  # fmt: skip


# ---- systemd, Airflow, Slurm -------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_reads_the_units_without_a_complaint(tmp_path):
    place = tmp_path / "our runs 100%"
    place.mkdir()
    files = made("systemd", config=config(), python=sys.executable, folder=place, path=place / "n.yaml")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    paths = [str(tmp_path / name) for name in files]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *paths], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / paths[1]).write_text(files["rsft-sums.service"].replace("Type=oneshot", "Typ=oneshot"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *paths], capture_output=True, text=True)
    assert "Typ" in done.stderr


def test_a_service_says_what_is_final_and_what_may_be_tried_again():
    service = made("systemd", config=config())["rsft-sums.service"]
    assert "RestartPreventExitStatus=2 65 66\n" in service  # config, nothing accepted, diverged
    assert "SuccessExitStatus=75\n" in service  # already running
    assert "Persistent=true\n" in made("systemd", config=config())["rsft-sums.timer"]


AIRFLOW_NAMES = {
    "DAG": {"dag_id", "schedule", "start_date", "catchup", "max_active_runs", "tags"},
    "BashOperator": {
        "task_id", "bash_command", "cwd", "append_env", "skip_on_exit_code", "retries", "retry_delay",
        "execution_timeout",
    },
}  # fmt: skip
"""Of Airflow 2.10 and 3, those that are used here."""


def test_the_dag_is_python_and_says_only_what_airflow_knows():
    ((name, text),) = made("airflow", config=config(run="a-b.c", nightly={"max_hours": 2.5}), folder=ODD).items()
    assert name == "rsft_a_b_c.py"
    tree = ast.parse(text)
    calls = {node.func.id: node for node in ast.walk(tree) if isinstance(node, ast.Call) and hasattr(node.func, "id")}
    assert {name: {k.arg for k in call.keywords} for name, call in calls.items() if name in AIRFLOW_NAMES} == {
        "DAG": AIRFLOW_NAMES["DAG"], "BashOperator": AIRFLOW_NAMES["BashOperator"]
    }  # fmt: skip
    said = {k.arg: k.value for k in calls["BashOperator"].keywords}
    assert ast.literal_eval(said["cwd"]) == str(ODD)
    assert ast.literal_eval(said["skip_on_exit_code"]) == 75
    assert "{% if data_interval_end %} --date {{ data_interval_end | ds }}{% endif %}" in text
    assert "timedelta(hours=3.5)" in text


def test_airflow_loads_the_dag(tmp_path):
    pytest.importorskip("airflow")
    ((name, text),) = made("airflow", config=config()).items()
    (tmp_path / name).write_text(text)
    from airflow.models import DagBag

    bag = DagBag(dag_folder=str(tmp_path), include_examples=False)
    assert bag.import_errors == {}
    assert list(bag.dags) == ["rsft-sums"]


def directives(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_a_batch_script_asks_for_what_the_config_needs():
    wide = config(sampling__workers=20, sampling__num_gpus=1, training__workers=2, nightly={"max_hours": 5})
    files = made("slurm", config=wide)
    said = directives(files["rsft-sums.sbatch"])
    assert int(said["nodes"]) * int(said["gpus-per-node"]) >= needs(wide).num_gpus
    assert int(said["nodes"]) * int(said["cpus-per-task"]) >= needs(wide).num_cpus
    assert (said["time"], said["signal"], said["dependency"]) == ("300", "B:TERM@300", "singleton")
    assert "requeue" in said
    assert "gpus-per-node" not in directives(made("slurm", config=config())["rsft-sums.sbatch"])
    assert "sbatch --parsable rsft-sums.sbatch" in files["rsft-sums.crontab"]


def test_a_batch_script_hands_on_odd_paths_and_words(tmp_path):
    script = made("slurm", config=config(), path=ODD / "n.yaml", words=("--set", "a={b: 1}"))["rsft-sums.sbatch"]
    path = tmp_path / "s.sbatch"
    path.write_text(script)
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    assert subprocess.run(
        ["bash", "-n", "/dev/stdin"], input=script + "\nif", text=True, capture_output=True
    ).returncode
    body = script.splitlines()
    start = next(i for i, line in enumerate(body) if line.startswith("RSFT_COMMAND="))
    shows = "\n".join([*body[start : start + 5], 'eval "w=($RSFT_OPTIONS)"', 'printf "%s\\n" "$RSFT_CONFIG" "${w[@]}"'])
    env = {k: v for k, v in os.environ.items() if not k.startswith("RSFT_")}
    done = subprocess.run(["bash", "-c", shows], capture_output=True, text=True, env=env)
    assert done.stdout.splitlines()[0] == str(ODD / "n.yaml")
    assert done.stdout.splitlines()[-3:] == ["--set", "a={b: 1}", "--quiet"]


# ---- Kubernetes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["a", "credit.night", "x" * 63, "0-1_2", "ends-", f"{'y' * 62}."])
def test_names_are_valid_and_tell_runs_apart(run):
    name = kuberay.base_name(run)
    dated = kuberay.dated_name(name, date(2026, 12, 31))
    for kind, text in [("RayCronJob", name), ("RayCluster", name), ("CronJob", name), ("RayJob", dated)]:
        assert len(text) <= MAX_NAMES[kind]
        assert DNS_1035.fullmatch(text)
    others = [run.replace(".", "-"), run.replace("_", "-"), run[:40], f"{run}a"]
    assert name not in {kuberay.base_name(other) for other in others if other != run and other}


SIZES = {
    "cpus": {"scoring__workers": 3},
    "gpus": {"sampling__workers": 4, "sampling__num_gpus": 1, "training__workers": 2, "training__num_gpus": 1},
    "halves": {"sampling__workers": 5, "sampling__num_gpus": 0.5, "scoring__workers": 3, "scoring__num_gpus": 0.25},
    "several": {"sampling__workers": 3, "sampling__num_gpus": 2, "sampling__num_cpus": 6, "training__num_gpus": 8},
    "range": {
        "sampling__workers": {"min": 1, "max": 6},
        "sampling__num_gpus": 1,
        "scoring__workers": {"min": 1, "max": 20},
    },
    "many": {"scoring__workers": 70, "scoring__num_cpus": 1.5, "evaluation__workers": 9},
}


@pytest.mark.parametrize("size", SIZES)
def test_groups_have_a_place_for_every_worker(size):
    wide = remote(**SIZES[size])
    found = {group.name: group for group in groups(wide)}
    samplers = max(most(wide.sampling.workers), wide.evaluation.workers or 0)
    asked = {
        "samplers": (samplers, wide.sampling), "scorers": (most(wide.scoring.workers), wide.scoring),
        "trainers": (wide.training.workers, wide.training),
    }  # fmt: skip
    for name, (workers, part) in asked.items():
        group = found[name]
        by_gpu = int(group.num_gpus / part.num_gpus) if part.num_gpus else workers
        assert group.pods * min(by_gpu, int(group.num_cpus / part.num_cpus)) >= workers
        assert (group.num_gpus > 0) == (part.num_gpus > 0)
    assert sum(g.pods * g.num_cpus for g in found.values()) >= needs(wide).num_cpus
    assert sum(g.pods * g.num_gpus for g in found.values()) >= needs(wide).num_gpus
    assert [g.name for g in found.values() if g.spot] == ["samplers", "scorers"]


def test_a_driver_is_told_of_an_autoscaler_where_there_is_one():
    for queue, told in ((None, True), ("nights", False)):
        cluster = kuberay.ray_job(example(kubernetes=Kubernetes("i:1", queue=queue)))["spec"]["rayClusterSpec"]
        said = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
        assert ({"name": "RSFT_AUTOSCALED", "value": "1"} in said) == told == ("enableInTreeAutoscaling" in cluster)


def test_with_a_queue_clusters_have_a_fixed_size():
    job = kuberay.ray_job(example(kubernetes=Kubernetes("i:1", queue="nights")), date(2026, 12, 1))
    spec = job["spec"]["rayClusterSpec"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "nights"
    assert "enableInTreeAutoscaling" not in spec
    assert all(g["replicas"] == g["minReplicas"] == g["maxReplicas"] > 0 for g in spec["workerGroupSpecs"])
    assert job["spec"]["shutdownAfterJobFinishes"]
    assert "preRunningDeadlineSeconds" not in job["spec"]  # time in the queue would count


@pytest.mark.parametrize("kind", ON_KUBERNETES)
def test_paths_that_no_pod_sees_are_refused(kind):
    with pytest.raises(ConfigError, match=r"prompts.paths.0: /home/me/p.jsonl: .* below /shared/"):
        KINDS[kind](example(config=remote().model_copy(update={"prompts": config(
            prompts__paths=["/home/me/p.jsonl"]).prompts})))  # fmt: skip
    (text,) = made(kind, config=remote()).values()
    assert "persistentVolumeClaim" not in text


def test_modules_beside_the_config_travel_with_it(tmp_path):
    (tmp_path / "mine.py").write_text("def rule():\n    return True\n")
    files = kuberay.config_map(example(path=tmp_path / "n.yaml"))["data"]
    assert files["mine.py"].startswith("def rule")
    assert RunConfig.model_validate_json(files["config.json"]) == example().config
    (tmp_path / "big.py").write_text("#" * 1_100_000)
    with pytest.raises(ConfigError, match="a ConfigMap holds"):
        kuberay.config_map(example(path=tmp_path / "n.yaml"))


# ---- the pod that starts a night ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A folder like that of a service account, with a token and a certificate for 127.0.0.1."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("account")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=api",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "ca.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    (folder / "token").write_text("secret-of-the-account\n")
    return folder


@contextmanager
def api_server(authority, there, monkeypatch, refuses=None):
    """What Kubernetes answers about RayJobs; `there` are those that exist."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(200, {"items": [job for job in there if self.path.endswith(f"rsft/run%3D{run_of(job)}")]})

        def do_POST(self):
            job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            taken = [other for other in there if other["metadata"]["name"] == job["metadata"]["name"]]
            if not taken:
                there.append(job)
            self.answer(409 if taken else 201, {"message": "already exists"} if taken else job)

        def answer(self, status, body):
            if self.headers["Authorization"] != "Bearer secret-of-the-account":
                status, body = 401, {"message": "Unauthorized"}
            elif refuses:
                status, body = refuses, {"message": "rayjobs is forbidden"}
            payload = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "ca.crt", authority / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_port))
    try:
        yield starter.Api(authority)
    finally:
        server.shutdown()
        server.server_close()


def run_of(job):
    return job["metadata"]["labels"]["rsft/run"]


NOW = datetime(2026, 12, 2, 3, 0, tzinfo=UTC)


def test_a_night_is_created_once(authority, monkeypatch):
    there: list[dict] = []
    with api_server(authority, there, monkeypatch) as api:
        assert starter.start(kuberay.ray_job(example()), api, NOW) == "rsft-example-20261202: created"
        assert starter.start(kuberay.ray_job(example()), api, NOW) == "rsft-example-20261202: is there already"
    (job,) = there
    assert job["spec"]["entrypoint"].endswith("nightly /etc/rsft/config.json --date 2026-12-02")
    assert job == kuberay.ray_job(example(), date(2026, 12, 2))


def test_a_night_waits_for_the_one_before(authority, monkeypatch):
    earlier = kuberay.ray_job(example(), date(2026, 12, 1))
    there = [earlier, kuberay.ray_job(example(config=remote(run="other")), date(2026, 12, 1))]
    with api_server(authority, there, monkeypatch) as api:
        for status in (None, "Initializing", "Running", "Suspended", "Retrying"):
            earlier["status"] = {"jobDeploymentStatus": status} if status else {}
            assert "rsft-example-20261201 is still at work" in starter.start(kuberay.ray_job(example()), api, NOW)
        assert len(there) == 2
        earlier["status"] = {"jobDeploymentStatus": "Failed"}
        assert starter.start(kuberay.ray_job(example()), api, NOW).endswith("created")


def test_a_pod_that_comes_up_late_starts_the_night_that_was_due(monkeypatch):
    due = datetime(2026, 12, 1, 23, 30, tzinfo=UTC)
    late = due + timedelta(hours=5)
    name = f"rsft-example-{int(due.timestamp()) // 60}"
    assert starter.night_of(name, "23:30", late) == date(2026, 12, 1)
    assert starter.night_of("by-hand", "23:30", late) == date(2026, 12, 1)
    assert starter.night_of("by-hand", "02:00", late) == date(2026, 12, 2)
    assert starter.night_of("", "02:00", datetime(2026, 12, 2, 0, 30, tzinfo=UTC)) == date(2026, 12, 1)


def test_what_the_api_refuses_is_told_in_its_words(authority, monkeypatch):
    with api_server(authority, [], monkeypatch, refuses=403) as api, pytest.raises(StageError, match="is forbidden"):
        starter.start(kuberay.ray_job(example()), api, NOW)


def test_the_starter_ends_with_the_exit_code_of_what_went_wrong(authority, monkeypatch, tmp_path):
    template = tmp_path / "rayjob.json"
    template.write_text(json.dumps(kuberay.ray_job(example())))
    code = (
        "import sys; from pathlib import Path; from rsft_cluster.scheduling import starter; "
        f"starter.ACCOUNT = Path({str(authority)!r}); starter.Api.__init__.__defaults__ = (starter.ACCOUNT,); "
        f"sys.argv = ['starter', {str(template)!r}]; starter.main()"
    )
    there: list[dict] = []

    def begin():
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)

    done = begin()
    assert (done.returncode, done.stdout) == (2, "")
    assert "in a pod of Kubernetes alone" in done.stderr
    with api_server(authority, there, monkeypatch):
        monkeypatch.setenv(JOB_NAME, f"rsft-example-{int(NOW.timestamp()) // 60}")
        assert begin().stderr == "rsft-example-20261202: created\n"
    done = begin()
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr


# ---- the command, and installing ---------------------------------------------------------------------------


@pytest.fixture
def rsft(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["rsft", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        found = capsys.readouterr()
        return int(ended.value.code or 0), found.out, found.err

    return call


PLACES = ("--set", "store=s3://b/r", "--set", "policy.model=org/m", "--set", "prompts.paths=[s3://b/p]",
          "--set", "evaluation.prompts.paths=[s3://b/h]")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_prints_what_can_be_read_again(kind, rsft, tmp_path):
    code, out, err = rsft("schedule", "run.yaml", "--kind", kind, *PLACES)
    assert (code, err) == (0, "")
    if kind in ON_KUBERNETES:
        assert all(made["apiVersion"] for made in manifests(out))
    code, listed, _ = rsft("schedule", "run.yaml", "--kind", kind, "--out", tmp_path / "out", *PLACES)
    written = [Path(line) for line in listed.splitlines()]
    assert code == 0
    assert sorted(written) == sorted((tmp_path / "out").iterdir())
    assert all(path.read_text() in out for path in written)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kind", "kuberay"], r"store: .*: pods see no such path"),
        (["--kind", "at"], "Invalid value for '--kind'"),
        (["--kind", "rayjob", "--date", "tomorrow", *PLACES], "expected a date like"),
        (["--kind", "cron", "--set", "nightly.at=25:00"], r"nightly.at"),
        (["--kind", "cron", "--out", "run.yaml"], r"--out run.yaml: cannot be written"),
    ],
)
def test_what_cannot_be_is_refused_with_exit_code_2(words, said, rsft):
    code, out, err = rsft("schedule", "run.yaml", *words)
    assert (code, out) == (2, "")
    assert re.search(said, err), err


def options_of(command: str) -> set[str]:
    found = typer.main.get_command(app.app).commands[command]  # pyright: ignore[reportAttributeAccessIssue]
    return {name for option in found.params for name in option.opts}


@pytest.mark.parametrize("kind", ["cron", "systemd", "airflow", "slurm"])
def test_schedules_use_only_options_that_the_night_knows(kind):
    words = ("--set", "seed=1", "--trust-remote-code")
    text = "\n".join(made(kind, config=config(), words=words).values())
    if kind == "slurm":
        said = next(line for line in text.splitlines() if line.startswith("RSFT_OPTIONS="))
    else:
        said = next(line for line in text.splitlines() if "rsft_cluster nightly" in line)
    used = {word.strip("'\"}") for word in shlex.split(said.replace("'", " ").replace('"', " ").replace(":-", " "))}
    used = {word for word in used if word.startswith("--")}
    assert {"--set", "--trust-remote-code", "--quiet"} <= used <= options_of("nightly")


TABLE = """#!/bin/sh
# keeps a table in a file, as crontab does
case $1 in
-l) if [ -s "$TABLE" ]; then cat "$TABLE"; else echo "no crontab" >&2; exit 1; fi ;;
-) cat >"$TABLE" ;;
esac
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A PATH with nothing on it but the tools that are put there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for needed in ("sh", "cat"):
        (folder / needed).symlink_to(shutil.which(needed))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))

    def put(name: str, script: str) -> None:
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)

    return put


def test_installing_a_crontab_again_replaces_the_runs_own_lines(tools, tmp_path, monkeypatch):
    table = tmp_path / "table"
    monkeypatch.setenv("TABLE", str(table))
    tools("crontab", TABLE)
    mine, other = example(config=config(run="a")), example(config=config(run="a.b"))
    install(mine, "cron", KINDS["cron"](mine))
    table.write_text("5 5 * * * mine\n" + table.read_text())
    install(other, "cron", KINDS["cron"](other))
    before = table.read_text()
    install(mine, "cron", KINDS["cron"](mine))
    assert sorted(table.read_text().splitlines()) == sorted(before.splitlines())
    later = example(config=config(run="a", nightly={"at": "05:05"}))
    install(later, "cron", KINDS["cron"](later))
    assert table.read_text().startswith("5 5 * * * mine\n")
    assert table.read_text().count("# BEGIN rsft a\n") == table.read_text().count("# BEGIN rsft a.b\n") == 1
    assert "05:05" in table.read_text()


@pytest.mark.parametrize(
    ("kind", "tool"),
    [
        ("cron", "crontab"),
        ("systemd", "systemctl"),
        ("slurm", "sbatch"),
        ("cronjob", "kubectl"),
        ("airflow", "Airflow"),
    ],
)
def test_installing_without_the_tool_says_so(kind, tool, tools):
    order = example()
    with pytest.raises(ConfigError, match=tool) as refused:
        install(order, kind, KINDS[kind](order))
    assert refused.value.exit_code == 2


def test_installing_hands_objects_to_kubectl_and_tells_what_it_refuses(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("GOT", str(tmp_path / "got"))
    tools("kubectl", '#!/bin/sh\necho "$@" >"$GOT.words"\ncat >"$GOT"\n')
    order = example()
    install(order, "cronjob", KINDS["cronjob"](order))
    assert (tmp_path / "got.words").read_text() == "apply -f -\n"
    assert [m["kind"] for m in manifests((tmp_path / "got").read_text())][-1] == "CronJob"
    tools("kubectl", "#!/bin/sh\necho 'error: forbidden' >&2\nexit 1\n")
    with pytest.raises(StageError, match="forbidden"):
        install(order, "cronjob", KINDS["cronjob"](order))


def test_installing_units_writes_them_and_turns_the_timer_on(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("GOT", str(tmp_path / "got"))
    tools("systemctl", '#!/bin/sh\necho "$@" >>"$GOT"\n')
    order = example()
    install(order, "systemd", KINDS["systemd"](order))
    written = tmp_path / ".config" / "systemd" / "user"
    assert sorted(path.name for path in written.iterdir()) == ["rsft-example.service", "rsft-example.timer"]
    assert (tmp_path / "got").read_text().splitlines()[-1] == "--user enable --now rsft-example.timer"

"""Every user error through the real command line: exit code, one message that names the place, no traceback.

Adversarially checked: what is refused is refused before a run is made, and within seconds; what a terminal prints is
harmless and as wide as it is.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from collecting import collection
from projects import write_fake_model, write_project

from rsft_cluster.cli import app
from rsft_cluster.records import PolicyRef
from rsft_cluster.runs.lease import hold
from rsft_cluster.runs.promotions import PromotionLog
from rsft_cluster.store import Store

FAST_S = 3.0
"""A command that needs no engine, on a slow machine; half of it is Python starting."""


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_fake_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def project(tmp_path, model, monkeypatch):
    """A folder with run.yaml, prompts and a model, where the user stands; nothing of the machine reaches in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "model").symlink_to(model)
    write_project(tmp_path)
    return tmp_path


@pytest.fixture
def rsft(monkeypatch, capsys):
    """The command line, called as a user calls it; returns its outcome."""

    def call(*arguments) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["rsft", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        found = Outcome(int(ended.value.code or 0), *capsys.readouterr())
        assert "Traceback" not in found.err + found.out
        return found

    return call


@pytest.fixture
def run(project):
    """A run's folder with one sealed round, as `rsft run` leaves it after sampling."""
    made = collection(project / "runs" / "sums")
    made.folder.store.create(made.folder.manifest, made.finish().to_json())
    made.folder.store.create("config.json", b"{}")
    return made.folder.store


def promote(store, *rounds):
    for number in rounds:
        policy = PolicyRef(name=f"round-{number:04d}", uri=f"/m/{number}", digest="d")
        action = "promote" if number else "start"
        with hold(store) as lease:
            PromotionLog(store).append(lease, action=action, policy=policy, reason="better", round_number=number)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


USAGE = [
    ([], 2, "Usage: rsft"),
    (["chekc"], 2, "No such command 'chekc'. Did you mean 'check'?"),
    (["check"], 2, "Missing argument 'CONFIG'"),
    (["check", "run.yaml", "--sett", "a=b"], 2, "No such option: --sett"),
    (["check", "no.yaml"], 2, "error: no.yaml: there is no such config file"),
    (["check", "."], 2, "error: .: is a folder; expected a YAML file"),
    (["check", "model/model.safetensors"], 2, "model.safetensors:1: holds a control character (0x00); a config is"),
    (["check", "empty.yaml"], 2, "error: empty.yaml: expected a mapping with the keys run, store"),
    (["check", "typo.yaml"], 2, "\ntypo.yaml:2: sampling: expected a mapping"),
    (["run", "no.yaml"], 2, "error: no.yaml: there is no such config file"),
    (["submit", "no.yaml"], 2, "error: no.yaml: there is no such config file"),
    (["status", "nothing"], 2, "error: nothing: there is no run here (no config.json); expected a folder like runs/my"),
    (["status", "s3://"], 2, "error: s3://: names no place; expected something like s3://bucket"),
    (["status", "ftp://host/run"], 2, "unknown storage scheme 'ftp'; one of file, s3, gs, abfs is supported"),
    (["status", "run.yaml"], 2, "run.yaml: there is no run here"),
    (["inspect", "nothing"], 2, "error: nothing: there is no run here"),
    (["inspect", "nothing", "--state", "acepted"], 2, "--state acepted: expected one of accepted, rejected, passed"),
    (["inspect", "nothing", "--round", "two"], 2, "'--round': expected a whole number of at least 0, found 'two'"),
    (["inspect", "nothing", "--limit", "-1"], 2, "'--limit': expected a whole number of at least 0, found '-1'"),
    (["rollback", "nothing"], 2, "error: nothing: there is no run here"),
    (["jobs", "--address", "cluster:8265"], 2, "expected the URL of a Ray dashboard, like http://127.0.0.1:8265"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), USAGE, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_a_mistake_on_the_command_line_is_told(project, rsft, arguments, code, said):
    (project / "empty.yaml").write_text("")
    (project / "typo.yaml").write_text("run: a\nsampling: 5\n")
    found = rsft(*arguments)
    assert found.code == code
    assert said in found.err
    assert "Input should" not in found.err
    assert not found.out


OVERRIDES = [
    ("sampling.wrokers=2", 2, "--set sampling.wrokers=2: sampling.wrokers: unknown key; did you mean workers?"),
    ("sampling.workers", 2, "--set sampling.workers: expected key=value, like sampling.workers=4"),
    ("sampling.workers=two", 2, 'sampling.workers: expected a whole number, found "two"'),
    ("sampling.workers=0", 2, "sampling.workers: expected a number of at least 1, found 0"),
    ("sampling.generator=scriptd", 2, "sampling.generator: no generator is called 'scriptd'; did you mean 'scripted'"),
    ("scoring.constraints.0={use: length, params: {mn: 1}}", 2, "scoring.constraints.0: length: "),
    ("scoring.constraints.0={use: length, params: {min: x}}", 2, "parameter min is 'x', expected int"),
    ("prompts.paths=[chat.jsonl]", 2, "prompts: no prompt found in "),
    ("prompts={paths: [chat.jsonl]}", 2, "these are chat prompts, and the tokenizer of "),
    ("store=run.yaml/x", 74, "cannot be written to (Not a directory)"),
    ("policy.model=./nothing", 2, "nothing: there is no such folder, or it is empty"),
    ("policy.model=nothing", 2, "policy.model: 'nothing' is no folder here"),
]


@pytest.mark.parametrize(("override", "code", "said"), OVERRIDES)
@pytest.mark.parametrize("command", ["check", "run"])
def test_a_mistake_in_the_config_is_told_before_anything_is_made(project, rsft, command, override, code, said):
    found = rsft(command, "run.yaml", "--set", override)
    assert said in found.err
    assert found.code == code
    assert not (project / "runs" / "sums").exists()


def test_a_good_config_is_fine(project, rsft):
    found = rsft("check", "run.yaml")
    assert found.code == 0
    assert "cluster             must offer 3 CPUs and 0 GPUs" in found.out
    assert found.err == "run.yaml: fine\n"
    assert all(len(line) <= 120 and line == line.rstrip() for line in found.out.splitlines())


def test_the_check_as_json_is_for_scripts(project, rsft):
    found = json.loads(rsft("check", "run.yaml", "--json", "--set", "sampling.max_tokens=124").out)
    assert {"about": "cluster", "says": "must offer 3 CPUs and 0 GPUs", "warns": False} in found
    assert not any(f["warns"] for f in found)


def test_a_plug_in_beside_the_config_is_found_from_anywhere(project, rsft, tmp_path_factory, monkeypatch):
    (project / "cli_user_rules.py").write_text("def short(candidate):\n    return len(candidate.completion) < 5\n")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert rsft("check", project / "run.yaml", "--set", "scoring.constraints.0=cli_user_rules:short").code == 0


def test_the_schema_is_json(rsft):
    found = rsft("schema")
    assert json.loads(found.out)["title"] == "RunConfig"
    assert not found.err


def test_a_run_that_is_running_is_not_begun_twice(project, rsft):
    with hold(Store("runs/sums")):
        found = rsft("run", "run.yaml")
    assert found.code == 75
    assert f"runs/sums: already running as process {os.getpid()} on " in found.err


def test_a_changed_config_is_refused_with_key_and_both_values(project, rsft):
    port = closed_port()
    nowhere = ("--set", f"cluster.address=127.0.0.1:{port}")
    assert f"127.0.0.1:{port}: nothing answers there (Connection refused)" in rsft("run", "run.yaml", *nowhere).err
    Store("runs/sums").create("rounds/0000/evaluation/plan/plan.json", b"{}")
    found = rsft("run", "run.yaml", *nowhere, "--set", "seed=7")
    assert found.code == 2
    assert "  config.seed: was 0, is 7" in found.err
    assert "give the new configuration a `run` name of its own" in found.err


def test_no_such_cluster_ends_at_once(project, rsft):
    began = time.monotonic()
    found = rsft("run", "run.yaml", "--set", f"cluster.address=127.0.0.1:{closed_port()}")
    assert found.code == 2
    assert "expected host:port of a running Ray head, `auto`, or no address for a local Ray" in found.err
    assert rsft("run", "run.yaml", "--set", "cluster.address=nonsense").code == 2
    assert time.monotonic() - began < 30  # with the imports of Ray and DeepSpeed


def test_status_of_a_run_is_shown(run, rsft):
    found = rsft("status", "runs/sums")
    assert found.code == 0
    assert "next: train" in found.out
    assert "running: no" in found.out


def test_status_tells_which_policy_is_current_and_why(run, rsft):
    promote(run, 0, 1)
    assert "current policy: round-0001 (promoted: better)\n  /m/1\n" in rsft("status", "runs/sums").out
    rsft("rollback", "runs/sums")
    assert "round-0000 (rolled back: rolled back from round-0001 by hand)" in rsft("status", "runs/sums").out


def test_status_of_a_run_without_a_round_says_so(project, rsft):
    Store("runs/new").create("config.json", b"{}")
    assert "runs/new: no round has begun" in rsft("status", "runs/new").out


def test_status_as_json_is_for_scripts(run, rsft):
    promote(run, 0, 1)
    found = json.loads(rsft("status", "runs/sums", "--json").out)
    assert found["running"] is None
    assert found["current"]["name"] == "round-0001"
    assert [(r["round"], r["stage"], r["num_candidates"]) for r in found["rounds"]] == [(1, "train", 40)]


def test_inspect_shows_candidates_and_why(run, rsft):
    found = rsft("inspect", "runs/sums", "--state", "failed", "--limit", "2")
    assert found.out.count("rejected · prompts.jsonl:") == 2
    assert "- answer_matches" in found.out


def test_inspect_as_json_is_a_line_a_candidate(run, rsft):
    rows = [json.loads(line) for line in rsft("inspect", "runs/sums", "--json", "--limit", "0").out.splitlines()]
    assert len(rows) == 40
    assert {"state", "reason", "messages", "text", "verdicts", "score", "source"} <= set(rows[0])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--prompt", "nobody asked this"], 0, "no candidate matches"),
        (["--round", "5"], 2, "round 5 has no candidates; there are: --round 1"),
        (["--evaluation"], 2, "round 1 has no evaluation; there are: --round 1"),
        (["--constraint", "finnished"], 2, "expected one of answer_matches, finished; did you mean finished?"),
    ],
)
def test_what_is_not_there_is_told(run, rsft, arguments, code, said):
    found = rsft("inspect", "runs/sums", *arguments)
    assert (found.code, found.out) == (code, "")
    assert said in found.err


@pytest.mark.parametrize(
    ("damaged", "command"),
    [
        ("rounds/0001/scores/*.parquet", "inspect"),
        ("rounds/0001/commits/*.json", "inspect"),
        ("rounds/0001/plan/units.parquet", "inspect"),
        ("rounds/0001/manifest.json", "status"),
        ("promotions/000001.json", "status"),
        ("promotions/000001.json", "rollback"),
    ],
)
def test_a_damaged_file_ends_with_the_code_of_the_store(run, rsft, damaged, command):
    promote(run, 0, 1)
    victim = sorted(Path(run.root).glob(damaged))[0]
    victim.write_bytes(b"{")
    found = rsft(command, "runs/sums")
    assert found.code == 74
    assert "damaged" in found.err


def test_nothing_to_roll_back_is_told(run, rsft):
    assert "this run has promoted nothing yet; there is nothing to roll back" in rsft("rollback", "runs/sums").err
    promote(run, 0)
    found = rsft("rollback", "runs/sums")
    assert found.code == 2
    assert "round-0000" in found.err


def test_a_roll_back_goes_to_the_policy_named_and_no_other(run, rsft):
    promote(run, 0, 1, 2)
    wrong = rsft("rollback", "runs/sums", "--to", "round-0009")
    assert wrong.code == 2
    assert "policies that were current before: round-0000, round-0001" in wrong.err
    assert rsft("rollback", "runs/sums").out == "round-0001 is current: /m/1\n"
    assert rsft("rollback", "runs/sums", "--to", "round-0000").out == "round-0000 is current: /m/0\n"


def test_a_running_run_is_not_rolled_back(run, rsft):
    promote(run, 0, 1)
    with hold(run):
        assert rsft("rollback", "runs/sums").code == 75


def test_a_check_against_a_cluster_that_is_not_there_says_so(project, rsft):
    done = rsft("check", "run.yaml", "--address", "127.0.0.1:1")
    assert done.code == 2
    assert "127.0.0.1:1: nothing answers there" in done.err


def test_a_dry_run_prints_what_would_be_sent(project, rsft):
    sent = json.loads(rsft("submit", "run.yaml", "--dry-run", "--address", "http://cluster:8265").out)
    assert sent["submission_id"] == "rsft-sums"
    assert sent["entrypoint"] == "exec python -m rsft_cluster run config.json"
    assert sent["address"] == "http://cluster:8265"
    assert sent["config"]["prompts"]["paths"] == [str(project / "prompts.jsonl")]


def test_a_night_is_sent_under_its_date(rsft, project):
    night = ("submit", "run.yaml", "--dry-run", "--nightly", "--date", "2026-11-20")
    sent = json.loads(rsft(*night).out)
    assert sent["submission_id"] == "rsft-sums-2026-11-20"
    assert sent["entrypoint"] == "exec python -m rsft_cluster nightly config.json --date 2026-11-20"
    alone = rsft("submit", "run.yaml", "--dry-run", "--date", "2026-11-20")
    assert (alone.code, alone.err) == (2, "error: --date names a night: give --nightly with it\n")


def test_a_wrong_plug_in_is_not_sent_but_files_of_the_cluster_are_its_own(project, rsft):
    only_there = ("--set", "prompts.paths=[/cluster/only.jsonl]", "--dry-run")
    assert rsft("submit", "run.yaml", *only_there).code == 0
    found = rsft("submit", "run.yaml", *only_there, "--set", "acceptance.rule=best")
    assert found.code == 2
    assert "acceptance.rule: no acceptance rule is called 'best'" in found.err


@pytest.mark.parametrize(
    "command", [["submit", "run.yaml"], ["jobs"], ["logs", "x"], ["stop", "x"], ["status", "x", "--job"]]
)
def test_no_such_cluster_is_told_by_every_command_that_needs_one(project, rsft, command):
    address = f"http://127.0.0.1:{closed_port()}"
    found = rsft(*command, "--address", address)
    assert found.code == 2
    assert f"error: --address {address}: no Ray dashboard answers there (Connection refused)" in found.err


def test_a_message_cannot_steer_the_terminal(project, rsft):
    (project / "evil.yaml").write_text('run: "\\e[2J\\u202e"\n')
    assert not [c for c in rsft("check", "evil.yaml").err if not c.isprintable() and c != "\n"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["check", "run.yaml"], 0), (["check", "no.yaml"], 2), (["check", "run.yaml", "--set", "promotion.rule=x"], 2),
     (["status", "nothing"], 2), (["inspect", "nothing"], 2), (["schema"], 0)],
)  # fmt: skip
def test_what_needs_no_engine_is_fast_in_a_process_of_its_own(project, arguments, code):
    command = [sys.executable, "-m", "rsft_cluster", *arguments]
    times = []
    for _ in range(2):
        began = os.times()
        done = subprocess.run(command, capture_output=True, text=True)
        ended = os.times()  # of the processor: whatever else the machine does, it counts the command alone
        times.append(ended.children_user + ended.children_system - began.children_user - began.children_system)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
    assert min(times) < FAST_S


def test_help_is_there_for_every_command(rsft):
    commands = [line.split()[0] for line in rsft("--help").out.split("Commands:")[1].splitlines() if line.strip()]
    assert {"check", "run", "status", "inspect", "rollback", "submit", "jobs", "logs", "stop", "schema"} <= set(
        commands
    )
    for command in commands:
        found = rsft(command, "--help")
        assert found.code == 0
        assert "Usage: rsft " in found.out


def test_constraints_are_listed_with_their_parameters(rsft):
    found = rsft("constraints", "list")
    assert found.code == 0
    assert "length(*, min: int = 0, max: Optional[int] = None, unit: Literal['tokens', " in found.out
    assert "finished()\n    Pass exactly the candidates whose finish reason is `stop`." in found.out


def test_the_cases_of_constraints_are_judged(project, rsft):
    found = rsft("constraints", "test")
    assert (found.code, "words: 7 of 7 cases hold" in found.out) == (0, True)
    assert rsft("constraints", "test", "words").out == "words: 7 of 7 cases hold\n"
    source = (
        "from rsft_cluster.constraints.base import Candidate, Case\ndef even(c): return len(c.completion) % 2 == 0\n"
    )
    (project / "own_even.py").write_text(
        source + "CASES = (Case(Candidate('ab'), True), Case(Candidate('a\\x1b'), False))"
    )
    wrong = rsft("constraints", "test", "own_even")
    assert (wrong.code, wrong.err) == (1, "error: 1 of 2 cases are wrong\n")
    assert wrong.out == "own_even:even: 1 of 2 cases hold\n    'a\\x1b' should not pass, but passed\n"
    (project / "own_odd.py").write_text("def odd(c): return True\n")
    none = rsft("constraints", "test", "own_odd")
    assert (none.code, none.out) == (2, "")
    assert "own_odd: its module has no CASES for it, so there is nothing to test" in none.err
    assert rsft("constraints", "test", "wrods").code == 2


@pytest.mark.parametrize("key", ["store", "policy.model", "training.replay", "prompts.paths"])
def test_credentials_in_a_config_are_refused_with_the_key_and_not_repeated(key, project, rsft):
    secret = "s3://key:5e11ed-canary@rsft/runs"
    value = f"[{secret}]" if key == "prompts.paths" else secret
    written = yaml.safe_load((project / "run.yaml").read_text())
    *parts, leaf = key.split(".")
    node = written
    for part in parts:
        node = node.setdefault(part, {})
    node[leaf] = [secret] if key == "prompts.paths" else secret
    (project / "written.yaml").write_text(yaml.safe_dump(written))
    for arguments in (("check", "written.yaml"), ("check", "run.yaml", "--set", f"{key}={value}")):
        code, out, err = rsft(*arguments)
        assert code == 2
        assert f": {key}" in err
        assert "credentials stand in this URI; expected scheme://bucket/folder" in err
        assert "5e11ed" not in out + err


def test_credentials_in_a_run_named_on_the_command_line_are_not_repeated(rsft):
    code, out, err = rsft("status", "s3://key:5e11ed-canary@rsft/runs/sums")
    assert code == 2
    assert "s3://rsft/runs/sums: credentials stood in this URI" in err
    assert "5e11ed" not in out + err

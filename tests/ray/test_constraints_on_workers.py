"""Constraints from a user's own package, in the scoring actors of a run: hangs, crashes, canaries, audits."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from running import write_config

pytestmark = pytest.mark.ray

PACKAGE = '''
"""A user's own package: a constraint beside what it imports."""

import os
import random
import subprocess
import time
from pathlib import Path

from own_checks.limits import MOST

from rsft_cluster.constraints.base import Case, Candidate

CASES = {"short": (Case(Candidate("a"), passes=True), Case(Candidate("a" * 100), passes=False))}


def short(candidate):
    return len(candidate.completion) < MOST


def treacherous(candidate):
    """Hangs, with a child of its own, at one candidate in eight, and dies at another."""
    if candidate.index == 0 and int(candidate.prompt_id, 16) % 2 == 0:
        subprocess.Popen(["sleep", "86421"], start_new_session=True)
        time.sleep(1000)
    if candidate.index == 1 and int(candidate.prompt_id, 16) % 2 == 0:
        os._exit(3)
    return True


def flaky(candidate):
    return random.SystemRandom().random() < 0.5
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("constraints")
    (folder / "own_checks").mkdir()
    (folder / "own_checks" / "__init__.py").write_text(PACKAGE)
    (folder / "own_checks" / "limits.py").write_text("MOST = 50\n")
    return folder


def sample(folder: Path, name: str, **scoring: object) -> subprocess.CompletedProcess[str]:
    config = write_config(folder, name, scoring=scoring)
    command = [sys.executable, "-m", "rsft_cluster", "sample", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def manifest(folder: Path, name: str) -> dict:
    return json.loads((folder / "runs" / name / "rounds" / "0001" / "manifest.json").read_text())


def test_hangs_and_crashes_cost_their_own_verdicts_and_leave_nothing_behind(folder) -> None:
    treacherous = {"use": "own_checks:treacherous", "timeout_s": 3.0, "required": False, "weight": 0}
    done = sample(folder, "treacherous", constraints=["own_checks:short", treacherous], max_error_rate=0.5)
    assert done.returncode == 0, done.stderr
    sealed = manifest(folder, "treacherous")
    files = [folder / "runs" / "treacherous" / ref["path"] for ref in sealed["scores"]]
    verdicts = [v for file in files for row in pq.read_table(file).to_pylist() for v in row["verdicts"]]
    errors = Counter((v["error"] or "").split(":")[0] for v in verdicts if v["constraint"] == "treacherous")
    assert set(errors) == {"", "TimeoutError", "ProcessDiedError"}
    assert errors["TimeoutError"] == errors["ProcessDiedError"] == sealed["totals"]["num_errors"] / 2
    assert errors[""] == 192 - sealed["totals"]["num_errors"]
    assert all(v["passed"] for v in verdicts if v["constraint"] == "short")
    left = [p.info for p in psutil.process_iter(["cmdline"]) if "86421" in (p.info["cmdline"] or [])]
    assert not left
    assert not [
        p
        for p in psutil.process_iter(["cmdline"])
        if "rsft_cluster.scoring.isolation.fork_server" in (p.info["cmdline"] or [])
    ]


def test_a_wrong_canary_stops_the_run_before_anything_is_committed(folder) -> None:
    canary = {"constraint": "short", "completion": "b" * 60, "passes": True}
    done = sample(folder, "canary", constraints=["own_checks:short"], canaries=[canary])
    assert done.returncode == 1, done.stderr
    assert "canary of short: 'bbb" in done.stderr
    assert "did not pass" in done.stderr
    assert not list((folder / "runs" / "canary").rglob("commits/*"))


def test_a_flaky_constraint_is_reported(folder) -> None:
    flaky = {"use": "own_checks:flaky", "required": False}
    done = sample(folder, "flaky", constraints=["own_checks:short", flaky], audit_share=0.5)
    assert done.returncode == 0, done.stderr
    totals = manifest(folder, "flaky")["totals"]
    assert 60 < totals["num_audited"] < 130
    assert set(totals["disagreements"]) == {"flaky"}
    assert f"{totals['num_audited']} candidates judged twice: flaky said otherwise of" in done.stderr

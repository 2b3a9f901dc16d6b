"""Whole runs through the command line on a local Ray, killed in every stage.

Adversarially checked: SIGKILL of the driver, of a sampling actor and of a training worker; the run goes on and ends
with the accepted ids and digests of an undisturbed one.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from running import DEADLINE_S, NUM_PROMPTS, begin, finish, wait_for, write_config

pytestmark = pytest.mark.ray


def facts(rounds: list[dict]) -> list[tuple]:
    return [(r["accepted_digest"], r["content"], r["num_accepted"], r["promoted"]) for r in rounds]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rounds")


@pytest.fixture(scope="module")
def undisturbed(folder):
    return finish(begin(write_config(folder, "undisturbed")))


def descendants(process: subprocess.Popen, word: str) -> list[psutil.Process]:
    try:
        found = psutil.Process(process.pid).children(recursive=True)
        return [p for p in found if word in " ".join(p.cmdline())]
    except psutil.NoSuchProcess:
        return []


def uncommitted_actor(run: Path) -> int | None:
    """The pid of an actor that has begun a unit and not committed it."""
    committed = {p.name.split(".")[0] for p in run.glob("rounds/0001/commits/*.json")}
    for marker in run.glob("rounds/0001/attempts/*.json"):
        if marker.name.split(".")[0] not in committed:
            return json.loads(marker.read_text())["pid"]
    return None


def test_a_round_is_whole(undisturbed, folder):
    start, first = undisturbed
    assert start["stage"] == first["stage"] == "done"
    assert first["num_prompts"] == NUM_PROMPTS
    assert first["num_candidates"] == 4 * NUM_PROMPTS
    assert first["num_accepted"] > 0
    model = folder / "runs" / "undisturbed" / "rounds" / "0001" / "model"
    assert (model / "model.safetensors").exists()


def test_a_second_run_of_a_finished_one_does_nothing(undisturbed, folder):
    before = {p: p.stat().st_mtime_ns for p in (folder / "runs" / "undisturbed" / "rounds").rglob("*")}
    began = time.monotonic()
    again = finish(begin(write_config(folder, "undisturbed")))
    assert facts(again) == facts(undisturbed)
    assert {p: p.stat().st_mtime_ns for p in (folder / "runs" / "undisturbed" / "rounds").rglob("*")} == before
    assert time.monotonic() - began < 60


def test_a_changed_config_is_refused_with_the_key(undisturbed, folder):
    changed = write_config(folder, "undisturbed", sampling__num_candidates=5)
    process = begin(changed)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2
    assert "config.sampling.num_candidates: was 4, is 5" in err
    assert "Traceback" not in err


def test_the_driver_killed_in_every_stage_changes_nothing(undisturbed, folder):
    config, run = write_config(folder, "driver"), folder / "runs" / "driver"
    moments = {
        "first evaluation": lambda: any(run.glob("rounds/0000/evaluation/commits/*")),
        "sampling": lambda: len(list(run.glob("rounds/0001/commits/*"))) >= 3,
        "training": lambda: any(run.glob("rounds/0001/training/*/checkpoint*")),
        "second evaluation": lambda: any(run.glob("rounds/0001/evaluation/commits/*")),
    }
    for condition in moments.values():
        process = begin(config)
        wait_for(process, condition)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert facts(finish(begin(config))) == facts(undisturbed)


def test_killed_workers_change_nothing(undisturbed, folder):
    config, run = write_config(folder, "workers"), folder / "runs" / "workers"
    process = begin(config)
    wait_for(process, lambda: uncommitted_actor(run))
    os.kill(uncommitted_actor(run) or 0, signal.SIGKILL)
    wait_for(process, lambda: any(run.glob("rounds/0001/training/*/checkpoint*")))
    descendants(process, "TrainWorker")[0].kill()
    assert facts(finish(process)) == facts(undisturbed)


def test_a_second_starter_is_told_and_leaves(folder):
    config = write_config(folder, "twice", rounds=1)
    first = begin(config)
    wait_for(first, (folder / "runs" / "twice" / "lease" / "000001.json").exists)
    second = begin(config)
    _, err = second.communicate(timeout=DEADLINE_S)
    first.terminate()
    first.wait()
    assert second.returncode == 75
    assert f"already running as process {first.pid}" in err


@pytest.mark.parametrize(
    ("workers", "unit_size", "determinism"), [(3, 4, "unit"), (5, 4, "unit"), (2, 7, "unit"), (1, 2, "sample")]
)
def test_neither_workers_nor_unit_size_change_what_is_accepted(undisturbed, folder, workers, unit_size, determinism):
    changed = {"sampling__workers": workers, "sampling__unit_size": unit_size, "sampling__determinism": determinism}
    config = write_config(folder, f"w{workers}u{unit_size}", **changed)
    command = [sys.executable, "-m", "rsft_cluster", "sample", str(config), "--quiet"]
    subprocess.run(command, check=True, timeout=DEADLINE_S, capture_output=True)

    def accepted(run):
        from rsft_cluster.runs.run import Store
        from rsft_cluster.runs.summary import summary

        store = Store(str(folder / "runs" / run))
        manifest = summary(store, 1).manifest
        rows = [row for ref in manifest.accepted for row in store.read_table(ref).to_pylist()]
        return sorted(rows, key=lambda row: row["candidate_id"])

    assert accepted(config.stem) == accepted("undisturbed")


def test_nothing_accepted_ends_65_and_keeps_the_policy(folder):
    impossible = [{"use": "length", "params": {"min": 1000, "unit": "tokens"}}]
    config = write_config(folder, "nothing")
    settings = yaml.safe_load(config.read_text())
    settings["scoring"]["constraints"] = impossible
    config.write_text(yaml.safe_dump(settings))
    process = begin(config)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 65
    assert "0 of 192 candidates were accepted" in err
    assert "round-0000 stays" in err
    log = sorted((folder / "runs" / "nothing" / "promotions").glob("*.json"))
    assert len(log) == 1


def test_a_constraint_that_cannot_run_stops_the_run_with_its_traceback(folder):
    config = write_config(folder, "broken")
    settings = yaml.safe_load(config.read_text())
    settings["scoring"]["constraints"] = [{"use": "broken_rules:broken"}]
    config.write_text(yaml.safe_dump(settings))
    (folder / "broken_rules.py").write_text("def broken(candidate):\n    return 1 / 0\n")
    process = begin(config)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert "ZeroDivisionError" in err
    assert "max_error_rate" in err

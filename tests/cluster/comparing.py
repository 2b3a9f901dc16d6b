"""Runs on several hosts: one config for all of them, how far a run is, and what it accepted in the end."""

import json
from collections import Counter
from pathlib import Path

from running import NUM_PROMPTS, write_config

from rsft_cluster.records import Manifest
from rsft_cluster.store import Store

UNIT_SIZE = 4
NUM_UNITS = NUM_PROMPTS // UNIT_SIZE
FAST = {"use": "scripted", "params": {"accuracy": 0.5}}
SLOW = {"use": "scripted", "params": {"accuracy": 0.5, "delay_s": 0.5}}
"""Two seconds a unit: long enough for something to happen in the middle of one."""


def write_run(project: Path, name: str, **changes) -> Path:
    """Write the config of a run that answers slowly and learns two steps on one worker."""
    short = {"steps": 2, "workers": 1, "checkpoint_every": 2}
    return write_config(
        project, name, **{
            "sampling__generator": SLOW, "sampling__unit_size": UNIT_SIZE,
            "scoring__constraints": ["finished", "answer_matches"],
            **{f"training__{key}": value for key, value in short.items()}, **changes,
        },
    )  # fmt: skip


def num_commits(run: Path) -> int:
    """Return how many units of round 1 are committed."""
    return len({path.name.split(".")[0] for path in (run / "rounds" / "0001").glob("commits/*.json")})


def started_on(run: Path) -> set[str]:
    """Return the hosts on which a unit of round 1 was begun."""
    return {begun["host"] for begun in _attempts(run)}


def num_samplers(run: Path) -> int:
    """Return how many processes have begun a unit of round 1."""
    return len({(begun["host"], begun["pid"]) for begun in _attempts(run)})


def worked_on(run: Path) -> set[str]:
    """Return the hosts that sampled or judged what is committed of round 1."""
    commits = [json.loads(path.read_text()) for path in (run / "rounds" / "0001").glob("commits/*.json")]
    return {commit[key] for commit in commits for key in ("sampled_on", "judged_on")}


def _attempts(run: Path) -> list[dict]:
    found = (run / "rounds" / "0001").glob("attempts/*.json")
    return [json.loads(path.read_text()) for path in found if not path.name.endswith(".failed.json")]


def accepted(run: Path) -> list[dict]:
    """Return the accepted samples of round 1, by id; checks that no prompt or candidate is lost or there twice."""
    store = Store(str(run))
    manifest = store.read_record("rounds/0001/manifest.json", Manifest)
    candidates = [row for ref in manifest.candidates for row in store.read_table(ref).to_pylist()]
    ids = [row["candidate_id"] for row in candidates]
    assert len(ids) == len(set(ids)) == 4 * NUM_PROMPTS
    assert set(Counter(row["prompt_id"] for row in candidates).values()) == {4}
    assert len(set(manifest.units)) == len(manifest.units)
    assert manifest.totals.num_prompts == NUM_PROMPTS
    assert manifest.totals.num_prompts_quarantined == 0
    rows = [row for ref in manifest.accepted for row in store.read_table(ref).to_pylist()]
    assert 0 < len(rows) < len(ids)
    return sorted(rows, key=lambda row: row["candidate_id"])

"""Workers given as a range: the pool grows where there is work and room, and results stay the same."""

import json
import subprocess
import sys

import pytest
from running import DEADLINE_S, NUM_PROMPTS, write_config

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranges")


def sampled(folder, name, delay_s, **changes):
    """The manifest of a round, and the processes that sampled it."""
    generator = {"use": "scripted", "params": {"delay_s": delay_s}}
    config = write_config(folder, name, sampling__generator=generator, sampling__num_cpus=0.25, **changes)
    command = [sys.executable, "-m", "rsft_cluster", "sample", str(config), "--quiet"]
    subprocess.run(command, check=True, timeout=DEADLINE_S, capture_output=True)
    made = folder / "runs" / name / "rounds" / "0001"
    pids = {json.loads(mark.read_text())["pid"] for mark in made.glob("attempts/*.json")}
    return json.loads((made / "manifest.json").read_text()), pids


def test_a_pool_grows_within_its_range_and_changes_nothing(folder):
    one, alone = sampled(folder, "one", 0, sampling__workers=1, sampling__unit_size=2)
    ranged, pids = sampled(folder, "ranged", 1, sampling__workers={"min": 1, "max": 3}, sampling__unit_size=2)
    assert len(alone) == 1
    assert 1 < len(pids) <= 3
    assert ranged["totals"]["num_candidates"] == 4 * NUM_PROMPTS
    assert (ranged["accepted_digest"], ranged["content"]) == (one["accepted_digest"], one["content"])

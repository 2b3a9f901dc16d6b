"""The scaling benchmark in small: it measures what it says, and more workers do more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parent.parent.parent


def test_three_workers_do_more_than_twice_as_much_as_one(tmp_path):
    out = tmp_path / "bench.json"
    options = ["--workers", "1", "3", "--waves", "5", "--unit-s", "2", "--unit-size", "2", "--out", str(out)]
    command = [sys.executable, "-m", "jobs.benchmarks.scaling", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "efficiency" in done.stdout
    one, three = json.loads(out.read_text())
    assert (one["workers"], one["num_units"]) == (1, 5)
    assert (three["workers"], three["num_units"]) == (3, 15)
    assert 0.25 < one["units_a_second"] < 0.55  # 0.5 is what a generator of 2 s a unit can do
    assert three["units_a_second"] > 2 * one["units_a_second"]
    assert one["start_s"] < one["whole_s"]

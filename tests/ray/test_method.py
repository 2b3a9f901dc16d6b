"""A whole run with everything around the rule: a pilot, waves, controls, terms of the loss, the audit trail."""

import json
import subprocess
import sys

import pytest
from running import begin, finish, write_config

from rsft_cluster.records import Evaluation, PilotChoice, TrainingResult
from rsft_cluster.store import Store

pytestmark = pytest.mark.ray


def test_a_round_with_pilot_waves_controls_and_rejection_is_whole_and_audited(tmp_path) -> None:
    config = write_config(
        tmp_path,
        "method",
        sampling__num_candidates=6,
        budget={"wave_size": 2, "until_accepted": 2, "max_candidates": 200},
        pilot={"temperatures": [0.8, 1.2], "num_prompts": 8},
        scoring__constraints=[{"use": "pattern", "params": {"must": "[a-m]"}}],
        controls=["random", "sft_only"],
        training__rejection={"weight": 0.1, "batch_size": 4},
    )
    start, done = finish(begin(config))
    store = Store(str(tmp_path / "runs" / "method"))
    assert (start["stage"], done["stage"]) == ("done", "done")
    assert store.read_record("rounds/0001/pilot.json", PilotChoice).temperature in (0.8, 1.2)
    assert 1 < done["num_waves"] <= 3
    assert done["num_candidates"] <= 200
    assert set(done["controls"]) == {"random", "sft_only"}
    challenger = store.read_record("rounds/0001/training.json", TrainingResult)
    for name in ("random", "sft_only"):
        arm = store.read_record(f"controls/{name}/0001/training.json", TrainingResult)
        assert arm.num_steps == challenger.num_steps
        assert arm.started_from == challenger.started_from
        assert arm.num_examples == (challenger.num_examples if name == "random" else 0)
        assert store.read_record(f"controls/{name}/0001/evaluation/evaluation.json", Evaluation).num_prompts == 12
    verified = rsft("audit", "verify", store.root, "--json")
    assert json.loads(verified)["holds"]
    assert json.loads(verified)["num_replayed"] == done["num_candidates"]
    again = finish(begin(config))
    assert again[1] == done


def rsft(*arguments: str) -> str:
    command = [sys.executable, "-m", "rsft_cluster", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

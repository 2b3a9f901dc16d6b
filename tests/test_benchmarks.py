"""The sampling benchmark: its workload is what it says it is, and a small run writes what is read from it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from jobs.benchmarks import scoring, workload
from jobs.benchmarks.results import RATIOS
from rsft_cluster.config import Plugin
from rsft_cluster.constraints.building import build
from rsft_cluster.constraints.outcomes import outcomes_of

ROOT = Path(__file__).resolve().parent.parent
TINY = workload.SHAPES["tiny"]


def test_prompts_have_the_promised_lengths_and_do_not_hold_an_end():
    prompts = workload.prompts(workload.SHAPES["15m"], 64, shortest=16, longest=256)
    lengths = sorted(map(len, prompts))
    assert 16 <= lengths[0] < 18
    assert 240 < lengths[-1] <= 256
    assert 80 < sum(lengths) / 64 < 100
    assert lengths[32] == 65  # log-uniform: the middle is the geometric mean
    ends = workload.end_tokens(workload.SHAPES["15m"])
    assert 55 < workload.SHAPES["15m"].vocabulary / len(ends) < 65
    assert not set(ends) & {token for prompt in prompts for token in prompt}


def test_fewer_prompts_have_the_same_spread_and_come_in_whole_groups():
    prompts = workload.prompts(TINY, 64, shortest=16, longest=256)
    few = [len(prompt) for prompt in workload.thinned(prompts, 8)]
    assert len(few) == 8
    assert abs(sum(few) / 8 - sum(map(len, prompts)) / 64) < 10
    lengths = [len(prompt) for prompt in workload.thinned(prompts, 16, group=8)]
    assert lengths == sorted(map(len, prompts))[16:24] + sorted(map(len, prompts))[48:56]


def test_a_model_is_read_by_others_as_it_was_meant(tmp_path):
    folder = workload.prepare("tiny", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (prompt,) = workload.prompts(TINY, 1, shortest=16, longest=16)
    assert tokenizer(workload.text_of(prompt))["input_ids"] == prompt
    assert len(tokenizer) == AutoConfig.from_pretrained(folder).vocab_size == TINY.vocabulary
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert GenerationConfig.from_pretrained(folder).eos_token_id == workload.end_tokens(TINY)
    written = (folder / "shape.json").stat().st_mtime_ns
    assert workload.prepare("tiny", tmp_path) == folder
    assert (folder / "shape.json").stat().st_mtime_ns == written


def test_two_contestants_on_two_prompts(tmp_path):
    out = tmp_path / "bench.json"
    options = {"models": "tiny", "prompts": 2, "candidates": 2, "max-tokens": 8, "repetitions": 2, "threads": 1}
    options |= {"cache": tmp_path / "cache", "out": out}
    command = [sys.executable, "-m", "jobs.benchmarks.sampling", "--contestants", "generate", "rsft"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(out.read_text())["models"]
    assert found["ratios"].keys() == RATIOS.keys()
    assert found["ratios"]["vs_generate"] > 0
    assert found["ratios"]["vs_vllm"] is None
    for contestant in found["contestants"].values():
        assert [r["number"] for r in contestant["repetitions"]] == [1, 2]
        assert all(4 <= r["useful_tokens"] <= 2 * 2 * 8 for r in contestant["repetitions"])
    assert all(name in done.stdout for name in ("generate", "rsft", "tok/s"))


def test_a_small_run_of_the_scoring_benchmark_writes_what_is_read_from_it(tmp_path):
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "jobs.benchmarks.scoring", "--repetitions", "1", "--candidates", "50"]
    done = subprocess.run(
        [*command, "--only", "finished", "similarity", "--out", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in rows] == ["finished", "similarity"]
    assert all(row["bare"][0] > 0 and row["isolated"][0] > 0 for row in rows)
    assert "cost of isolation" in done.stdout


@pytest.mark.parametrize("name", sorted(scoring.SETTINGS))
def test_the_settings_of_the_scoring_benchmark_are_usable(name):
    candidates = scoring.solutions(40)
    outcomes = outcomes_of(build(Plugin(use=name, params=scoring.SETTINGS[name]), name=name), candidates)
    assert not [o.error for o in outcomes if o.error]

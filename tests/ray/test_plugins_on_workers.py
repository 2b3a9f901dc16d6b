"""Generators that crash, hang and fail, named from the config's own folder; and the first source text's example.

Adversarially checked: one poison prompt costs itself alone, and a bounded number of workers.
"""

import json
import subprocess
import sys

import pytest
import yaml
from factories import write_jsonl
from models import tiny_gpt2, tiny_llama

pytestmark = pytest.mark.ray

PLUGIN = '''
import os, time
from rsft_cluster.generators.scripted import ScriptedGenerator


class Poisoned(ScriptedGenerator):
    """Dies, hangs or raises at one prompt."""

    def __init__(self, policy, *, how: str) -> None:
        super().__init__(policy, accuracy=0.7)
        self._how = how

    def generate(self, prompts, decoding, keys):
        if any(p.messages[-1].content == "poison" for p in prompts):
            if self._how == "die":
                os._exit(9)
            if self._how == "hang":
                time.sleep(600)
            if self._how == "raise":
                raise RuntimeError("cannot answer this")
        yield from super().generate(prompts, decoding, keys)
'''


def write_config(folder, **changes):
    (folder / "poisoned.py").write_text(PLUGIN)
    rows = [{"prompt": f"q{i}", "answer": str(i)} for i in range(16)]
    rows[5]["prompt"] = "poison"
    write_jsonl(folder / "prompts.jsonl", rows)
    write_jsonl(folder / "held_out.jsonl", [{"prompt": f"held out {i}", "answer": str(i)} for i in range(4)])
    tiny_llama(folder / "model")
    columns = {"reference": "answer"}
    config = {
        "run": "poison", "store": str(folder / "runs"), "policy": {"model": "model"},
        "prompts": {"paths": ["prompts.jsonl"], "columns": columns},
        "sampling": {"generator": {"use": "poisoned:Poisoned", "params": {"how": "die"}}, "num_candidates": 3,
                     "unit_size": 8, "max_tokens": 16},
        "scoring": {"constraints": ["answer_matches"]},
        "evaluation": {"prompts": {"paths": ["held_out.jsonl"], "columns": columns}, "num_samples": 2},
    }  # fmt: skip
    config["sampling"] |= changes
    path = folder / "poison.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True))
    return path


def rsft(*arguments):
    command = [sys.executable, "-m", "rsft_cluster", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)


@pytest.mark.parametrize(
    ("how", "settings", "most_attempts"),
    [("die", {}, 11), ("hang", {"unit_timeout_s": 2}, 11), ("raise", {}, 11)],
)
def test_a_poison_prompt_ends_in_quarantine_and_the_others_are_answered(tmp_path, how, settings, most_attempts):
    generator = {"use": "poisoned:Poisoned", "params": {"how": how}}
    done = rsft("sample", write_config(tmp_path, generator=generator, **settings), "--quiet")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "poison"
    totals = json.loads((run / "rounds" / "0001" / "manifest.json").read_text())["totals"]
    assert totals["num_prompts_quarantined"] == 1
    assert totals["num_candidates"] == 15 * 3
    shown = rsft("inspect", run, "--state", "quarantined", "--json")
    (row,) = map(json.loads, shown.stdout.splitlines())
    assert row["messages"][0]["content"] == "poison"
    assert row["reason"].startswith("crashed")
    # 3 + 2 a halving of the 8 prompts, and one more where Ray repeats a task by itself.
    begun = [p for p in run.glob("rounds/0001/attempts/0000000*.json") if ".failed" not in p.name]
    poisoned = {p.name.split(".")[0] for p in begun}
    assert len(begun) - len(poisoned) <= most_attempts


def test_a_generator_that_always_fails_stops_the_run_with_its_error(tmp_path):
    config = write_config(tmp_path, generator={"use": "poisoned:Poisoned", "params": {"how": "raise"}})
    write_jsonl(tmp_path / "held_out.jsonl", [{"prompt": "poison", "answer": "1"}])
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "q", "answer": "1"}])
    done = rsft("sample", config, "--quiet")
    assert done.returncode == 1
    assert "RuntimeError: cannot answer this" in done.stderr


def test_the_first_source_text_runs_a_whole_round(tmp_path):
    """GPT-2, a Chinese prompt, ten candidates, two forbidden words, random weights."""
    tiny_gpt2(tmp_path / "model")
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "今天的天气很好，我们去"}])
    write_jsonl(tmp_path / "held_out.jsonl", [{"prompt": "明天我们"}])
    config = {
        "run": "content", "store": str(tmp_path / "runs"), "policy": {"model": "model"},
        "prompts": {"paths": ["prompts.jsonl"]},
        "sampling": {"num_candidates": 10, "max_tokens": 16},
        "scoring": {"constraints": [{"use": "words", "params": {"forbidden": ["不道德", "有偏见"]}}]},
        "training": {"steps": 3, "batch_size": 4},
        "evaluation": {"prompts": {"paths": ["held_out.jsonl"]}, "num_samples": 2},
        "promotion": {"rule": "always"},
    }  # fmt: skip
    path = tmp_path / "content.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    done = rsft("run", path, "--json")
    assert done.returncode == 0, done.stderr
    _, first = json.loads(done.stdout)
    assert first["num_candidates"] == 10
    assert first["num_accepted"] >= 1
    assert first["promoted"] is True
    shown = rsft("inspect", tmp_path / "runs" / "content", "--json", "--limit", "0")
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert {row["messages"][0]["content"] for row in rows} == {"今天的天气很好，我们去"}
    assert all(v["reason"] for row in rows for v in row["verdicts"])

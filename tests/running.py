"""Whole runs as a user starts them: small configs, and the command line in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import yaml
from factories import write_jsonl
from models import tiny_llama

NUM_PROMPTS, NUM_HELD_OUT = 48, 12
DEADLINE_S = 300


def write_config(folder: Path, name: str, **changes) -> Path:
    """A run of two sampling and two training workers over a random tiny Llama; `changes` are dotted keys."""
    if not (folder / "model").exists():
        tiny_llama(folder / "model")
        rows = [{"prompt": f"{i} + 1 =", "answer": str(i + 1)} for i in range(NUM_PROMPTS + NUM_HELD_OUT)]
        write_jsonl(folder / "prompts.jsonl", rows[:NUM_PROMPTS])
        write_jsonl(folder / "held_out.jsonl", rows[NUM_PROMPTS:])
        write_jsonl(folder / "worked.jsonl", [{"prompt": r["prompt"], "completion": r["answer"]} for r in rows[:8]])
    config = {
        "run": name, "store": str(folder / "runs"), "rounds": 1, "policy": {"model": "model"},
        "prompts": {"paths": ["prompts.jsonl"], "columns": {"reference": "answer"}},
        "sampling": {"num_candidates": 4, "max_tokens": 8, "unit_size": 4, "batch_size": 16, "workers": 2},
        "scoring": {"constraints": [{"use": "length", "params": {"min": 1, "unit": "tokens"}}]},
        "training": {"steps": 12, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-3, "workers": 2,
                     "replay": "worked.jsonl", "checkpoint_every": 4},
        "evaluation": {"prompts": {"paths": ["held_out.jsonl"], "columns": {"reference": "answer"}}, "num_samples": 2},
    }  # fmt: skip
    for key, value in changes.items():
        part, _, leaf = key.rpartition("__")
        (config.setdefault(part, {}) if part else config)[leaf] = value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def begin(config: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen:
    command = [sys.executable, "-m", "rsft_cluster", "run", str(config), "--json"]
    env = os.environ | (environment or {})
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def finish(process: subprocess.Popen) -> list[dict]:
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    return json.loads(out)


def wait_for(process: subprocess.Popen, condition, *, every_s: float = 0.02) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the awaited moment never came"
        time.sleep(every_s)

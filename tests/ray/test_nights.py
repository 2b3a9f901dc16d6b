"""Whole nights on a local Ray: one promotes, one finds nothing new, one regresses, one is missed, one is killed."""

import json
import os
import signal
import subprocess
import sys

import pytest
from factories import write_jsonl
from running import DEADLINE_S, NUM_HELD_OUT, NUM_PROMPTS, wait_for, write_config

from rsft_cluster.records import Evaluation
from rsft_cluster.runs.promotions import PromotionLog
from rsft_cluster.store import Store

pytestmark = pytest.mark.ray

LONG = [{"use": "length", "params": {"min": 6, "unit": "tokens"}}]
STARTERS = 50
START = """
import json, multiprocessing, sys
from datetime import date
from pathlib import Path
from rsft_cluster.config.file import load_config
from rsft_cluster.errors import AlreadyRunningError
from rsft_cluster.nightly.night import nightly
from rsft_cluster.report.reporter import Reporter

def start(number, barrier, said):
    config = load_config(Path(sys.argv[1]), ())
    barrier.wait()
    try:
        outcome = nightly(config, date(2026, 11, 20), Reporter(quiet=True)).outcome
    except AlreadyRunningError as error:
        outcome = error.exit_code
    except BaseException as error:
        outcome = repr(error)
    said.put(outcome)

num = int(sys.argv[2])
barrier, said = multiprocessing.Barrier(num), multiprocessing.Queue()
starters = [multiprocessing.Process(target=start, args=(n, barrier, said)) for n in range(num)]
for starter in starters:
    starter.start()
print(json.dumps([said.get() for _ in starters]))
for starter in starters:
    starter.join()
"""


def begin(config, night, *changes):
    command = [sys.executable, "-m", "rsft_cluster", "nightly", str(config), "--date", night, "--json"]
    command += [part for change in changes for part in ("--set", change)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    return json.loads(out)


def add_prompts(folder, first, num):
    with (folder / "prompts.jsonl").open("a") as file:
        file.writelines(
            json.dumps({"prompt": f"{i} + 2 =", "answer": str(i + 2)}) + "\n" for i in range(first, first + num)
        )


def test_a_week_of_nights(tmp_path):
    config = write_config(tmp_path, "week", scoring__constraints=LONG)
    bad = [{"prompt": f"{i} + 2 =", "completion": "7"} for i in range(400)]
    write_jsonl(tmp_path / "bad.jsonl", bad)
    store = Store(str(tmp_path / "runs" / "week"))

    friday = finish(begin(config, "2026-11-20", "promotion.rule=always", "training.replay=null"))
    assert (friday["outcome"], friday["policy"], friday["num_prompts"]) == ("promoted", "2026-11-20", NUM_PROMPTS)
    promoted = PromotionLog(store).entries()[-1].policy
    assert promoted.uri == str(tmp_path / "runs/week/nights/2026-11-20/rounds/0001/model")

    saturday = finish(begin(config, "2026-11-21"))
    assert (saturday["outcome"], saturday["num_prompts"]) == ("nothing_new", 0)

    # Nobody started Sunday's night. Monday's learns from worked examples that are far too short.
    add_prompts(tmp_path, 0, 8)
    steps = ("training.steps=40", "training.learning_rate=0.003", f"training.replay={tmp_path / 'bad.jsonl'}")
    monday = finish(begin(config, "2026-11-23", *steps))
    assert (monday["outcome"], monday["policy"], monday["num_prompts"]) == ("kept", "2026-11-20", 8)
    assert monday["after"] < monday["before"]
    assert monday["missed"] == ["2026-11-22"]
    night = Store(store.uri_of("nights/2026-11-23"))
    began = night.read_record("rounds/0000/evaluation/evaluation.json", Evaluation)
    assert (began.policy.uri, began.policy.digest) == (promoted.uri, promoted.digest)
    assert len(PromotionLog(store).entries()) == 2

    # Tuesday's is killed at its work; Wednesday's start finishes it, on the prompts that it had taken.
    add_prompts(tmp_path, 100, 6)
    killed = begin(config, "2026-11-24")
    wait_for(killed, lambda: store.files("nights/2026-11-24/rounds/0001/commits"))
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    add_prompts(tmp_path, 200, 3)
    wednesday = finish(begin(config, "2026-11-25", "nightly.min_prompts=3"))
    tuesday = json.loads(store.read("nights/2026-11-24.json"))
    assert (tuesday["num_prompts"], wednesday["num_prompts"]) == (6, 3)
    assert {tuesday["outcome"], wednesday["outcome"]} <= {"kept", "promoted"}
    seen = [store.read_batches(path) for path in store.files("seen")]
    taken = [prompt for batches in seen for batch in batches for prompt in batch.column("prompt_id").to_pylist()]
    assert len(taken) == len(set(taken)) == NUM_PROMPTS + 8 + 6 + 3
    assert json.loads(night.read("prompts/held_out.json"))["num_prompts"] == NUM_HELD_OUT


def test_fifty_starters_give_one_night(tmp_path):
    config = write_config(tmp_path, "once")
    begun = subprocess.run(
        [sys.executable, "-c", START, str(config), str(STARTERS)], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert begun.returncode == 0, begun.stderr
    outcomes = json.loads(begun.stdout)
    won = [outcome for outcome in outcomes if outcome != 75]
    assert len(outcomes) == STARTERS
    assert len(set(won)) == 1 <= len(won), outcomes  # who comes when it is over is told how it went
    store = Store(str(tmp_path / "runs" / "once"))
    assert store.files("nights") == ["nights/2026-11-20.json"]
    assert len(store.files("nights/2026-11-20/starts")) == 1
    assert len(store.files("nights/2026-11-20/rounds/0001/commits")) == NUM_PROMPTS // 4
    assert len(PromotionLog(store).entries()) == 1 + (won[0] == "promoted")

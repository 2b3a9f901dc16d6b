"""Sealed rounds made by columns: as many judged candidates as wanted in a moment, without anything being sampled.

`python tests/stored.py FOLDER NUMBER` makes a run below a folder, for measurements by hand.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from factories import prompt

from rsft_cluster.collection.plan import write_plan
from rsft_cluster.collection.score_table import UNDECIDED
from rsft_cluster.config import RunConfig
from rsft_cluster.records import Manifest, PolicyRef, Totals
from rsft_cluster.schemas import CANDIDATE, PROMPT, SCORE, VERDICT, rows_to_table
from rsft_cluster.store import Store
from rsft_cluster.store.layout import Folder

POLICY = PolicyRef(name="round-0000", uri="/m", digest="d")
CONSTRAINTS = ("strict", "lenient", "slow")


def config(folder: Path, **parts) -> RunConfig:
    whole = {
        "run": "stored", "store": str(folder), "policy": {"model": "/m"}, "prompts": {"paths": ["/p.jsonl"]},
        "evaluation": {"prompts": {"paths": ["/h.jsonl"]}}, "sampling": {"generator": "scripted"},
        "scoring": {"constraints": [{"use": "finished", "name": name} for name in CONSTRAINTS]}, **parts,
    }  # fmt: skip
    return RunConfig.model_validate(whole)


def stored_run(folder: Path, *, num_candidates=4096, per_prompt=8, unit_size=64, seed=0, **parts) -> Store:
    """Write a run with one sealed round of made-up candidates, none of them accepted; return its store.

    `strict` passes where the score is above 0.4 and fails longer ones more often; `lenient` always passes but for
    errors, some of them time-outs; `slow` says what `strict` says, and has nothing to say of every tenth candidate.
    """
    rng, store = np.random.default_rng(seed), Store(str(folder / "stored"))
    store.create("config.json", config(folder, **parts).model_dump_json(indent=1).encode())
    rows = [prompt(f"What is {i} + 1?", reference=str(i + 1)) for i in range(num_candidates // per_prompt)]
    prompts = rows_to_table(rows, PROMPT)
    store.write_batches("prompts/train.parquet", prompts.to_batches(), PROMPT, rows=unit_size)
    at = Folder(store, "rounds/0001")
    plan = write_plan(
        at, round_number=1, stream="round-0001", seed=seed, policy=POLICY, passes=(), prompts="prompts/train.parquet",
        fingerprint="f",
    )  # fmt: skip
    store.create(at.plan, plan.to_json())
    candidates, scores, num_passed = [], [], 0
    ids = prompts.column("prompt_id").combine_chunks()
    for unit in range(plan.num_units):
        of_unit = ids.slice(unit * unit_size, unit_size)
        made = _unit(rng, of_unit.take(np.repeat(np.arange(len(of_unit)), per_prompt)), per_prompt)
        name = f"{unit:07d}.test.parquet"
        candidates.append(store.write_table(at.at("candidates", name), made[0], CANDIDATE))
        scores.append(store.write_table(at.at("scores", name), made[1], SCORE))
        num_passed += int(np.sum(made[1].column("passed").fill_null(False).to_numpy()))
    totals = Totals(
        num_prompts=len(rows), num_prompts_accepted=0, num_prompts_unaccepted=len(rows), num_prompts_quarantined=0,
        num_solved=0, num_candidates=num_candidates, num_decided=num_candidates, num_passed=num_passed,
        num_accepted=0, num_tokens=0, num_verdicts=len(CONSTRAINTS) * num_candidates, num_errors=0,
    )  # fmt: skip
    manifest = Manifest(
        round=1, policy=POLICY, fingerprint="f", rule="nothing", units=tuple(f"{i:07d}" for i in range(plan.num_units)),
        candidates=tuple(candidates), scores=tuple(scores), accepted=(), totals=totals, accepted_digest="",
        content="", generator="none",
    )  # fmt: skip
    store.create(at.manifest, manifest.to_json())
    return store


def _unit(rng, prompts: pa.Array, per_prompt: int) -> tuple[pa.Table, pa.Table]:
    size = len(prompts)
    num_tokens = rng.integers(1, 80, size)
    score = np.clip(rng.integers(0, 11, size) - num_tokens // 16, 0, 10) / 10
    error = np.arange(size) % 97 == 0
    passed = pa.array(score > 0.4, mask=error)
    ids, index = _hex(rng, size, 16), pa.array(np.arange(size) % per_prompt, pa.int32())
    ends = pa.array(np.cumsum([0, *num_tokens]), pa.int32())
    tokens = pa.ListArray.from_arrays(ends, pa.array(rng.integers(0, 9999, ends[-1].as_py()), pa.int32()))
    ones, zeros = pa.array(np.ones(size)), pa.array(np.zeros(size, dtype=np.int32))
    logprob = pa.array(-rng.random(size) * num_tokens)
    shared = {
        "candidate_id": ids, "prompt_id": prompts, "index": index, "logprob": logprob, "target_logprob": logprob,
        "survival": ones,
    }  # fmt: skip
    text = pa.array([f"The answer is {i}" for i in rng.integers(0, 99, size)])
    candidates = {
        **shared, "round": pa.array(np.ones(size, dtype=np.int32)), "wave": zeros, "prompt_token_ids": tokens,
        "token_ids": tokens, "text": text, "finish_reason": pa.array(["stop"] * size),
        "seed": pa.array(np.zeros(size, dtype=np.uint64)), "policy": pa.array(["round-0000"] * size),
    }  # fmt: skip
    reason = np.where(score > 0.4, "passed", "strict: the score is low")
    reason[error] = "error in lenient: timed out"
    decided = {name: pa.array([value] * size, SCORE.field(name).type) for name, value in UNDECIDED.items()}
    scores = {
        **decided, **shared, "score": pa.array(score, mask=error), "passed": passed,
        "verdicts": _verdicts(score, error, rng), "num_tokens": pa.array(num_tokens, pa.int32()),
        "content": _hex(rng, size, 12), "decision": pa.nulls(size, pa.string()), "u": pa.array(rng.random(size)),
        "reason": pa.array(reason),
    }  # fmt: skip
    return (
        pa.table({name: candidates[name] for name in CANDIDATE.names}),
        pa.table({name: scores[name] for name in SCORE.names}),
    )


def _verdicts(score: np.ndarray, error: np.ndarray, rng) -> pa.Array:
    """Return the verdicts of the three constraints, row by row."""
    size = len(score)
    silent = np.stack([np.zeros(size, bool), error, np.arange(size) % 10 == 0], axis=1).ravel()
    says = np.stack([score, np.ones(size), score], axis=1).ravel()
    passes = np.stack([score > 0.4, np.ones(size, bool), score > 0.4], axis=1).ravel()
    failing = np.stack([np.zeros(size, bool), error, np.zeros(size, bool)], axis=1).ravel()
    duration = (rng.random((size, 3)) * np.array([1e-3, 1e-3, 1e-1])).ravel()
    columns = {
        "constraint": pa.array(list(CONSTRAINTS) * size), "score": pa.array(says, mask=silent),
        "passed": pa.array(passes, mask=silent), "reason": pa.array(np.where(passes, "", "the score is low")),
        "error": pa.array(np.where(failing, "TimeoutError: took longer than 5 s", ""), mask=~failing),
        "fatal_at": pa.nulls(3 * size, pa.int32()), "duration_s": pa.array(duration),
    }  # fmt: skip
    structs = pa.StructArray.from_arrays([columns[f.name] for f in VERDICT], fields=list(VERDICT))
    return pa.ListArray.from_arrays(pa.array(np.arange(0, 3 * size + 1, 3), pa.int32()), structs)


def _hex(rng, size: int, num_bytes: int) -> pa.Array:
    """Return random texts of hex digits."""
    offsets = pa.array(np.arange(0, 2 * num_bytes * size + 1, 2 * num_bytes), pa.int32())
    text = rng.bytes(num_bytes * size).hex().encode()
    return pa.StringArray.from_buffers(size, offsets.buffers()[1], pa.py_buffer(text))


if __name__ == "__main__":
    print(stored_run(Path(sys.argv[1]), num_candidates=int(sys.argv[2])).uri)

"""Files of judged candidates, for tests of what is unlearned."""

from pathlib import Path

import pyarrow.parquet as pq
from models import BOS

from rsft_cluster.schemas import CANDIDATE, SCORE, candidate_id, rows_to_table


def verdict(*, passed: bool | None = True, fatal_at: int | None = None, constraint: str = "c") -> dict:
    error = None if passed is not None else "Traceback"
    score = None if passed is None else float(passed)
    fields = {"constraint": constraint, "score": score, "passed": passed, "reason": "", "error": error}
    return {**fields, "fatal_at": fatal_at, "duration_s": 0.0}


def judged(
    prompt: str, token_ids: list[int], *verdicts: dict, accepted: bool = False, index: int = 0, **more: float
) -> tuple[dict, dict]:
    """Return the CANDIDATE row and the SCORE row of a candidate with these verdicts."""
    round_number, logprob = int(more.get("round", 1)), more.get("logprob", -1.5)
    said = [v["passed"] for v in verdicts]
    passed = None if None in said else all(said)
    name = {"candidate_id": candidate_id(prompt, round_number, index), "prompt_id": prompt, "index": index}
    drawn = {"logprob": logprob, "target_logprob": logprob, "survival": 1.0}
    candidate = {
        **name, **drawn, "round": round_number, "wave": 0, "prompt_token_ids": [BOS, *prompt.encode()],
        "token_ids": token_ids, "text": "", "finish_reason": "stop", "seed": 0, "policy": "round-0000",
    }  # fmt: skip
    score = {
        **name, **drawn, "score": 0.0, "passed": passed, "verdicts": list(verdicts), "num_tokens": len(token_ids),
        "content": "", "u": 0.5, "rule_probability": 0.0, "cell_weight": 1.0, "acceptance_probability": 0.0,
        "accepted": accepted, "reason": "",
    }  # fmt: skip
    return candidate, score


def write(folder: Path, rows: list[tuple[dict, dict]], name: str = "u") -> tuple[str, str]:
    paths = str(folder / f"{name}.candidates.parquet"), str(folder / f"{name}.scores.parquet")
    for path, part, schema in zip(paths, zip(*rows, strict=True), (CANDIDATE, SCORE), strict=True):
        pq.write_table(rows_to_table(part, schema), path)
    return paths

"""Two-digit addition, column by column: the task, its tokenizer, its untrained model, and its constraint.

    47+85:7+5+0=12,4+8+1=13>132$

The prompt is all up to the colon; a completion adds the columns from the right with their carry and ends with the sum.
After STaR's n-digit addition (Zelikman et al. 2022).
"""

import json
import random
import re
from pathlib import Path

from rsft_cluster.constraints.base import Candidate, Verdict

TITLE = "Two-digit addition"
SYMBOLS = "0123456789+:=,>$_"
END, PAD, CONTEXT = "$", "_", 64
BASE_STEPS = 300
SIZES = {"worked": 150, "prompts": 800, "held_out": 300}
VARIANTS = {"four candidates for every prompt and round": ["sampling.num_candidates=4", "budget={}"]}
_SUM = re.compile(r"(\d+)\+(\d+):")


def worked(a: int, b: int) -> str:
    """Return the right completion of `a+b:`, the end sign left out."""
    carry, columns = 0, []
    for x, y in zip(reversed(f"{a:02d}"), reversed(f"{b:02d}"), strict=True):
        total = int(x) + int(y) + carry
        columns.append(f"{x}+{y}+{carry}={total}")
        carry = total // 10
    return ",".join(columns) + f">{a + b}"


def right_sum(candidate: Candidate) -> Verdict:
    """Judge a completion: every column right, and the sum right. The reason names the first mistake."""
    asked = _SUM.fullmatch(candidate.prompt)
    if asked is None:
        raise ValueError(f"{candidate.prompt!r} asks for no sum; expected something like '47+85:'")
    expected = worked(int(asked[1]), int(asked[2]))
    if candidate.completion == expected:
        return Verdict.of(True, "every column and the sum are right")
    steps, _, answer = candidate.completion.partition(">")
    for found, right in zip(steps.split(","), expected.partition(">")[0].split(","), strict=False):
        if found != right:
            return Verdict.of(False, f"wrote {found!r} where {right!r} is right")
    return Verdict.of(False, f"answered {answer!r}; the sum is {int(asked[1]) + int(asked[2])}")


def write_task(folder: Path, *, seed: int) -> None:
    """Write worked.jsonl, prompts.jsonl and held_out.jsonl: disjoint problems, drawn once by the seed."""
    problems = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(seed).shuffle(problems)
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for name, size in SIZES.items():
        chosen = problems[first : first + size]
        first += size
        rows = [{"prompt": f"{a}+{b}:", "completion": worked(a, b), "sum": str(a + b)} for a, b in chosen]
        if name != "worked":
            rows = [{k: v for k, v in row.items() if k != "completion"} for row in rows]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")

"""Scoring: candidates a second of each constraint and of a typical set, and what isolation costs.

    make bench-scoring                           # or python -m jobs.benchmarks.scoring --repetitions 5

Every constraint judges the same worked solutions, in this process and in one process of the pool, in turns and on one
core: their ratio is the cost of isolation. Then a call of known length, programs in the sandbox, and, on all cores,
what remains of the speed when one call in ten hangs. Figures are medians; all repetitions are in bench-scoring.json.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from rsft_cluster.config.parts import Constraint
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.constraints.building import build
from rsft_cluster.constraints.outcomes import Outcome, outcomes_of
from rsft_cluster.report.console import results
from rsft_cluster.schemas import Message
from rsft_cluster.scoring.isolation.pool import ProcessPool

MEMORY_BYTES = 4 * 2**30
SETTINGS: dict[str, dict[str, Any]] = {
    "answer_matches": {},
    "finished": {},
    "format": {},
    "json_schema": {"schema": {"type": "object"}, "extract": "first"},
    "language": {"languages": ["en"]},
    "length": {"max": 400, "unit": "words"},
    "math_equal": {},
    "no_repeat_of_prompt": {},
    "pattern": {"must": r"####\s*\d+"},
    "pii": {},
    "repetition": {},
    "safety_words": {"lexicon": {"violence": ["kill", "bomb"], "drugs": ["heroin"]}},
    "similarity": {"at_least": 0.3},
    "words": {"forbidden": ["as an AI", "cannot"]},
}
TYPICAL = ("math_equal", "finished", "length", "language", "repetition", "words")


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one set of constraints."""

    name: str
    bare: list[float]
    """Candidates a second in this process, a repetition each."""
    isolated: list[float]
    """The same in one process of the pool."""

    @property
    def cost(self) -> float:
        """Return the median over repetitions of the time in the pool by that in this process, less 1."""
        return statistics.median(b / i for b, i in zip(self.bare, self.isolated, strict=True)) - 1


def busy(candidate: Candidate, *, work_s: float) -> bool:
    """Take a known time of the processor; hang where the completion says so."""
    end = time.process_time() + work_s
    while time.process_time() < end or candidate.completion == "spin":
        pass
    if candidate.completion == "sleep":
        time.sleep(10_000)
    return True


def solutions(num: int) -> list[Candidate]:
    """Return worked solutions of some 80 words each, the last number of which is right in three of four."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(num):
        a, b, c = (int(n) for n in rng.integers(2, 90, 3))
        wrong = int(rng.integers(4) == 0)
        steps = (
            f"First we look at what is given: {a} boxes with {b} pencils each, and {c} loose ones. "
            f"The boxes hold {a} * {b} = {a * b} pencils, since every one of them holds the same number. "
            f"Nobody took any out, as far as the question says, so we only have to add the loose ones to them. "
            f"Together that makes {a * b} + {c} = {a * b + c + wrong} pencils, which is what was asked for.\n"
            f"#### {a * b + c + wrong}"
        )
        prompt = f"There are {a} boxes of {b} pencils and {c} loose pencils. How many pencils are there?"
        found.append(Candidate(steps, (Message("user", prompt),), str(a * b + c), num_tokens=120, candidate_id=str(i)))
    return found


def programs(num: int) -> list[Candidate]:
    """Return programs with two tests each: two statements that run in a second sandbox."""
    tests = json.dumps(["assert add(2, 3) == 5", "assert add(-1, 1) == 0"])
    text = "```python\ndef add(a, b):\n    return a + b\n```"
    return [Candidate(text, reference=tests, candidate_id=str(i)) for i in range(num)]


def compare(name: str, constraints: Sequence[Constraint], candidates: Sequence[Candidate], repetitions: int) -> Row:
    """Judge in this process and in one process of the pool, in turns."""
    built = [build(constraint, name=constraint.name) for constraint in constraints]
    row = Row(name, [], [])
    places = [range(len(candidates))] * len(constraints)
    with closing(ProcessPool(constraints, num_processes=1, memory_bytes=MEMORY_BYTES)) as pool:
        pool.judge(candidates[:40], [range(40)] * len(constraints))
        for _ in range(repetitions):
            row.bare.append(_rate(lambda: [outcomes_of(one, candidates) for one in built], len(candidates)))
            row.isolated.append(_rate(lambda: pool.judge(candidates, places), len(candidates)))
    return row


def hanging(how: str, work_s: float, repetitions: int) -> list[float]:
    """Return the share of the useful calls' speed that remains when one call in ten hangs, a repetition each.

    A speed is that until the last useful call is over; a judged unit then waits for the deadline of its last hang.
    """
    useful = [Candidate("", candidate_id=str(i)) for i in range(round(18 / work_s))]
    mixed = [c for i, one in enumerate(useful) for c in ((one, Candidate(how)) if i % 9 == 8 else (one,))]
    constraint = Constraint(use="jobs.benchmarks.scoring:busy", params={"work_s": work_s}, timeout_s=1.0)
    shares = []
    for _ in range(repetitions):
        with closing(ProcessPool([constraint], num_processes=2, memory_bytes=MEMORY_BYTES)) as pool:
            pool.judge(useful[:20], [range(20)])
            plain = _useful_s(pool, useful)
            pool.judge(mixed[:100], [range(100)])  # from now on it is known that calls hang
            with_hangs = _useful_s(pool, mixed)
        shares.append(plain / with_hangs)
    return shares


def _useful_s(pool: ProcessPool, candidates: Sequence[Candidate]) -> float:
    """Return the seconds until the last call that comes back is over."""
    start = last = time.perf_counter()

    def observer(_number: int, outcome: Outcome) -> None:
        nonlocal last
        if outcome.error is None:
            last = time.perf_counter()

    pool.judge(candidates, [range(len(candidates))], observer=observer)
    return last - start


def _rate(judge: Callable[[], object], num: int) -> float:
    start = time.perf_counter()
    judge()
    return num / (time.perf_counter() - start)


def _busy(work_s: float) -> Constraint:
    return Constraint(use="jobs.benchmarks.scoring:busy", params={"work_s": work_s})


def table(rows: Sequence[Row]) -> Table:
    """Return the rows for the terminal."""
    shown = Table(box=box.SIMPLE_HEAD, title="Scoring on one core", title_justify="left")
    for column in ("constraint", "us a candidate", "candidates/s", "isolated", "cost of isolation"):
        shown.add_column(column, justify="left" if column == "constraint" else "right")
    for row in rows:
        bare, isolated = statistics.median(row.bare), statistics.median(row.isolated)
        shown.add_row(row.name, f"{1e6 / bare:,.0f}", f"{bare:,.0f}", f"{isolated:,.0f}", f"{row.cost:+.0%}")
    return shown


def main() -> None:
    """Measure, print the tables, and write all figures."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.benchmarks.scoring", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--candidates", type=int, default=2000)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="constraints; default all, and all that follows")
    parser.add_argument("--out", type=Path, default=Path("bench-scoring.json"))
    arguments = parser.parse_args()
    progress, console = Console(stderr=True, highlight=False), results()
    candidates, repetitions = solutions(arguments.candidates), arguments.repetitions
    sets = {name: [Constraint(use=name, params=SETTINGS[name])] for name in arguments.only or SETTINGS}
    if not arguments.only:
        sets["typical set: " + ", ".join(TYPICAL)] = [Constraint(use=n, params=SETTINGS[n]) for n in TYPICAL]
        sets |= {f"a call of {ms} ms": [_busy(ms / 1000)] for ms in (1, 5)}
        sets["code"] = [Constraint(use="code")]
    rows, cores = [], os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    for name, constraints in sets.items():
        progress.print(f"{name} ...")
        some = programs(60) if name == "code" else candidates[:400] if name.startswith("a call") else candidates
        rows.append(compare(name, constraints, some, repetitions))
    os.sched_setaffinity(0, cores)
    console.print(table(rows))
    shares = {}
    for how, work_ms in () if arguments.only else product(("sleep", "spin"), (20, 100)):
        case = f"one call of {work_ms} ms in ten hangs ({how})"
        progress.print(f"{case} ...")
        shares[case] = hanging(how, work_ms / 1000, max(1, repetitions // 2))
        console.print(f"{case}: {statistics.median(shares[case]):.0%} of the speed remains")
    figures = {"rows": [asdict(row) | {"cost": row.cost} for row in rows], "hanging": shares}
    arguments.out.write_text(json.dumps(figures, indent=1))
    progress.print(f"every repetition is in {arguments.out}")


if __name__ == "__main__":
    main()

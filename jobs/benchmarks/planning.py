"""Planning: how long a run takes to read its prompts and to plan a round of them, and in how much memory.

    make bench-planning                          # or python -m jobs.benchmarks.planning --prompts 1000000

Short prompts with a reference are written to one file, as Parquet and as JSON lines; each file is taken in and planned
by a process of its own, whose memory is the peak of its resident set. Some 6 GB of disk for ten million prompts, in
--folder, deleted afterwards. All figures are in bench-planning.json.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table

from rsft_cluster.collection.plan import planned_units, write_plan
from rsft_cluster.config import RunConfig
from rsft_cluster.records import Pass, PolicyRef
from rsft_cluster.report.console import results
from rsft_cluster.runs.lease import hold
from rsft_cluster.runs.prompt_sets import ingest_prompts
from rsft_cluster.runs.run import Run, open_store
from rsft_cluster.store.layout import Folder

KINDS = ("parquet", "jsonl")
ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of one file of prompts."""

    kind: str
    num_prompts: int
    num_units: int
    intake_s: float
    """From the file to the run's own prompts, each of them known by its content."""
    intake_cpu_s: float
    """Of the same, the time of the processor: what it takes on a machine that does nothing else."""
    plan_s: float
    read_s: float
    """One pass over the units of the plan, as every survey of the work left makes it."""
    before_mib: float
    """Peak memory before the first prompt."""
    peak_mib: float


def write_prompts(path: Path, first: int, num: int) -> None:
    """Write short prompts, the numbers in them from `first` on."""
    writer = None
    with path.open("wb") as file:
        for start in range(first, first + num, ROWS_AT_ONCE):
            numbers = range(start, min(start + ROWS_AT_ONCE, first + num))
            texts = [f"What is {7919 * i} + {i % 97}? Answer with the number alone." for i in numbers]
            answers = [str(7919 * i + i % 97) for i in numbers]
            if path.suffix == ".jsonl":
                lines = (json.dumps({"prompt": t, "reference": a}) for t, a in zip(texts, answers, strict=True))
                file.write(("\n".join(lines) + "\n").encode())
                continue
            table = pa.table({"prompt": texts, "reference": answers})
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
        if writer:
            writer.close()


def measure(path: Path, held_out: Path, unit_size: int) -> Figures:
    """Take the prompts in and plan a round of them, in this process."""
    columns = {"reference": "reference"}
    config = RunConfig.model_validate(
        {
            "run": f"planning-{path.suffix[1:]}",
            "store": str(path.parent),
            "policy": {"model": "/unused"},
            "prompts": {"paths": [str(path)], "columns": columns},
            "scoring": {"constraints": ["finished"]},
            "sampling": {"unit_size": unit_size},
            "evaluation": {"prompts": {"paths": [str(held_out)], "columns": columns}},
        }
    )
    store, before = open_store(config), _peak_mib()
    policy = PolicyRef(name="round-0000", uri="/unused", digest="unused")
    with hold(store) as lease:
        start, cpu = time.perf_counter(), time.process_time()
        taken, _ = ingest_prompts(Run(config, store, lease, "unused", policy))
        intake_s, cpu_s, start = time.perf_counter() - start, time.process_time() - cpu, time.perf_counter()
        folder = Folder(store, "rounds/0001")
        passes = (Pass(num_candidates=8, temperature=1.0, max_tokens=256, batch_size=128),)
        plan = write_plan(
            folder, round_number=1, stream="round-0001", seed=0, policy=policy, passes=passes, prompts=taken.path,
            fingerprint="unused",
        )  # fmt: skip
        plan_s, start = time.perf_counter() - start, time.perf_counter()
        num_units = sum(1 for _ in planned_units(folder, plan))
        read_s = time.perf_counter() - start
    assert num_units == plan.num_units
    kind, num = path.suffix[1:], plan.num_prompts
    return Figures(kind, num, num_units, intake_s, cpu_s, plan_s, read_s, before, _peak_mib())


def _peak_mib() -> float:
    # Not getrusage: its peak outlives exec, and would be that of the process which started this one.
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _apart(path: Path, held_out: Path, unit_size: int) -> Figures:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "jobs.benchmarks.planning", "--measure", str(path), str(held_out)]
    done = subprocess.run([*command, "--unit-size", str(unit_size)], stdout=subprocess.PIPE, check=True)  # noqa: S603
    return Figures(**json.loads(done.stdout))


def table(rows: list[Figures]) -> Table:
    """Return the figures for the terminal."""
    shown = Table(box=box.SIMPLE_HEAD, title="Planning", title_justify="left")
    for column in ("prompts", "units", "file", "taken in", "CPU", "planned", "plan read", "peak memory", "before"):
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(
            f"{row.num_prompts:,}", f"{row.num_units:,}", row.kind, f"{row.intake_s:,.1f} s",
            f"{row.intake_cpu_s:,.1f} s", f"{row.plan_s:.2f} s",
            f"{row.read_s:.2f} s", f"{row.peak_mib:,.0f} MiB", f"{row.before_mib:,.0f} MiB",
        )  # fmt: skip
    return shown


def main() -> None:
    """Measure, print the table, and write all figures."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.benchmarks.planning", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--prompts", type=int, nargs="+", default=[10_000_000])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--unit-size", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=Path("bench-planning.json"))
    parser.add_argument("--measure", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        path, held_out = arguments.measure
        print(json.dumps(asdict(measure(path, held_out, arguments.unit_size))))
        return
    rows, progress = [], Console(stderr=True, highlight=False)
    for num in arguments.prompts:
        for kind in arguments.kinds:
            folder = Path(tempfile.mkdtemp(prefix="rsft-planning-", dir=arguments.folder))
            try:
                progress.print(f"{num:,} prompts, {kind} ...")
                write_prompts(folder / f"prompts.{kind}", 0, num)
                write_prompts(folder / "held-out.jsonl", num, 200)
                rows.append(_apart(folder / f"prompts.{kind}", folder / "held-out.jsonl", arguments.unit_size))
            finally:
                shutil.rmtree(folder)
    results().print(table(rows))
    arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    progress.print(f"all figures are in {arguments.out}")


if __name__ == "__main__":
    main()

"""Scaling: units a second of 1, 2, 4, ... 64 sampling workers, beside as many times those of one.

    make bench-scaling                           # or python -m jobs.benchmarks.scaling --workers 1 4 16 --waves 8

The generator is the scripted one, which waits as for a GPU: 8 prompts of 1 s each make units of 8 s. Units of a real
model take 30 to 120 s, so that whatever a unit costs beside its waiting weighs 4 to 15 times as much here. All workers
share the cores of this machine and take none of them from Ray's account; all the rest is that of a real round: Ray
Data's pipeline, attempts, constraints in their processes, files, commits, the seal. A collection is measured between
the moment at which every worker has had one unit committed and that at which each has one left (`steady`), so
that neither the start of the actors, which is told apart, nor the last units, where workers run out of work, are in it.
All figures are in bench-scaling.json.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import psutil
import ray
from ray.data import DataContext
from rich import box
from rich.console import Console
from rich.table import Table

from rsft_cluster.acceptance.decide import bind_rule
from rsft_cluster.acceptance.selection import SelectionRules
from rsft_cluster.cluster.connection import chatter_to_file
from rsft_cluster.collection.actors import Work
from rsft_cluster.collection.collect import collect
from rsft_cluster.collection.pipeline import sampled
from rsft_cluster.collection.plan import write_plan
from rsft_cluster.config import AcceptanceConfig, ClusterConfig, Plugin, SamplingConfig, ScoringConfig
from rsft_cluster.plugins import bind
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.progress import Progress
from rsft_cluster.prompts.stored import write_prompts
from rsft_cluster.records import Pass, PolicyRef
from rsft_cluster.report.console import results
from rsft_cluster.schemas import PROMPT, prompt_id, rows_to_table
from rsft_cluster.store import Store
from rsft_cluster.store.layout import Folder

WORKERS = (1, 2, 4, 8, 16, 32, 64)
SCORED_FOR = 32
"""Sampling workers that share a scoring worker."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of a number of workers."""

    workers: int
    num_units: int
    start_s: float
    """Until every worker had begun its first unit."""
    whole_s: float
    """From the call to the sealed manifest, the start of the actors in it."""
    units_a_second: float
    """In the steady state."""
    busy: float
    """Share of the steady state in which workers were in the generator, which is what a GPU would be busy."""
    cpu_s: float
    """Time of the processor a unit took, of all processes together and over the whole collection."""


def work_of(store: Store, name: str, num_units: int, unit_size: int, unit_s: float) -> Work:
    """Write prompts and a plan of so many units; return the work that they are."""
    rows = []
    for i in range(num_units * unit_size):
        messages = [{"role": "user", "content": f"What is {i} + 1?"}]
        source = {"file": "made", "line": i}
        rows.append({"prompt_id": prompt_id(messages, str(i + 1), {}), "messages": messages, "reference": str(i + 1),
                     "attributes": {}, "source": source})  # fmt: skip
    path = f"{name}/prompts.parquet"
    write_prompts(store, path, rows_to_table(rows, PROMPT).to_batches(), PROMPT, unit_size=unit_size)
    folder = Folder(store, name)
    plan = write_plan(
        folder, round_number=1, stream="round-0001", seed=0,
        policy=PolicyRef(name="round-0000", uri="/unused", digest="unused"),
        passes=(Pass(num_candidates=8, temperature=1.0, max_tokens=256, batch_size=64),), prompts=path,
        fingerprint="unused",
    )  # fmt: skip
    acceptance = AcceptanceConfig(dedupe=False)
    generator = Plugin(use="scripted", params={"delay_s": unit_s / unit_size})
    return Work(
        store_uri=store.uri, folder=name, session=uuid4().hex[:12], plan=plan, policy=PolicySpec("/unused"),
        generator=bind(generator, "generators", num_leading=1),
        scoring=_scoring(1), selection=SelectionRules(bind_rule(acceptance), acceptance), decides=True,
        unit_timeout_s=600,
    )  # fmt: skip


def _scoring(workers: int) -> ScoringConfig:
    return ScoringConfig.model_validate(
        {"constraints": ["finished", "answer_matches"], "workers": workers, "num_cpus": 0.5}
    )


def measure(store: Store, workers: int, waves: int, unit_size: int, unit_s: float) -> Figures:
    """Collect `waves` units a worker and say how fast it went."""
    name = f"w{workers:03d}"
    num_units = waves * workers
    work = work_of(store, name, num_units, unit_size, unit_s)
    scorers = max(1, workers // SCORED_FOR)
    work = Work(**{**{f: getattr(work, f) for f in Work.__dataclass_fields__}, "scoring": _scoring(scorers)})
    sampling = SamplingConfig(workers=workers, num_cpus=0, unit_size=unit_size)
    done: list[tuple[float, float]] = []

    def report(progress: Progress) -> None:
        if progress.num_candidates:
            done.append((time.time(), progress.sampling_s))

    cpu, begun = _cpu_s(), time.time()
    collect(
        work,
        sampled(work, sampling),
        ClusterConfig(),
        report,
        lambda path, record: store.create(path, record.to_json()),
    )
    ended, cpu = time.time(), _cpu_s() - cpu
    first: dict[int, float] = {}
    for path in sorted((Path(store.root) / name / "attempts").glob("*.json"), key=lambda p: p.stat().st_mtime):
        first.setdefault(json.loads(path.read_text())["pid"], path.stat().st_mtime)
    (since, busy_since), (until, busy_until) = done[workers - 1], done[-workers - 1]
    return Figures(
        workers=workers,
        num_units=num_units,
        start_s=max(first.values()) - begun,
        whole_s=ended - begun,
        units_a_second=(len(done) - 2 * workers) / (until - since),
        busy=(busy_until - busy_since) / (workers * (until - since)),
        cpu_s=cpu / num_units,
    )


def _cpu_s() -> float:
    """Return the time of the processor that this process and its living descendants took."""
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def table(rows: list[Figures]) -> Table:
    """Return the figures for the terminal."""
    shown = Table(box=box.SIMPLE_HEAD, title="Scaling", title_justify="left")
    for column in ("workers", "units/s", "efficiency", "busy", "started in", "whole", "CPU a unit"):
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(
            str(row.workers), f"{row.units_a_second:.3f}", f"{efficiency(row, rows[0]):.1%}", f"{row.busy:.1%}",
            f"{row.start_s:.1f} s", f"{row.whole_s:.1f} s", f"{1000 * row.cpu_s:.0f} ms",
        )  # fmt: skip
    return shown


def efficiency(row: Figures, one: Figures) -> float:
    """Return the units a second by those of the fewest workers, as many times as there are more."""
    return row.units_a_second / (row.workers / one.workers * one.units_a_second)


def main() -> None:
    """Measure, print the table, and write all figures."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.benchmarks.scaling", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--waves", type=int, default=8, help="units a worker; at least 3")
    parser.add_argument("--unit-size", type=int, default=8)
    parser.add_argument("--unit-s", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path("bench-scaling.json"))
    arguments = parser.parse_args()
    if arguments.waves < 3:
        parser.error("--waves: the first and the last of each worker are not measured; at least 3 are needed")
    progress = Console(file=os.fdopen(os.dup(2), "w", buffering=1), highlight=False)
    rows: list[Figures] = []
    folder = Path(tempfile.mkdtemp(prefix="rsft-scaling-"))
    with chatter_to_file():
        ray.init(address="local", num_cpus=max(4, os.cpu_count() or 1), num_gpus=0, include_dashboard=False,
                 log_to_driver=False, object_store_memory=512 * 2**20)  # fmt: skip
        # All workers before any unit; a run begins with the first worker that is there.
        DataContext.get_current().wait_for_min_actors_s = 3600
        try:
            for workers in sorted(arguments.workers):
                progress.print(f"{workers} workers ...")
                store = Store(str(folder))
                rows.append(measure(store, workers, arguments.waves, arguments.unit_size, arguments.unit_s))
                arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
                progress.print(table(rows[-1:]) if workers == arguments.workers[0] else table([rows[0], rows[-1]]))
        finally:
            ray.shutdown()
            shutil.rmtree(folder)
    results().print(table(rows))
    progress.print(f"all figures are in {arguments.out}")


if __name__ == "__main__":
    main()

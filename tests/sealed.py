"""Rounds sealed without a cluster: plans, waves and decisions by the stages' own code, units done in this process."""

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from collecting import Collection
from factories import prompt

from rsft_cluster.acceptance.decide import selection_rules
from rsft_cluster.collection.actors import Work
from rsft_cluster.collection.plan import write_plan
from rsft_cluster.config import RunConfig
from rsft_cluster.plugins import bind
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.records import Manifest, Pass, Plan, PolicyRef, Totals
from rsft_cluster.report.reporter import Reporter
from rsft_cluster.rounds.waves import sample_in_waves
from rsft_cluster.runs.lease import hold
from rsft_cluster.runs.run import Run
from rsft_cluster.schemas import PROMPT, rows_to_table
from rsft_cluster.store import Store
from rsft_cluster.store.layout import Folder

POLICY = PolicyRef(name="round-0000", uri="/m", digest="d")


class Killed(Exception):
    """Stands for a driver that dies."""


@contextmanager
def rounds(folder: Path):
    """Hold a run below a folder; give a function that does one of its rounds and returns the manifest.

    `do.run` is the run as the last round had it.
    """
    with hold(Store(str(folder / "runs" / "waves"))) as lease:

        def do(
            number=1, *, dies_after=None, num_prompts=12, unit_size=4, most=8, max_tokens=64, rule="all_passed", **parts
        ):
            whole = {
                "run": "waves", "store": str(folder / "runs"), "policy": {"model": "/m"},
                "prompts": {"paths": ["p.jsonl"]}, "evaluation": {"prompts": {"paths": ["h.jsonl"]}},
                "sampling": {"generator": {"use": "scripted", "params": {"accuracy": 0.4}}, "num_candidates": most,
                             "unit_size": unit_size, "max_tokens": max_tokens},
                "scoring": {"constraints": ["finished", "answer_matches"]},
                "acceptance": {"rule": rule, "dedupe": False}, **parts,
            }  # fmt: skip
            config = RunConfig.model_validate(whole)
            run = Run(config, lease.store, lease, "f", POLICY)
            lease.store.create("config.json", config.model_dump_json(indent=1).encode())
            do.run = run
            return _do(run, number, num_prompts, dies_after)

        yield do


def _do(run: Run, number: int, num_prompts: int, dies_after: int | None) -> Manifest:
    table = rows_to_table([prompt(f"{i} + 1", reference=str(i + 1)) for i in range(num_prompts)], PROMPT)
    run.store.write_batches("p.parquet", table.to_batches(), PROMPT, rows=run.config.sampling.unit_size)
    sampling = run.config.sampling
    way = Pass(num_candidates=sampling.num_candidates, temperature=1.0, max_tokens=sampling.max_tokens, batch_size=8)
    folder = run.round(number)
    plan = run.keep(
        folder.plan,
        Plan,
        lambda: write_plan(
            folder, round_number=number, stream=f"round-{number:04d}", seed=3, policy=POLICY, passes=(way,),
            prompts="p.parquet", fingerprint="f",
        ),
    )  # fmt: skip
    selection = selection_rules(run.config, number)
    done = 0

    def collect(at: Folder, wave: Plan, earlier: Sequence[Totals]) -> Manifest:
        nonlocal done
        assert len(earlier) == wave.wave
        if dies_after is not None and done == dies_after and not run.store.exists(at.manifest):
            raise Killed
        done += 1
        work = Work(
            store_uri=run.store.uri, folder=at.path, session=run.lease.session, plan=wave, policy=PolicySpec("/m"),
            generator=bind(sampling.generator, "generators", num_leading=1), scoring=run.config.scoring,
            selection=selection, decides=False, unit_timeout_s=60,
        )  # fmt: skip
        if not run.store.exists(at.manifest):
            run.store.create(at.manifest, Collection(work, at).finish().to_json())
        return run.store.read_record(at.manifest, Manifest)

    return sample_in_waves(run, plan, selection, collect, Reporter(quiet=True))

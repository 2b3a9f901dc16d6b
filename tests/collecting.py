"""A collection without a cluster: the actors' own classes, called one unit after the other."""

import pickle
from dataclasses import dataclass, field

import pyarrow as pa
from factories import prompt

from rsft_cluster.acceptance.decide import bind_rule
from rsft_cluster.acceptance.selection import SelectionRules
from rsft_cluster.collection.actors import Sample, ScoreAndCommit, Work
from rsft_cluster.collection.plan import is_done, planned_units, survey, write_plan
from rsft_cluster.collection.seal import seal
from rsft_cluster.config import AcceptanceConfig, Plugin, ScoringConfig
from rsft_cluster.plugins import bind
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.records import Manifest, Pass, PolicyRef
from rsft_cluster.schemas import PROMPT, rows_to_table
from rsft_cluster.store import Store
from rsft_cluster.store.layout import Folder


@dataclass
class Collection:
    """One collection in a store, with a scripted generator."""

    work: Work
    folder: Folder
    done: list[dict] = field(default_factory=list)

    def units(self):
        return list(planned_units(self.folder, self.work.plan))

    def do(self, unit):
        """Sample, judge and commit one unit; return its row of counts."""
        (row,) = self.do_together([unit])
        return row

    def do_together(self, units):
        """Sample units in one call, judge and commit each as it comes; return their rows of counts."""
        asked = pa.table({"unit": [unit.to_json().decode() for unit in units]})
        judge = ScoreAndCommit(self.work)
        return [row for sampled in Sample(self.work)(asked) for row in judge(sampled).to_pylist()]

    def finish(self) -> Manifest:
        """Do what is left and seal."""
        state = survey(self.folder)
        for planned in self.units():
            for unit in state.leaves(planned):
                if not is_done(state, unit.unit, session=self.work.session):
                    row = self.do(unit)
                    if row["failure"] is not None:
                        raise pickle.loads(row["failure"])
        return seal(self.folder, self.work.plan, target="test", generator=self.work.generator.describe())


def collection(path, *, num_prompts=10, unit_size=4, num_candidates=4, session="s" * 12, seed=0, **settings):
    """Make a store at `path` with prompts and a plan; settings: constraints, acceptance, generator, prompts."""
    store = Store(str(path))
    rows = settings.get("prompts") or [
        prompt(f"What is {i} + 1?", reference=str(i + 1), source={"file": "prompts.jsonl", "line": i + 1})
        for i in range(num_prompts)
    ]
    table = rows_to_table(rows, PROMPT)
    store.write_batches("prompts/train.parquet", table.to_batches(), PROMPT, rows=unit_size)
    folder = Folder(store, "rounds/0001")
    plan = write_plan(
        folder, round_number=1, stream="round-0001", seed=seed,
        policy=PolicyRef(name="round-0000", uri="/m", digest="d"),
        passes=(Pass(num_candidates=num_candidates, temperature=1.0, max_tokens=64, batch_size=8),),
        prompts="prompts/train.parquet", fingerprint="f",
    )  # fmt: skip
    store.create(folder.plan, plan.to_json())
    acceptance = settings.get("acceptance", AcceptanceConfig(dedupe=False))
    work = Work(
        store_uri=store.uri, folder=folder.path, session=session, plan=plan, policy=PolicySpec("/m"),
        generator=bind(Plugin(use="scripted", params=settings.get("generator", {})), "generators", num_leading=1),
        scoring=ScoringConfig(constraints=settings.get("constraints", ("finished", "answer_matches"))),
        selection=SelectionRules(bind_rule(acceptance), acceptance), decides=True, unit_timeout_s=60,
    )  # fmt: skip
    return Collection(work, folder)

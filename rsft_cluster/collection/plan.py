"""Units and what is left of them: pure bookkeeping over a collection's folder in the store.

`commits/` says what is done, `attempts/` what was begun, `splits/` what was halved. Work left = plan − commits.
Everything is told by file names, so that a survey is three listings and no reads.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from rsft_cluster.records import Commit, Pass, Plan, PolicyRef, PromptState, Unit
from rsft_cluster.schemas import digest
from rsft_cluster.store import Store
from rsft_cluster.store.layout import Folder

UNIT = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("num_prompts", pa.int32(), nullable=False),
    ]
)
UNITS_A_BATCH = 8192
MAX_ATTEMPTS = 12
"""Begun attempts after which a unit counts as crashing, whatever became of the drivers that watched it."""


def write_plan(
    folder: Folder,
    *,
    round_number: int,
    stream: str,
    seed: int,
    policy: PolicyRef,
    passes: tuple[Pass, ...],
    prompts: str,
    fingerprint: str,
) -> Plan:
    """List the units of a prompts file and return the plan. Memory does not grow with units."""
    sizes, unit_size = folder.store.row_groups(prompts)
    places = (
        (row_group, start, min(unit_size or size, size - start))
        for row_group, size in enumerate(sizes)
        for start in range(0, size, unit_size or size)
    )
    num_units, num_prompts = 0, 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal num_units, num_prompts
        while chosen := list(islice(places, UNITS_A_BATCH)):
            names = [f"{number:07d}" for number in range(num_units, num_units + len(chosen))]
            row_groups, starts, counts = zip(*chosen, strict=True)
            columns = [names, [prompts] * len(chosen), row_groups, starts, counts]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, UNIT, strict=True)]
            num_units, num_prompts = num_units + len(chosen), num_prompts + sum(counts)
            yield pa.RecordBatch.from_arrays(arrays, schema=UNIT)

    folder.store.write_batches(folder.units, batches(), UNIT, rows=UNITS_A_BATCH)
    return Plan(
        round=round_number,
        stream=stream,
        seed=seed,
        policy=policy,
        passes=passes,
        prompts=prompts,
        num_prompts=num_prompts,
        num_units=num_units,
        fingerprint=fingerprint,
    )


def planned_units(folder: Folder, plan: Plan) -> Iterator[Unit]:
    """Yield the planned units in order."""
    for row_group in range(-(-plan.num_units // UNITS_A_BATCH)):
        for row in folder.store.read_row_group(folder.units, row_group).to_pylist():
            yield Unit(**row)


@dataclass(frozen=True)
class Survey:
    """What the store says of a collection at one moment."""

    commits: dict[str, list[str]]
    """Unit -> its commit files, the sound ones first, each sort by name."""
    attempts: dict[str, Counter[str]]
    """Unit -> attempts begun, by session."""
    failed: set[tuple[str, str]]
    """(unit, session) in which an attempt reported an exception."""
    splits: set[str]

    def leaves(self, unit: Unit) -> Iterator[Unit]:
        """Yield the unit, or the parts that it was split into."""
        if unit.unit not in self.splits:
            yield unit
            return
        for part in halves(unit):
            yield from self.leaves(part)

    def num_crashes(self, unit: str, session: str) -> int:
        """Return how often an unfinished unit was begun and seen to fail.

        The last attempt of an earlier session is not counted: its driver may have died for reasons of its own.
        """
        begun = self.attempts.get(unit, Counter())
        if begun.total() >= MAX_ATTEMPTS:
            return begun.total()
        return sum(n if s == session or (unit, s) in self.failed else n - 1 for s, n in begun.items())


def survey(folder: Folder) -> Survey:
    """Read the state of a collection from three listings."""
    commits: dict[str, list[str]] = {}
    for path in folder.store.files(folder.commits):
        commits.setdefault(_parts(path)[0], []).append(path)
    for paths in commits.values():
        paths.sort(key=lambda p: (folder.is_faulty(p), p))
    attempts: dict[str, Counter[str]] = {}
    failed: set[tuple[str, str]] = set()
    for path in folder.store.files(folder.attempts):
        unit, session, _, *mark = _parts(path)
        if mark:
            failed.add((unit, session))
        else:
            attempts.setdefault(unit, Counter())[session] += 1
    splits = {_parts(p)[0] for p in folder.store.files(folder.splits)}
    return Survey(commits, attempts, failed, splits)


def is_done(state: Survey, unit: str, *, session: str) -> bool:
    """Say whether a unit needs no more work.

    A commit with too many erroneous verdicts counts only in the session that made it: the next one, with the
    constraint mended, judges the unit again.
    """
    for path in state.commits.get(unit, ()):
        _, attempt, *mark = _parts(path)
        if not mark or attempt.startswith(session):
            return True
    return False


def halves(unit: Unit) -> tuple[Unit, Unit]:
    """Return the two parts of a unit."""
    middle = unit.num_prompts // 2
    return (
        unit.model_copy(update={"unit": f"{unit.unit}-0", "num_prompts": middle}),
        unit.model_copy(
            update={"unit": f"{unit.unit}-1", "start": unit.start + middle, "num_prompts": unit.num_prompts - middle}
        ),
    )


def split(folder: Folder, unit: Unit, *, num_crashes: int) -> None:
    """Record that a crashing unit is done in two halves from here on."""
    payload = json.dumps({"unit": unit.unit, "num_crashes": num_crashes}).encode()
    folder.store.create(folder.split(unit.unit), payload)


def quarantine(folder: Folder, unit: Unit, *, num_crashes: int) -> None:
    """Commit a unit of one prompt as quarantined: it crashed every worker that took it."""
    prompt = read_prompts_of(folder.store, unit).column("prompt_id")[0].as_py()
    reason = f"crashed {num_crashes} workers"
    commit = Commit(
        unit=unit.unit,
        attempt="quarantine",
        content=digest(unit.unit, prompt, "quarantine"),
        candidates=None,
        scores=None,
        accepted=None,
        prompts=(PromptState(prompt_id=prompt, state="quarantined", reason=reason),),
    )
    folder.store.create(folder.commit(f"{unit.unit}.quarantine"), commit.to_json())


def decided_name(plan: Plan, unit: Unit) -> str:
    """Return how a manifest names a unit of a wave whose round was decided at its seal."""
    return f"{plan.wave:04d}-{unit.unit}"


def read_prompts_of(store: Store, unit: Unit) -> pa.Table:
    """Return the PROMPT rows of a unit."""
    return store.read_row_group(unit.path, unit.row_group).slice(unit.start, unit.num_prompts)


def _parts(path: str) -> list[str]:
    return path.rsplit("/", 1)[-1].removesuffix(".json").split(".")

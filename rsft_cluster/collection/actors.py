"""What happens to a unit inside the actors: sample | judge, accept, commit.

Rows between actors are units: small descriptions on the way in, Arrow bytes of the unit's whole tables on the way
through, counts on the way out. A unit is never cut apart, so rules that look at a group need no shuffle.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

import faulthandler
import json
import os
import pickle
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, cast
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from rsft_cluster.acceptance.selection import SelectionRules
from rsft_cluster.collection.driver import UnitCounts
from rsft_cluster.collection.plan import read_prompts_of
from rsft_cluster.collection.score_table import accepted_table, as_candidates, decided_table, undecided_table
from rsft_cluster.config import ScoringConfig
from rsft_cluster.errors import RsftError, StageError, UnitFailedError
from rsft_cluster.metrics.meter import (
    BUSY,
    CANDIDATES,
    ERRORS,
    FAILED_UNITS,
    GENERATING,
    TOKENS,
    UNITS_IN_FLIGHT,
    VERDICTS,
    Meter,
)
from rsft_cluster.plugins import Bound
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.records import Commit, Plan, PromptState, Unit
from rsft_cluster.sampling.adaptive.generator import adaptive
from rsft_cluster.sampling.unit_sampler import SampledUnit, UnitSampler
from rsft_cluster.schemas import ACCEPTED, CANDIDATE, SCORE, digest
from rsft_cluster.scoring.error_limits import too_many_errors
from rsft_cluster.scoring.guarded_judge import GuardedJudge
from rsft_cluster.scoring.judge import Judgement
from rsft_cluster.store import Store
from rsft_cluster.store.layout import Folder

SAMPLED = pa.schema(
    [
        ("unit", pa.string()),
        ("prompts", pa.large_binary()),
        ("candidates", pa.large_binary()),
        ("quarantined", pa.map_(pa.string(), pa.string())),
        ("sampling_s", pa.float64()),
        ("sampled_on", pa.string()),
        ("remarks", pa.list_(pa.string())),
        ("failure", pa.binary()),
    ]
)
DONE = pa.schema(
    [
        ("unit", pa.string()),
        ("num_prompts", pa.int64()),
        ("num_solved", pa.int64()),
        ("num_candidates", pa.int64()),
        ("num_passed", pa.int64()),
        ("num_accepted", pa.int64()),
        ("num_tokens", pa.int64()),
        ("num_verdicts", pa.int64()),
        ("num_errors", pa.int64()),
        ("failing_constraint", pa.string()),
        ("first_error", pa.string()),
        ("sampling_s", pa.float64()),
        ("remarks", pa.list_(pa.string())),
        ("failure", pa.binary()),
    ]
)


@dataclass(frozen=True)
class Work:
    """All that an actor needs to know; travels to every node, so it is small and picklable."""

    store_uri: str
    folder: str
    session: str
    plan: Plan
    policy: PolicySpec
    generator: Bound
    scoring: ScoringConfig
    selection: SelectionRules
    decides: bool
    """Whether units decide; else their scores stay undecided, and nothing is accepted before the seal of the round."""
    unit_timeout_s: float
    meter: Meter = field(default_factory=Meter)

    def open(self) -> Folder:
        """Return the collection's folder."""
        return Folder(Store(self.store_uri), self.folder)


class Sample:
    """Sampling actor: a unit's description in, its candidates out."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._folder = work.open()
        generator, remembering = work.generator, work.plan.adaptive
        if remembering is not None:
            generator = adaptive(generator, remembering, work.scoring, work.selection.rule)
        self._sampler = UnitSampler(work.plan, work.policy, generator)
        self._last_end: float | None = None

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Answer the units of a batch together (one, unless units may be mixed); yield each as it is finished."""
        texts = batch.column("unit").to_pylist()
        units = [Unit.from_json(text.encode()) for text in texts]
        begun = [self._begin(unit) for unit in units]
        waiting = dict.fromkeys(range(len(units)))
        self._last_end = self._last_end or time.monotonic()
        self._work.meter.put(UNITS_IN_FLIGHT, len(units), step="sample")
        limit_s = self._work.unit_timeout_s * len(units)
        try:
            with _deadline(limit_s):
                prompts = [read_prompts_of(self._folder.store, unit) for unit in units]
                answers = self._sampler.sample(prompts)
            while waiting:
                with _deadline(limit_s):
                    i, sampled = next(answers)
                    if len(waiting) == 1:
                        _check_over(answers)
                row = sampled_row(texts[i], prompts[i], sampled, self._sampler.remarks)
                del waiting[i]
                self._tell(sampled, len(waiting))
                yield row
        except Exception as error:
            failure = _packed(error, UnitFailedError)
            for i in waiting:
                self._folder.store.create(self._folder.failure(begun[i]), str(error).encode())
                yield _row(SAMPLED, unit=texts[i], failure=failure)
            self._work.meter.put(UNITS_IN_FLIGHT, 0, step="sample")

    def _tell(self, sampled: SampledUnit, num_left: int) -> None:
        meter, now = self._work.meter, time.monotonic()
        since, self._last_end = self._last_end or now, now
        meter.put(BUSY, min(1.0, sampled.duration_s / max(now - since, 1e-9)))
        meter.put(UNITS_IN_FLIGHT, num_left, step="sample")
        meter.add(GENERATING, sampled.duration_s)
        meter.add(CANDIDATES, sampled.candidates.num_rows, state="generated")
        meter.add(TOKENS, _num_tokens(sampled.candidates), state="generated")

    def _begin(self, unit: Unit) -> str:
        """Mark an attempt at a unit before the work; return its name."""
        begun = f"{unit.unit}.{self._work.session}.{uuid4().hex[:12]}"
        where = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
        self._folder.store.create(self._folder.attempt(begun), where.encode())
        return begun


class ScoreAndCommit:
    """Scoring actor: judges a unit's candidates, decides, and publishes the unit."""

    def __init__(self, work: Work) -> None:
        self._work, self._folder = work, work.open()

    @cached_property
    def _judge(self) -> GuardedJudge:
        # Not in __init__: what an actor raises there reaches nobody.
        return GuardedJudge(self._work.scoring)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Judge and commit the units of a batch (one, as the pipeline asks)."""
        return pa.concat_tables([self._one(row) for row in batch.to_pylist()])

    def _one(self, row: dict[str, object]) -> pa.Table:
        unit = Unit.from_json(str(row["unit"]).encode())
        if row["failure"] is not None:
            self._work.meter.add(FAILED_UNITS, 1)
            return _row(DONE, unit=unit.unit, failure=row["failure"])
        self._work.meter.put(UNITS_IN_FLIGHT, 1, step="score")
        try:
            prompts, candidates = _from_bytes(row["prompts"]), _from_bytes(row["candidates"])
            quarantined = dict(cast("list[tuple[str, str]]", row["quarantined"] or []))
            return self._commit(unit, prompts, candidates, quarantined, row)
        except Exception as error:
            self._work.meter.add(FAILED_UNITS, 1)
            return _row(DONE, unit=unit.unit, failure=_packed(error, StageError))
        finally:
            self._work.meter.put(UNITS_IN_FLIGHT, 0, step="score")

    def _commit(
        self,
        unit: Unit,
        prompts: pa.Table,
        candidates: pa.Table,
        quarantined: dict[str, str],
        row: Mapping[str, object],
    ) -> pa.Table:
        judgements = self._judge.judge(as_candidates(prompts, candidates))
        scores = undecided_table(candidates, judgements, self._work.plan, self._work.selection.fairness)
        if self._work.decides:
            scores = decided_table(scores, prompts, candidates, self._work.selection)
        tables = {
            "candidates": (candidates, CANDIDATE),
            "scores": (scores, SCORE),
            "accepted": (accepted_table(prompts, candidates, scores), ACCEPTED),
        }
        errors = [error for judgement in judgements for error in judgement.errors]
        states = _states(prompts, scores, quarantined)
        commit = self._publish(unit, tables, states, judgements, row)
        self._tell(commit, candidates.num_rows, Counter(name for name, _ in errors))
        return _row(
            DONE,
            unit=unit.unit,
            num_prompts=unit.num_prompts,
            num_solved=sum(p.num_passed > 0 for p in commit.prompts),
            num_candidates=candidates.num_rows,
            num_passed=sum(p.num_passed for p in commit.prompts),
            num_accepted=sum(p.num_accepted for p in commit.prompts),
            num_tokens=commit.num_tokens,
            num_verdicts=commit.num_verdicts,
            num_errors=commit.num_errors,
            failing_constraint=errors[0][0] if errors else None,
            first_error=errors[0][1] if errors else None,
            sampling_s=row["sampling_s"],
            remarks=commit.remarks,
        )

    def _tell(self, commit: Commit, num_candidates: int, errors: Mapping[str, int]) -> None:
        meter = self._work.meter
        meter.add(CANDIDATES, num_candidates, state="committed")
        meter.add(TOKENS, commit.num_tokens, state="committed")
        meter.add(VERDICTS, commit.num_verdicts)
        for name, count in errors.items():
            meter.add(ERRORS, count, constraint=name)

    def _publish(
        self,
        unit: Unit,
        tables: dict[str, tuple[pa.Table, pa.Schema]],
        prompts: tuple[PromptState, ...],
        judgements: Sequence[Judgement],
        row: Mapping[str, Any],
    ) -> Commit:
        """Write the unit's files, then the commit that vouches for them. Nothing is visible before the commit."""
        store, attempt = self._folder.store, f"{self._work.session}{uuid4().hex[:12]}"
        name = f"{unit.unit}.{attempt}"
        files = {part: store.write_table(self._folder.table(part, name), *table) for part, table in tables.items()}
        # How long a verdict took differs from attempt to attempt; what was sampled and decided does not.
        decided = tables["scores"][0].drop_columns(["verdicts"]).to_pylist()
        commit = Commit(
            unit=unit.unit,
            attempt=attempt,
            content=digest(
                files["candidates"].sha256, files["accepted"].sha256, decided, [p.model_dump() for p in prompts]
            ),
            candidates=files["candidates"],
            scores=files["scores"],
            accepted=files["accepted"],
            prompts=prompts,
            num_tokens=_num_tokens(tables["candidates"][0]),
            num_verdicts=sum(j.num_verdicts for j in judgements),
            num_errors=sum(len(j.errors) for j in judgements),
            num_audited=sum(j.audited for j in judgements),
            disagreements=dict(Counter(name for j in judgements for name in j.disagreements)),
            sampled_on=row["sampled_on"],
            judged_on=socket.gethostname(),
            remarks=tuple(row["remarks"] or ()),
        )
        is_faulty = too_many_errors(commit.num_errors, commit.num_verdicts, self._work.scoring)
        store.create(self._folder.commit(name, is_faulty=is_faulty), commit.to_json())
        return commit


def _check_over(answers: Iterator[tuple[int, SampledUnit]]) -> None:
    """Read on after the last unit: a generator that answers anything twice is found out there."""
    for i, _ in answers:
        raise StageError(f"unit {i} of a batch was answered twice")


def sampled_row(text: str, prompts: pa.Table, sampled: SampledUnit, remarks: Sequence[str] = ()) -> pa.Table:
    """Return the row that hands a unit, whose description is the text, from sampling to scoring."""
    return _row(
        SAMPLED,
        unit=text,
        prompts=_to_bytes(prompts),
        candidates=_to_bytes(sampled.candidates),
        quarantined=list(sampled.quarantined.items()),
        sampling_s=sampled.duration_s,
        sampled_on=socket.gethostname(),
        remarks=list(remarks),
    )


def _num_tokens(candidates: pa.Table) -> int:
    return pc.sum(pc.list_value_length(candidates.column("token_ids"))).as_py() or 0


def _states(prompts: pa.Table, scores: pa.Table, quarantined: dict[str, str]) -> tuple[PromptState, ...]:
    groups: dict[str, list[dict[str, object]]] = {}
    for row in scores.select(["prompt_id", "passed", "accepted"]).to_pylist():
        groups.setdefault(row["prompt_id"], []).append(row)
    states = []
    for prompt in prompts.column("prompt_id").to_pylist():
        if prompt in quarantined:
            states.append(PromptState(prompt_id=prompt, state="quarantined", reason=quarantined[prompt]))
            continue
        group = groups[prompt]
        num_accepted = sum(bool(r["accepted"]) for r in group)
        states.append(
            PromptState(
                prompt_id=prompt,
                state="accepted" if num_accepted else "unaccepted",
                num_candidates=len(group),
                num_passed=sum(bool(r["passed"]) for r in group),
                num_accepted=num_accepted,
            )
        )
    return tuple(states)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """End the process when the block takes longer: a C-level watchdog, which needs no interpreter lock."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def outcome_of(row: Mapping[str, Any]) -> UnitCounts | RsftError:
    """Return what a row of DONE says of its unit: its counts, or why it failed."""
    if row["failure"] is not None:
        return pickle.loads(row["failure"])
    first_error = (row["failing_constraint"], row["first_error"]) if row["num_errors"] else None
    apart = {"first_error": first_error, "remarks": tuple(row["remarks"] or ())}
    counts = {field.name: row[field.name] for field in fields(UnitCounts) if field.name not in apart}
    return UnitCounts(**counts, **apart)


def _packed(error: Exception, kind: type[StageError]) -> bytes:
    """Return the error as bytes for the driver: our own as they are, others as `kind` with their traceback."""
    if isinstance(error, RsftError):
        return pickle.dumps(error)
    return pickle.dumps(kind("".join(traceback.format_exception(error)).rstrip()))


def _row(schema: pa.Schema, **values: object) -> pa.Table:
    return pa.Table.from_pylist([values], schema=schema)


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _from_bytes(payload: object) -> pa.Table:
    assert isinstance(payload, bytes)
    with pa.ipc.open_stream(payload) as reader:
        return reader.read_all()

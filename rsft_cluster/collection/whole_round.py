"""Decide a whole round at once, from what its waves stored: the seal of a round that units could not decide alone.

Reads the narrow columns of SCORE, decides, and writes decided scores and accepted samples, unit by unit, below the
round. A pure function of sealed files, so that it may be killed and done again: the same bytes go to the same names.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rsft_cluster.acceptance.base import JUDGED
from rsft_cluster.acceptance.decide import Decided, decide, target_of
from rsft_cluster.acceptance.selection import SelectionRules
from rsft_cluster.collection.plan import decided_name, read_prompts_of
from rsft_cluster.collection.score_table import accepted_table, attributes_of, judged_table, with_decisions
from rsft_cluster.collection.seal import accepted_digest, added, checked, sealed_units
from rsft_cluster.records import FileRef, Manifest, Plan, Totals, Unit
from rsft_cluster.schemas import ACCEPTED, SCORE, digest
from rsft_cluster.store import Store
from rsft_cluster.store.layout import Folder

NARROW = [name for name in SCORE.names if name != "verdicts"]
NOTHING = SCORE.empty_table().select(NARROW)


@dataclass(frozen=True)
class JudgedUnit:
    """A unit of a wave: its prompts' place, and its files."""

    unit: Unit
    candidates: FileRef
    scores: FileRef


@dataclass(frozen=True)
class SealedWave:
    """A wave that is sampled and judged, and not decided; its narrow columns are in memory."""

    plan: Plan
    manifest: Manifest
    units: tuple[JudgedUnit, ...]
    """In order; those that crashed every worker are not among them: they have no candidates."""
    lost: frozenset[str]
    """Its quarantined prompts."""
    scores: pa.Table
    """SCORE rows without the verdicts, unit by unit."""
    judged: pa.Table
    """JUDGED rows, in the same order."""


def load_wave(folder: Folder, plan: Plan, manifest: Manifest, selection: SelectionRules) -> SealedWave:
    """Read what decisions need of a sealed wave."""
    store = folder.store
    units: list[JudgedUnit] = []
    lost: set[str] = set()
    parts, judged = [NOTHING], [JUDGED.empty_table()]
    for unit, commit in sealed_units(folder, plan, manifest):
        lost.update(p.prompt_id for p in commit.prompts if p.state == "quarantined")
        if commit.candidates is not None and commit.scores is not None:
            units.append(JudgedUnit(unit, commit.candidates, commit.scores))
            scores, rows = read_judged(store, units[-1], selection)
            parts.append(scores)
            judged.append(rows)
    return SealedWave(plan, manifest, tuple(units), frozenset(lost), pa.concat_tables(parts), pa.concat_tables(judged))


def read_judged(store: Store, one: JudgedUnit, selection: SelectionRules) -> tuple[pa.Table, pa.Table]:
    """Read the narrow SCORE rows of a unit, and the same as JUDGED rows with all that a decision looks at."""
    scores, texts = store.read_table(one.scores, columns=NARROW), None
    if selection.needs_text:
        texts = store.read_table(one.candidates, columns=["text"]).column(0).to_pylist()
    attributes = attributes_of(read_prompts_of(store, one.unit)) if selection.fairness else None
    return scores, judged_table(scores, attributes, texts)


def decide_waves(waves: Sequence[SealedWave], selection: SelectionRules) -> tuple[pa.Table, Decided]:
    """Return the narrow SCORE rows of all waves together, and their decisions in the same order."""
    judged = pa.concat_tables([JUDGED.empty_table(), *(w.judged for w in waves)])
    return pa.concat_tables([NOTHING, *(w.scores for w in waves)]), decide(judged, selection)


def decide_round(
    folder: Folder,
    waves: Sequence[SealedWave],
    found: tuple[pa.Table, Decided],
    selection: SelectionRules,
    *,
    num_prompts: int,
) -> Manifest:
    """Write what was decided on the round in `folder`, and return its manifest.

    `found` is what `decide_waves` says of the waves; `num_prompts` are the round's, of which they may leave some out.
    """
    scores, decided = found
    decided_units: list[_DecidedUnit] = []
    start = 0
    for wave in waves:
        for one in wave.units:
            rows = decided.table.slice(start, one.candidates.num_rows)
            start += one.candidates.num_rows
            decided_units.append(_write(folder, wave, one, rows))
    assert start == decided.table.num_rows
    accepted = tuple(s.accepted for s in decided_units)
    first, plan = waves[0].manifest, waves[0].plan
    totals = checked(folder, _totals(scores, decided, waves, num_prompts))
    return Manifest(
        round=plan.round,
        policy=plan.policy,
        fingerprint=plan.fingerprint,
        rule=target_of(selection.rule),
        units=tuple(s.name for s in decided_units),
        candidates=tuple(s.candidates for s in decided_units),
        scores=tuple(s.scores for s in decided_units),
        accepted=accepted,
        totals=totals,
        accepted_digest=accepted_digest(folder, accepted),
        content=digest([[s.name, s.candidates.sha256, s.accepted.sha256] for s in decided_units]),
        processors=first.processors,
        generator=first.generator,
        remarks=tuple(sorted({remark for wave in waves for remark in wave.manifest.remarks})),
        num_waves=len(waves),
        chosen=dict(decided.chosen),
    )


@dataclass(frozen=True)
class _DecidedUnit:
    name: str
    candidates: FileRef
    scores: FileRef
    accepted: FileRef


def _write(folder: Folder, wave: SealedWave, one: JudgedUnit, rows: pa.Table) -> _DecidedUnit:
    """Write a unit's decided scores and what it keeps."""
    store, name = folder.store, decided_name(wave.plan, one.unit)
    scores, kept = with_decisions(store.read_table(one.scores), rows), ACCEPTED.empty_table()
    # Candidates are wide: those of a unit that keeps nothing are not read.
    if pc.any(scores.column("accepted")).as_py():
        kept = accepted_table(read_prompts_of(store, one.unit), store.read_table(one.candidates), scores)
    return _DecidedUnit(
        name,
        one.candidates,
        store.write_table(folder.table("scores", name), scores, SCORE),
        store.write_table(folder.table("accepted", name), kept, ACCEPTED),
    )


def _totals(scores: pa.Table, decided: Decided, waves: Sequence[SealedWave], num_prompts: int) -> Totals:
    prompts = scores.column("prompt_id").to_pylist()
    passed = scores.column("passed").to_pylist()
    accepted = decided.table.column("accepted").to_numpy()
    solved = {p for p, is_passed in zip(prompts, passed, strict=True) if is_passed}
    kept = Counter(p for p, is_kept in zip(prompts, accepted, strict=True) if is_kept)
    lost = {p for wave in waves for p in wave.lost}
    asked = set(prompts) | lost
    totals = [wave.manifest.totals for wave in waves]
    # A prompt that a later wave lost keeps what the earlier ones gave.
    lost -= set(kept)
    return Totals(
        num_prompts=num_prompts,
        num_prompts_accepted=len(kept),
        num_prompts_unaccepted=len(asked) - len(kept) - len(lost),
        num_prompts_quarantined=len(lost),
        num_prompts_skipped=num_prompts - len(asked),
        num_solved=len(solved),
        num_candidates=scores.num_rows,
        num_decided=decided.table.num_rows,
        num_passed=sum(bool(p) for p in passed),
        num_accepted=int(np.count_nonzero(accepted)),
        num_tokens=sum(t.num_tokens for t in totals),
        num_verdicts=sum(t.num_verdicts for t in totals),
        num_errors=sum(t.num_errors for t in totals),
        num_audited=sum(t.num_audited for t in totals),
        disagreements=added(t.disagreements for t in totals),
    )

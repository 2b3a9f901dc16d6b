"""A decision beside the sealed one: accepted samples and a record, under a name of its own."""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

import re
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rsft_cluster.acceptance.decide import target_of
from rsft_cluster.acceptance.selection import SelectionRules
from rsft_cluster.collection.plan import read_prompts_of
from rsft_cluster.collection.score_table import accepted_table
from rsft_cluster.config import flatten
from rsft_cluster.errors import ConfigError
from rsft_cluster.records import FileRef
from rsft_cluster.review.records import DecisionSet
from rsft_cluster.review.redeciding.group_blocks import Block, Piece, threaded_map
from rsft_cluster.review.redeciding.outcome import DecisionTally, decided_blocks, empty_outcome
from rsft_cluster.review.redeciding.stored_round import SEALED, StoredRound, checked_name, claim_name, new_name
from rsft_cluster.schemas import ACCEPTED, digest
from rsft_cluster.store.layout import DecisionSetLayout

COPIED = ["candidate_id", "prompt_id", "round", "prompt_token_ids", "token_ids", "finish_reason"]
"""The columns that accepted samples copy from candidates."""


def settings_of(stored: StoredRound, selection: SelectionRules, scoring: str) -> dict[str, object]:
    """Return everything that a decision depends on, as flat keys."""
    acceptance = selection.acceptance.model_dump(mode="json", exclude={"min_accepted"})
    scores = stored.manifest.scores if scoring == SEALED else stored.scoring(scoring).scores
    return {
        **flatten({"acceptance": acceptance}),
        "scoring": scoring,
        "candidates": stored.candidates_digest,
        "scores": digest([ref.sha256 for ref in scores]),
    }


def default_name(settings: Mapping[str, object]) -> str:
    """Return a name made of the rule's and a digest of the settings."""
    rule = re.split(r"[.:]", str(settings["acceptance.rule.use"]))[-1].lower()
    return f"{rule}-{digest(settings)[:8]}"


def decision_of(stored: StoredRound, name: str) -> DecisionSet:
    """Return a finished decision; raises ConfigError where there is none of that name."""
    path = stored.folder.decision_set(checked_name(name, "--decision")).record
    decision = stored.store.find_record(path, DecisionSet)
    if decision is None:
        names = ", ".join([SEALED, *stored.folder.decision_sets()])
        raise ConfigError(f"--decision {name}: round {stored.number} has {names}")
    return decision


def decide_again(stored: StoredRound, selection: SelectionRules, scoring: str = SEALED) -> DecisionTally:
    """Return the outcome of a decision; nothing is written."""
    outcome = empty_outcome(stored)
    for _ in decided_blocks(stored, selection, outcome, list(stored.units(scoring))):
        pass
    return outcome


def accept_again(
    stored: StoredRound, selection: SelectionRules, scoring: str = SEALED, name: str | None = None
) -> DecisionSet:
    """Decide, write the accepted samples and return the record; or return the record of that name that exists.

    Deciding is a pure function of stored facts: after a crash, the same bytes go to the same names. Raises ConfigError
    where the name belongs to other settings, or to the sealed decision.
    """
    settings = settings_of(stored, selection, scoring)
    name = new_name(name or default_name(settings))
    folder = stored.folder.decision_set(name)
    claim_name(folder, f"decision {name}", settings)
    if not stored.store.exists(folder.record):
        outcome, accepted = empty_outcome(stored), []
        for block, decided in decided_blocks(stored, selection, outcome, list(stored.units(scoring))):
            accepted += _write(stored, folder, block, decided)
        decision = DecisionSet(
            name=name,
            round=stored.number,
            scoring=scoring,
            settings=settings,
            target=target_of(selection.rule),
            accepted=tuple(accepted),
            funnel=outcome.funnel,
            change=outcome.change,
            reasons=dict(outcome.reasons),
            chosen=outcome.chosen,
        )
        stored.store.create(folder.record, decision.to_json())
    return stored.store.read_record(folder.record, DecisionSet)


def _write(stored: StoredRound, folder: DecisionSetLayout, block: Block, decided: pa.Table) -> Iterator[FileRef]:
    """Write the kept candidates of a block, a file a piece; a piece that keeps nothing is not read."""
    kept = pa.table({"accepted": decided.column("accepted"), "score": block.scores.column("score")})
    ends = np.cumsum([0, *(piece.num_rows for piece in block.pieces)])
    parts = [(piece, kept.slice(end, piece.num_rows)) for piece, end in zip(block.pieces, ends, strict=False)]

    def write(part: tuple[Piece, pa.Table]) -> FileRef:
        piece, rows = part
        unit, store = piece.unit.judged, stored.store
        candidates = store.read_table(unit.candidates, columns=COPIED).slice(piece.start, piece.num_rows)
        path = folder.table("accepted", f"{piece.unit.name}.{piece.start:06d}")
        return store.write_table(path, accepted_table(read_prompts_of(store, unit.unit), candidates, rows), ACCEPTED)

    return threaded_map(write, (part for part in parts if pc.any(part[1].column("accepted")).as_py()))

"""A decision beside the sealed one: accepted samples and a record, under a name of its own."""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

import re
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rsft_cluster.acceptance.decide import target_of
from rsft_cluster.acceptance.selecting import Selecting
from rsft_cluster.collection.actors import accepted_table
from rsft_cluster.collection.plan import read_prompts_of
from rsft_cluster.config import flatten
from rsft_cluster.errors import ConfigError
from rsft_cluster.records import FileRef
from rsft_cluster.review.records import DecisionSet
from rsft_cluster.review.redeciding.group_blocks import Block, Piece, ahead
from rsft_cluster.review.redeciding.outcome import Outcome, begun, decided_blocks
from rsft_cluster.review.redeciding.stored_round import SEALED, StoredRound, checked_name, claim, new_name
from rsft_cluster.schemas import ACCEPTED, digest
from rsft_cluster.store.layout import DecisionSetLayout

WIDE = ["candidate_id", "prompt_id", "round", "prompt_token_ids", "token_ids"]
"""What accepted samples take over from candidates."""


def settings_of(stored: StoredRound, how: Selecting, scoring: str) -> dict[str, object]:
    """Return all that a decision depends on, as flat keys."""
    acceptance = how.acceptance.model_dump(mode="json", exclude={"min_accepted"})
    scores = stored.manifest.scores if scoring == SEALED else stored.scoring(scoring).scores
    return {
        **flatten({"acceptance": acceptance}),
        "scoring": scoring,
        "candidates": stored.candidates_digest,
        "scores": digest([ref.sha256 for ref in scores]),
    }


def default_name(settings: Mapping[str, object]) -> str:
    """Return a name that says the rule and is the same for the same settings."""
    rule = re.split(r"[.:]", str(settings["acceptance.rule.use"]))[-1].lower()
    return f"{rule}-{digest(settings)[:8]}"


def decision_of(stored: StoredRound, name: str) -> DecisionSet:
    """Return a decision that was made; raises ConfigError where there is none of that name."""
    path = stored.folder.decision_set(checked_name(name, "--decision")).record
    decision = stored.store.find_record(path, DecisionSet)
    if decision is None:
        names = ", ".join([SEALED, *stored.folder.decision_sets()])
        raise ConfigError(f"--decision {name}: round {stored.number} has {names}")
    return decision


def decide_again(stored: StoredRound, how: Selecting, scoring: str = SEALED) -> Outcome:
    """Decide, and write nothing."""
    outcome = begun(stored)
    for _ in decided_blocks(stored, how, outcome, list(stored.units(scoring))):
        pass
    return outcome


def accept_again(stored: StoredRound, how: Selecting, scoring: str = SEALED, name: str | None = None) -> DecisionSet:
    """Decide, and write what is kept; opens the decision where it stands already.

    Deciding is a pure function of stored facts: killed and done again, the same bytes go to the same names. Raises
    ConfigError where the name stands for other settings, or for the sealed decision.
    """
    settings = settings_of(stored, how, scoring)
    name = new_name(name or default_name(settings))
    folder = stored.folder.decision_set(name)
    claim(folder, f"decision {name}", settings)
    if not stored.store.exists(folder.record):
        outcome, accepted = begun(stored), []
        for block, decided in decided_blocks(stored, how, outcome, list(stored.units(scoring))):
            accepted += _write(stored, folder, block, decided)
        made = DecisionSet(
            name=name,
            round=stored.number,
            scoring=scoring,
            settings=settings,
            target=target_of(how.rule),
            accepted=tuple(accepted),
            funnel=outcome.funnel,
            change=outcome.change,
            reasons=dict(outcome.reasons),
            chosen=outcome.chosen,
        )
        stored.store.create(folder.record, made.to_json())
    return stored.store.read_record(folder.record, DecisionSet)


def _write(stored: StoredRound, folder: DecisionSetLayout, block: Block, decided: pa.Table) -> Iterator[FileRef]:
    """Write what is kept of a block, a file a piece; candidates of a piece that keeps nothing are not read."""
    kept = pa.table({"accepted": decided.column("accepted"), "score": block.scores.column("score")})
    ends = np.cumsum([0, *(piece.num_rows for piece in block.pieces)])
    parts = [(piece, kept.slice(end, piece.num_rows)) for piece, end in zip(block.pieces, ends, strict=False)]

    def write(part: tuple[Piece, pa.Table]) -> FileRef:
        piece, rows = part
        unit, store = piece.unit.judged, stored.store
        candidates = store.read_table(unit.candidates, columns=WIDE).slice(piece.start, piece.num_rows)
        path = folder.table("accepted", f"{piece.unit.name}.{piece.start:06d}")
        return store.write_table(path, accepted_table(read_prompts_of(store, unit.unit), candidates, rows), ACCEPTED)

    return ahead(write, (part for part in parts if pc.any(part[1].column("accepted")).as_py()))

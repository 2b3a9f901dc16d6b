"""Accepted samples for other programs: worked examples as JSON lines, or the ACCEPTED rows as they are."""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.records import FileRef
from rsft_cluster.review.redeciding.accepting import decision_of
from rsft_cluster.review.redeciding.stored_round import SEALED, StoredRound
from rsft_cluster.schemas import ACCEPTED
from rsft_cluster.store.layout import unit_of


def export(stored: StoredRound, to: Path, decision: str = SEALED) -> int:
    """Write the accepted samples of a decision to a file, all or nothing; return their number.

    A `.jsonl` line has `messages` (or `prompt`, of raw text) and `completion`, as `training.replay` reads them. A
    `.parquet` file has the ACCEPTED rows. Raises ConfigError for another ending.
    """
    if to.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"--to {to}: expected a name that ends in .jsonl or .parquet")
    refs = stored.manifest.accepted if decision == SEALED else decision_of(stored, decision).accepted
    aside = to.with_name(f".aside-{uuid.uuid4().hex}")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            num_rows = _lines(stored, refs, aside) if to.suffix == ".jsonl" else _rows(stored, refs, aside)
            aside.replace(to)
        finally:
            aside.unlink(missing_ok=True)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{to}: cannot be written: {error.strerror or error}") from error
    return num_rows


def _rows(stored: StoredRound, refs: tuple[FileRef, ...], aside: Path) -> int:
    with pq.ParquetWriter(aside, ACCEPTED, compression="zstd") as writer:
        for ref in refs:
            writer.write_table(stored.store.read_table(ref))
    return sum(ref.num_rows for ref in refs)


def _lines(stored: StoredRound, refs: tuple[FileRef, ...], aside: Path) -> int:
    num_rows = 0
    with aside.open("w", encoding="utf-8") as file:
        for row in _examples(stored, refs):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            num_rows += 1
    return num_rows


def _examples(stored: StoredRound, refs: tuple[FileRef, ...]) -> Iterator[dict[str, Any]]:
    units = {unit.name: unit for unit in stored.units()}
    for ref in refs:
        if not ref.num_rows:
            continue
        accepted = stored.store.read_table(ref, columns=["candidate_id", "prompt_id", "messages", "score"])
        candidates = units[unit_of(ref.path)].judged.candidates
        texts = stored.store.read_table(candidates, columns=["candidate_id", "text"])
        ids = texts.column("candidate_id").combine_chunks()
        indices = pc.index_in(accepted.column("candidate_id"), value_set=ids)
        for row, text in zip(accepted.to_pylist(), texts.column("text").take(indices).to_pylist(), strict=True):
            yield _example(row, text)


def _example(row: dict[str, Any], text: str) -> dict[str, Any]:
    first = row["messages"][0]
    question = {"prompt": first["content"]} if first["role"] == "raw" else {"messages": row["messages"]}
    return {**question, "completion": text, **{k: row[k] for k in ("score", "candidate_id", "prompt_id")}}

"""The prompts that a night takes, and the record of those that earlier nights took."""

import hashlib
from collections.abc import Iterator

import pyarrow as pa

from rsft_cluster.config import PromptsConfig, RunConfig
from rsft_cluster.nightly.records import Taken
from rsft_cluster.prompts import read_prompts
from rsft_cluster.prompts.digests import DigestSet, digests_of
from rsft_cluster.prompts.held_out import HeldOut
from rsft_cluster.prompts.stored import ROWS_A_GROUP
from rsft_cluster.runs.prompt_sets import checked_and_digested, quarantine
from rsft_cluster.schemas import PROMPT, SEEN
from rsft_cluster.store import Store
from rsft_cluster.store.layout import NightLayout, RunLayout


def ingest(config: RunConfig, night: NightLayout) -> Taken:
    """Copy the prompts that a night takes to its folder, in the order of the source.

    A night that is cut off goes on with the same ones, whatever is added meanwhile.
    """
    unlimited = config.prompts.model_copy(update={"limit": None})
    seen = _seen_prompts(night.store) if config.nightly.prompts == "new" else DigestSet()
    num_seen, ids_digest = len(seen), hashlib.sha256()
    with quarantine(night.store, night.quarantine) as (on_bad, quarantine_uri):
        intake = read_prompts(unlimited, on_bad=on_bad, quarantine=quarantine_uri)
        new = _first_rows(_new_prompts(intake, seen), config.prompts.limit)
        batches = checked_and_digested(new, ids_digest, HeldOut())
        num_prompts = night.store.write_batches(night.taken, batches, PROMPT, rows=ROWS_A_GROUP)
    return Taken(
        path=night.taken,
        num_prompts=num_prompts,
        num_seen=num_seen,
        num_bad=intake.num_bad,
        content=ids_digest.hexdigest()[:32],
    )


def mark_seen(store: Store, date: str, taken: Taken) -> None:
    """Record a night's prompts as taken; a second call changes nothing."""
    path = RunLayout(store).seen_on(date)
    if not store.exists(path):
        store.write_batches(path, store.read_batches(taken.path, ["prompt_id"]), SEEN, rows=1 << 20)


def stored_prompts(config: PromptsConfig, store: Store, taken: Taken) -> PromptsConfig:
    """Return the config of a night's prompts: what was taken, as it stands in the store."""
    params = {"uri": store.uri_of(taken.path), "content": taken.content}
    source = config.source.model_copy(update={"use": "stored", "params": params})
    return config.model_copy(update={"source": source, "paths": (), "limit": None})


def _seen_prompts(store: Store) -> DigestSet:
    known = DigestSet()
    for path in store.files(RunLayout(store).seen):
        for batch in store.read_batches(path, ["prompt_id"]):
            known.add(digests_of(batch.column("prompt_id").to_pylist()))
    return known


def _new_prompts(batches: Iterator[pa.RecordBatch], known: DigestSet) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch.filter(pa.array(known.add(digests_of(batch.column("prompt_id").to_pylist()))))


def _first_rows(batches: Iterator[pa.RecordBatch], limit: int | None) -> Iterator[pa.RecordBatch]:
    left = limit
    for batch in batches:
        yield batch if left is None else batch.slice(0, left)
        if left is not None:
            left -= min(left, batch.num_rows)
            if not left:
                return

"""Which prompts a night takes, and that the next one does not take them again."""

import hashlib
from collections.abc import Iterator

import pyarrow as pa

from rsft_cluster.config import PromptsConfig, RunConfig
from rsft_cluster.nightly.records import Taken
from rsft_cluster.prompts import read_prompts
from rsft_cluster.prompts.digests import DigestSet, digests_of
from rsft_cluster.prompts.held_out import HeldOut
from rsft_cluster.prompts.stored import ROWS_A_GROUP
from rsft_cluster.runs.prompt_sets import quarantine, watched
from rsft_cluster.schemas import PROMPT, SEEN
from rsft_cluster.store import Store
from rsft_cluster.store.layout import NightLayout, RunLayout


def take(config: RunConfig, night: NightLayout) -> Taken:
    """Write the prompts that a night takes to its folder, in the order of the source.

    They are copied, so that a night which is cut off goes on with the same ones whatever is added meanwhile.
    """
    wanted = config.prompts.model_copy(update={"limit": None})
    known = _seen(night.store) if config.nightly.prompts == "new" else DigestSet()
    num_known, whole = len(known), hashlib.sha256()
    with quarantine(night.store, night.quarantine) as (on_bad, where):
        intake = read_prompts(wanted, on_bad=on_bad, quarantine=where)
        batches = watched(_first(_fresh(intake, known), config.prompts.limit), whole, HeldOut())
        num_prompts = night.store.write_batches(night.taken, batches, PROMPT, rows=ROWS_A_GROUP)
    return Taken(
        path=night.taken,
        num_prompts=num_prompts,
        num_seen=num_known,
        num_bad=intake.num_bad,
        content=whole.hexdigest()[:32],
    )


def mark_seen(store: Store, date: str, taken: Taken) -> None:
    """Note a night's prompts as taken; a second time changes nothing."""
    path = RunLayout(store).seen_on(date)
    if not store.exists(path):
        store.write_batches(path, store.read_batches(taken.path, ["prompt_id"]), SEEN, rows=1 << 20)


def stored_prompts(config: PromptsConfig, store: Store, taken: Taken) -> PromptsConfig:
    """Return the config of a night's prompts: what was taken, as it stands in the store."""
    params = {"uri": store.uri_of(taken.path), "content": taken.content}
    source = config.source.model_copy(update={"use": "stored", "params": params})
    return config.model_copy(update={"source": source, "paths": (), "limit": None})


def _seen(store: Store) -> DigestSet:
    known = DigestSet()
    for path in store.files(RunLayout(store).seen):
        for batch in store.read_batches(path, ["prompt_id"]):
            known.add(digests_of(batch.column("prompt_id").to_pylist()))
    return known


def _fresh(batches: Iterator[pa.RecordBatch], known: DigestSet) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch.filter(pa.array(known.add(digests_of(batch.column("prompt_id").to_pylist()))))


def _first(batches: Iterator[pa.RecordBatch], limit: int | None) -> Iterator[pa.RecordBatch]:
    left = limit
    for batch in batches:
        yield batch if left is None else batch.slice(0, left)
        if left is not None:
            left -= min(left, batch.num_rows)
            if not left:
                return

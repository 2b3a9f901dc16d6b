"""The prompts of a run, ingested once: training and held-out ones apart, unusable lines in quarantine."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import pyarrow as pa

from rsft_cluster.config import PromptsConfig
from rsft_cluster.errors import ConfigError
from rsft_cluster.prompts import BadLine, read_prompts
from rsft_cluster.prompts.held_out import HeldOut
from rsft_cluster.prompts.stored import write_prompts
from rsft_cluster.records import PromptSet
from rsft_cluster.runs.run import Run
from rsft_cluster.schemas import PROMPT
from rsft_cluster.store import Store


def ingest_prompts(run: Run) -> tuple[PromptSet, PromptSet]:
    """Copy the training and the held-out prompts into the store, once; return both sets.

    Raises ConfigError when a held-out prompt also stands among the training prompts.
    """
    held_out = _ingest(run, "held_out", run.config.evaluation.prompts, HeldOut())
    return _ingest(run, "train", run.config.prompts, held_out_in(run.store, held_out)), held_out


def held_out_in(store: Store, prompts: PromptSet) -> HeldOut:
    """Return the held-out prompts of a run, for comparison with others."""
    return HeldOut(store.read_batches(prompts.path, ["messages"]))


def _ingest(run: Run, name: str, config: PromptsConfig, held_out: HeldOut) -> PromptSet:
    layout = run.layout.prompts(name)

    def make() -> PromptSet:
        ids_digest = hashlib.sha256()
        with quarantine(run.store, layout.quarantine) as (on_bad, quarantine_uri):
            intake = read_prompts(config, on_bad=on_bad, quarantine=quarantine_uri, fairness=run.config.fairness)
            batches = checked_and_digested(intake, ids_digest, held_out)
            write_prompts(run.store, layout.table, batches, PROMPT, unit_size=run.config.sampling.unit_size)
        return PromptSet(
            path=layout.table,
            num_lines=intake.num_lines,
            num_prompts=intake.num_prompts,
            num_duplicates=intake.num_duplicates,
            num_bad=intake.num_bad,
            content=ids_digest.hexdigest()[:32],
        )

    return run.keep(layout.record, PromptSet, make)


@contextmanager
def quarantine(store: Store, path: str) -> Iterator[tuple[Callable[[BadLine], None], str]]:
    """Yield what to call for each bad line, and the URI where the lines are put when the block ends."""
    with tempfile.TemporaryFile() as bad:
        try:
            yield lambda line: _append(bad, line), store.uri_of(path)
        finally:
            if bad.tell():
                bad.seek(0)
                store.write(path, bad.read())


def _append(file: IO[bytes], line: BadLine) -> None:
    file.write(line.to_json().encode() + b"\n")


def checked_and_digested(
    batches: Iterator[pa.RecordBatch], ids_digest: "hashlib._Hash", held_out: HeldOut
) -> Iterator[pa.RecordBatch]:
    """Yield batches of PROMPT, their ids added to a digest; raises ConfigError at a prompt that is held out."""
    for batch in batches:
        ids_digest.update("".join(batch.column("prompt_id").to_pylist()).encode())
        row = held_out.first_of(batch.column("messages"))
        if row is not None:
            source = batch.column("source")[row].as_py()
            raise ConfigError(
                f"{source['file']}:{source['line']}: this prompt also stands among the held-out prompts; a "
                "policy must not be trained on what it is evaluated on"
            )
        yield batch

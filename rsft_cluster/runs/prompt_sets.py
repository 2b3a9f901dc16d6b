"""The prompts of a run, taken in once: training and held-out ones apart, unusable lines aside."""

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
from rsft_cluster.records import (
    PromptSet,
)
from rsft_cluster.runs.run import Run
from rsft_cluster.schemas import PROMPT
from rsft_cluster.store import Store


def take_in(run: Run) -> tuple[PromptSet, PromptSet]:
    """Read the training and the held-out prompts into the store, once; return what was found.

    Raises ConfigError when a held-out prompt also stands among the training prompts.
    """
    held_out = _take_in(run, "held_out", run.config.evaluation.prompts, HeldOut())
    return _take_in(run, "train", run.config.prompts, held_out_in(run.store, held_out)), held_out


def held_out_in(store: Store, prompts: PromptSet) -> HeldOut:
    """Return what was taken in as held-out prompts, to hold others against."""
    return HeldOut(store.read_batches(prompts.path, ["messages"]))


def _take_in(run: Run, name: str, config: PromptsConfig, held_out: HeldOut) -> PromptSet:
    layout = run.layout.prompts(name)

    def make() -> PromptSet:
        whole = hashlib.sha256()
        with quarantine(run.store, layout.quarantine) as (on_bad, where):
            intake = read_prompts(config, on_bad=on_bad, quarantine=where, fairness=run.config.fairness)
            batches = watched(intake, whole, held_out)
            write_prompts(run.store, layout.table, batches, PROMPT, unit_size=run.config.sampling.unit_size)
        return PromptSet(
            path=layout.table,
            num_lines=intake.num_lines,
            num_prompts=intake.num_prompts,
            num_duplicates=intake.num_duplicates,
            num_bad=intake.num_bad,
            content=whole.hexdigest()[:32],
        )

    return run.keep(layout.record, PromptSet, make)


@contextmanager
def quarantine(store: Store, path: str) -> Iterator[tuple[Callable[[BadLine], None], str]]:
    """Yield what to call for each bad line, and where they are to be found; put them there when the block ends."""
    with tempfile.TemporaryFile() as bad:
        try:
            yield lambda line: _append(bad, line), store.uri_of(path)
        finally:
            if bad.tell():
                bad.seek(0)
                store.write(path, bad.read())


def _append(file: IO[bytes], line: BadLine) -> None:
    file.write(line.to_json().encode() + b"\n")


def watched(batches: Iterator[pa.RecordBatch], whole: "hashlib._Hash", held_out: HeldOut) -> Iterator[pa.RecordBatch]:
    """Pass batches of PROMPT on, their ids taken into a digest; ConfigError for one that is held out."""
    for batch in batches:
        whole.update("".join(batch.column("prompt_id").to_pylist()).encode())
        place = held_out.first_of(batch.column("messages"))
        if place is not None:
            source = batch.column("source")[place].as_py()
            raise ConfigError(
                f"{source['file']}:{source['line']}: this prompt also stands among the held-out prompts; a "
                "policy must not be trained on what it is evaluated on"
            )
        yield batch

"""A prompt source for prompts that are already in a store, as PROMPT rows, such as those of a night."""

from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

from rsft_cluster.config import PromptsConfig
from rsft_cluster.prompts.rows import BadLine
from rsft_cluster.store import Store


def stored(
    _prompts: PromptsConfig, _on_bad: Callable[[BadLine], None], *, uri: str, content: str
) -> Iterator[pa.RecordBatch]:
    """Read the Parquet file of PROMPT rows at `uri`, its page checksums verified.

    `content` is a digest over the prompts, so that other prompts make another run.
    """
    del content
    folder, _, name = uri.rpartition("/")
    yield from Store(folder).read_batches(name)


ROWS_A_GROUP = 4096
"""Prompts that a row group of a prompts file holds at most, unless one unit is larger. A unit reads its whole group."""


def write_prompts(
    store: Store, path: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema, *, unit_size: int
) -> int:
    """Write the prompts of a plan, whole units a row group; return the number of prompts."""
    return store.write_batches(path, batches, schema, rows=unit_size, most_rows=ROWS_A_GROUP)

"""The intake of a run: the batches of its prompt source, each prompt once, bad lines counted and limited.

Where decisions have to be fair, each prompt is repeated for every combination of protected values. Knows the contract
of a source and nothing of files. It holds one batch, and 24 bytes for each prompt seen.
"""

from collections.abc import Callable, Iterator
from typing import Self

import pyarrow as pa

from rsft_cluster.config import FairnessConfig, PromptsConfig
from rsft_cluster.errors import ConfigError, PluginError, SchemaError
from rsft_cluster.plugins import bind
from rsft_cluster.prompts.digests import DigestSet, digests_of
from rsft_cluster.prompts.rows import BadLine
from rsft_cluster.prompts.swaps import bad_line, complaint, swapped
from rsft_cluster.schemas import PROMPT, conform, prompt_id

_EARLY = 100
"""More bad lines than this are enough evidence to stop in the middle of a file."""


class Intake(Iterator[pa.RecordBatch]):
    """An iterator over batches of distinct prompts, in the order of the source, that counts as it goes.

    Once exhausted, num_lines = num_prompts + num_duplicates + num_bad, unless a limit left prompts unused; where each
    prompt was repeated for n combinations of protected values, num_prompts / n takes its place. The limit counts
    prompts of the source.
    """

    def __init__(
        self,
        config: PromptsConfig,
        *,
        on_bad: Callable[[BadLine], None],
        quarantine: str | None = None,
        fairness: FairnessConfig | None = None,
    ) -> None:
        self.num_lines = 0
        self.num_bad = 0
        self.num_duplicates = 0
        self.num_prompts = 0
        self._config = config
        self._on_bad = on_bad
        self._quarantine = quarantine
        self._fairness = fairness
        self._first_bad: list[BadLine] = []
        self._seen = DigestSet()
        self._batches = self._read()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> pa.RecordBatch:
        return next(self._batches)

    def _read(self) -> Iterator[pa.RecordBatch]:
        left = self._config.limit
        source = bind(self._config.source, "prompt_sources", num_leading=2)
        for source_batch in source(self._config, self._note):
            batch = self._usable(_conforming(source_batch, self._config.source.use))
            self.num_lines += batch.num_rows
            if self.num_bad > _EARLY:
                self._check_rate()
            distinct = self._distinct(batch)
            if left is not None:
                distinct = distinct.slice(0, left)
                left -= distinct.num_rows
            if distinct.num_rows:
                batch = self._swapped(distinct)
                self.num_prompts += batch.num_rows
                yield batch
            if left == 0:
                break
        self._check_rate()
        if not self.num_prompts:
            raise ConfigError(
                f"no prompt found in {self._where()}: {self.num_lines} lines read, {self.num_bad} unusable"
                + self._examples()
            )

    def _note(self, bad: BadLine) -> None:
        self.num_lines += 1
        self.num_bad += 1
        if len(self._first_bad) < 3:
            self._first_bad.append(bad)
        self._on_bad(bad)

    def _usable(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if self._fairness is None:
            return batch
        rows = batch.to_pylist()
        complaints = [complaint(row, self._fairness) for row in rows]
        for row, reason in zip(rows, complaints, strict=True):
            if reason is not None:
                self._note(bad_line(row, reason))
        return batch.filter(pa.array([reason is None for reason in complaints], pa.bool_()))

    def _swapped(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if self._fairness is None or self._fairness.swaps == "none":
            return batch
        return swapped(batch, self._fairness)

    def _distinct(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        ids = batch.column("prompt_id").to_pylist()
        digests = digests_of(ids)
        is_first = self._seen.add(digests)
        num_repeated = len(ids) - int(is_first.sum())
        self.num_duplicates += num_repeated
        return batch.filter(pa.array(is_first)) if num_repeated else batch

    def _check_rate(self) -> None:
        allowed = self._config.max_bad_rate
        if self.num_bad <= allowed * self.num_lines:
            return
        share = 100 * self.num_bad / self.num_lines
        raise ConfigError(
            f"{self.num_bad} of {self.num_lines} lines read ({share:.3g} %) of {self._where()} are unusable; "
            f"max_bad_rate allows {100 * allowed:.3g} %" + self._examples()
        )

    def _where(self) -> str:
        return ", ".join(self._config.paths) or f"prompt source {self._config.source.use}"

    def _examples(self) -> str:
        lines = [f"\n  {bad.file}:{bad.line}: {bad.reason}" for bad in self._first_bad]
        if lines and self._quarantine:
            lines.append(f"\n  all of them, with content: {self._quarantine}")
        return "".join(lines)


def read_prompts(
    config: PromptsConfig,
    *,
    on_bad: Callable[[BadLine], None],
    quarantine: str | None = None,
    fairness: FairnessConfig | None = None,
) -> Intake:
    """Return the distinct prompts of a config's source, as an iterator that counts.

    `on_bad` is called for each bad line when it is met; `quarantine` is where it keeps them, for messages. `fairness`
    requires protected values, or inserts them. Raises ConfigError when more than `max_bad_rate` of the lines are bad,
    or no prompt is left.
    """
    return Intake(config, on_bad=on_bad, quarantine=quarantine, fairness=fairness)


def _conforming(batch: pa.RecordBatch, use: str) -> pa.RecordBatch:
    """Return the batch as PROMPT rows; checking the id of the first one reveals a wrong recipe for ids."""
    if not isinstance(batch, pa.RecordBatch):
        raise PluginError(f"prompt source {use}: yields a {type(batch).__name__}; expected a pyarrow.RecordBatch")
    try:
        table = conform(pa.Table.from_batches([batch]), PROMPT)
    except SchemaError as error:
        raise PluginError(f"prompt source {use}: {error}") from error
    batch = pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], schema=PROMPT)
    if batch.num_rows:
        row = batch.slice(0, 1).to_pylist()[0]
        expected = prompt_id(row["messages"], row["reference"], dict(row["attributes"]))
        if row["prompt_id"] != expected:
            raise PluginError(
                f"prompt source {use}: prompt_id {row['prompt_id']!r} is not the digest of its prompt, "
                f"{expected!r}; use rsft_cluster.schemas.prompt_id"
            )
    return batch

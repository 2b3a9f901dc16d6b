"""The built-in prompt source: JSONL and Parquet files, row by row, to batches of PROMPT.

It streams: one file is open at a time, and a batch is handed on as soon as it is full.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import accumulate

import numpy as np
import pyarrow as pa

from rsft_cluster.config import PromptsConfig
from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.prompts.jsonl import read_jsonl
from rsft_cluster.prompts.mapping import ColumnMapping, MappedPrompt
from rsft_cluster.prompts.parquet import read_parquet
from rsft_cluster.prompts.paths import PARQUET, PromptFile, find_files
from rsft_cluster.prompts.rows import BadLine, Refused, Row
from rsft_cluster.prompts.source_ids import SourceIds
from rsft_cluster.schemas import MESSAGES, PROMPT

BATCH_ROWS = 4096
"""Lines per batch, bad ones included."""

BATCH_CHARACTERS = 16 << 20
"""Characters of text per batch, but for its last prompt."""

_NONE: list[tuple[str, str]] = []


def files(prompts: PromptsConfig, on_bad: Callable[[BadLine], None]) -> Iterator[pa.RecordBatch]:
    """Read the files that `prompts.paths` names, in sorted order.

    Raises ConfigError where a path gives nothing, a file cannot be read, or two rows share a source id
    but not their content.
    """
    mapping = ColumnMapping(prompts)
    sources = find_files(prompts.paths)
    ids = _OwnIds(sources, mapping)
    pending = _Pending()
    num_lines = 0
    num_characters = 0
    for index, file in enumerate(sources):
        for row in read_rows(file, mapping.names):
            prompt = row if isinstance(row, BadLine) else _prompt(row, mapping, file.name)
            num_lines += 1
            if isinstance(prompt, BadLine):
                on_bad(prompt)
            else:
                ids.add(prompt, file=index, line=row.line)
                pending.add(prompt, file.name, row.line)
                num_characters += prompt.num_characters
            if num_lines >= BATCH_ROWS or num_characters >= BATCH_CHARACTERS:
                ids.check()
                yield pending.batch()
                pending, num_lines, num_characters = _Pending(), 0, 0
    ids.check()
    yield pending.batch()


def read_rows(file: PromptFile, names: Sequence[str]) -> Iterator[Row | BadLine]:
    """Yield a file's rows; an error of the file system or the format becomes a ConfigError."""
    rows = _open(file, names)
    line = 0
    while True:
        try:
            row = next(rows, None)
        except StoreError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"{file.name}: cannot be read after line {line}: {error}") from error
        if row is None:
            return
        line = row.line
        yield row


def _open(file: PromptFile, names: Sequence[str]) -> Iterator[Row | BadLine]:
    lower = file.name.lower()
    if lower.endswith(PARQUET):
        with file.filesystem.open_input_file(file.path) as source:
            yield from read_parquet(source, file=file.name, names=names)
        return
    compression = "gzip" if lower.endswith(".gz") else None
    with file.filesystem.open_input_stream(file.path, compression=compression) as stream:
        buffered = io.BufferedReader(stream, 1 << 20)  # pyright: ignore[reportArgumentType] a NativeFile reads raw
        yield from read_jsonl(buffered, file=file.name)


def _prompt(row: Row, mapping: ColumnMapping, file: str) -> MappedPrompt | BadLine:
    try:
        return mapping.prompt(row)
    except Refused as refused:
        return BadLine.of_row(row, file=file, reason=str(refused))


def prompt_row(prompt: MappedPrompt, file: str, line: int) -> dict[str, object]:
    """Return the row of PROMPT for a prompt from this line of a file."""
    return {
        "prompt_id": prompt.prompt_id,
        "messages": prompt.messages,
        "reference": prompt.reference,
        "attributes": list(prompt.attributes.items()),
        "source": {"file": file, "line": line},
    }


class _Pending:
    """Prompts on their way into a batch of PROMPT, built by column: ten million dictionaries take minutes."""

    def __init__(self) -> None:
        self._prompts: list[MappedPrompt] = []
        self._files: list[str] = []
        self._lines: list[int] = []

    def add(self, prompt: MappedPrompt, file: str, line: int) -> None:
        """Add a prompt from this line of a file."""
        self._prompts.append(prompt)
        self._files.append(file)
        self._lines.append(line)

    def batch(self) -> pa.RecordBatch:
        """Return the prompts in the order in which they were added."""
        prompts, source = self._prompts, PROMPT.field("source").type
        messages = [message for prompt in prompts for message in prompt.messages]
        roles = pa.array([message["role"] for message in messages], pa.string())
        contents = pa.array([message["content"] for message in messages], pa.string())
        attributes = [list(prompt.attributes.items()) if prompt.attributes else _NONE for prompt in prompts]
        arrays = [
            pa.array([prompt.prompt_id for prompt in prompts], pa.string()),
            pa.ListArray.from_arrays(
                pa.array(accumulate((len(prompt.messages) for prompt in prompts), initial=0), pa.int32()),
                pa.StructArray.from_arrays([roles, contents], fields=list(MESSAGES.value_type)),
                type=MESSAGES,
            ),
            pa.array([prompt.reference for prompt in prompts], pa.string()),
            pa.array(attributes, PROMPT.field("attributes").type),
            pa.StructArray.from_arrays(
                [pa.array(self._files, pa.string()), pa.array(self._lines, pa.int64())], fields=list(source)
            ),
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=PROMPT)


class _OwnIds:
    """The ids of the source, and the prompt that each stands for."""

    def __init__(self, files: Sequence[PromptFile], mapping: ColumnMapping) -> None:
        self._files = files
        self._mapping = mapping
        self._seen = SourceIds()
        self._pending: list[tuple[str, str, int, int]] = []

    def add(self, prompt: MappedPrompt, *, file: int, line: int) -> None:
        """Record a prompt's source id, if it has one."""
        if prompt.source_id is not None:
            self._pending.append((prompt.source_id, prompt.prompt_id, file, line))

    def check(self) -> None:
        """Raise ConfigError if a recorded id stands for another prompt than before."""
        if not self._pending:
            return
        ids = b"".join([blake2b(source_id.encode(), digest_size=8).digest() for source_id, *_ in self._pending])
        contents = bytes.fromhex("".join([prompt[:16] for _, prompt, *_ in self._pending]))
        clashes = self._seen.clashes(np.frombuffer(ids, np.uint64), np.frombuffer(contents, np.uint64))
        for i in np.flatnonzero(clashes):
            self._check_clash(*self._pending[i])
        self._pending = []

    def _check_clash(self, own_id: str, prompt: str, file: int, line: int) -> None:
        """Check an id that seems to stand for two prompts, reading from the beginning to its first one."""
        for known in self._files:
            for row in read_rows(known, self._mapping.names):
                first = row if isinstance(row, BadLine) else _prompt(row, self._mapping, known.name)
                if isinstance(first, BadLine) or first.source_id != own_id:
                    continue
                if first.prompt_id == prompt:
                    return
                raise ConfigError(
                    f"{self._files[file].name}:{line}: the id {own_id[:80]!r} also stands at {known.name}:{row.line}, "
                    "with other content; give each prompt an id of its own, or leave columns.id unset"
                )

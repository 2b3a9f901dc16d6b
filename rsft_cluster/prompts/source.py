"""The built-in prompt source: JSONL and Parquet files, row by row, to batches of PROMPT.

It streams: one file is open at a time, and a batch is handed on as soon as it is full.
"""

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b

import pyarrow as pa

from rsft_cluster.config import PromptsConfig
from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.prompts.jsonl import read_jsonl
from rsft_cluster.prompts.mapping import ColumnMapping, MappedPrompt
from rsft_cluster.prompts.parquet import read_parquet
from rsft_cluster.prompts.paths import PARQUET, PromptFile, find_files
from rsft_cluster.prompts.rows import BadLine, Refused, Row
from rsft_cluster.schemas import PROMPT, rows_to_table

BATCH_ROWS = 4096
"""Lines a batch stands for, bad ones counted."""

BATCH_CHARACTERS = 16 << 20
"""Text a batch holds, but for its last prompt."""


def files(prompts: PromptsConfig, on_bad: Callable[[BadLine], None]) -> Iterator[pa.RecordBatch]:
    """Read the files that `prompts.paths` names, in sorted order.

    Raises ConfigError where a path gives nothing, a file cannot be read, or two rows share a source id
    but not their content.
    """
    mapping = ColumnMapping(prompts)
    found = find_files(prompts.paths)
    ids = _SourceIds([file.name for file in found])
    pending: list[dict[str, object]] = []
    num_lines = 0
    num_characters = 0
    for index, file in enumerate(found):
        for row in read_rows(file, mapping.names):
            prompt = row if isinstance(row, BadLine) else _prompt(row, mapping, file.name)
            num_lines += 1
            if isinstance(prompt, BadLine):
                on_bad(prompt)
            else:
                ids.check(prompt, file=index, line=row.line)
                pending.append(prompt_row(prompt, file.name, row.line))
                num_characters += prompt.num_characters
            if num_lines >= BATCH_ROWS or num_characters >= BATCH_CHARACTERS:
                yield _batch(pending)
                pending, num_lines, num_characters = [], 0, 0
    yield _batch(pending)


def read_rows(file: PromptFile, names: Sequence[str]) -> Iterator[Row | BadLine]:
    """Yield a file's rows; whatever the file system or the format says against it becomes a ConfigError."""
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
    """Return the row of PROMPT, given where it stands."""
    return {
        "prompt_id": prompt.prompt_id,
        "messages": prompt.messages,
        "reference": prompt.reference,
        "attributes": list(prompt.attributes.items()),
        "source": {"file": file, "line": line},
    }


def _batch(records: Sequence[dict[str, object]]) -> pa.RecordBatch:
    table = rows_to_table(records, PROMPT)
    return pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], schema=PROMPT)


class _SourceIds:
    """The sources' own ids: which prompt each stands for, and where it was first seen."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._seen: dict[bytes, bytes] = {}

    def check(self, prompt: MappedPrompt, *, file: int, line: int) -> None:
        """Note a prompt's source id, if it has one; raises ConfigError if it stands for another prompt."""
        if prompt.source_id is None:
            return
        key = blake2b(prompt.source_id.encode(), digest_size=16).digest()
        content = bytes.fromhex(prompt.prompt_id)
        known = self._seen.setdefault(key, struct.pack(">16sIQ", content, file, line))
        first_content, first_file, first_line = struct.unpack(">16sIQ", known)
        if first_content != content:
            raise ConfigError(
                f"{self._names[file]}:{line}: the id {prompt.source_id[:80]!r} also stands at "
                f"{self._names[first_file]}:{first_line}, with other content; "
                "give each prompt an id of its own, or leave columns.id unset"
            )

"""Candidates by prompt, however they are spread over lines and files: a temporary database, so that memory is bounded.

Prompts stand in the order in which they first came, candidates in that of their lines.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from rsft_cluster.rounds.importing.completions import ImportedCompletion
from rsft_cluster.schemas import PROMPT, rows_to_table

ROWS_A_BATCH = 1024


class CandidateDatabase:
    """Prompts and what was answered to them."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._content = hashlib.sha256()
        self.num_prompts = 0
        self.num_candidates = 0
        database.execute("CREATE TABLE prompts (number INTEGER PRIMARY KEY, id TEXT UNIQUE, record TEXT)")
        database.execute("CREATE TABLE candidates (prompt TEXT, position INTEGER, record TEXT)")
        database.execute("CREATE INDEX of_prompt ON candidates (prompt, position)")

    @property
    def content(self) -> str:
        """Digest over all that was put in, in order."""
        return self._content.hexdigest()[:32]

    def put(self, prompt: dict[str, Any], answers: Sequence[ImportedCompletion]) -> None:
        """Add a row of PROMPT, unless it is there, and answers to it."""
        name, record = prompt["prompt_id"], json.dumps(prompt, sort_keys=True)
        put = self._database.execute("INSERT OR IGNORE INTO prompts (id, record) VALUES (?, ?)", (name, record))
        self.num_prompts += put.rowcount
        for answer in answers:
            text = json.dumps(answer.to_dict(), sort_keys=True)
            self._content.update(f"{name} {text}\n".encode())
            self._database.execute("INSERT INTO candidates VALUES (?, ?, ?)", (name, self.num_candidates, text))
            self.num_candidates += 1

    def prompts(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows of PROMPT."""
        found = self._database.execute("SELECT record FROM prompts ORDER BY number")
        while rows := found.fetchmany(ROWS_A_BATCH):
            records = [json.loads(row[0]) for row in rows]
            yield from rows_to_table(records, PROMPT).to_batches()

    def answers(self, prompt: str) -> list[ImportedCompletion]:
        """Return what was answered to a prompt."""
        found = self._database.execute("SELECT record FROM candidates WHERE prompt = ? ORDER BY position", (prompt,))
        return [ImportedCompletion(**json.loads(row[0])) for row in found]


@contextmanager
def candidate_database() -> Iterator[CandidateDatabase]:
    """Hold an empty database for the length of the block."""
    with (
        TemporaryDirectory(prefix="rsft-") as folder,
        closing(sqlite3.connect(f"{folder}/candidate_database")) as database,
    ):
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        yield CandidateDatabase(database)

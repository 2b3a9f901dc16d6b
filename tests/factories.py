"""Small builders with defaults, for tests of every stage."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from rsft_cluster.constraints.base import Candidate
from rsft_cluster.schemas import PROMPT, Message, prompt_id, rows_to_table


def prompt(text: str = "What is 2 + 3?", *, reference: str | None = "5", role: str = "user", **more: Any) -> dict:
    """One row of PROMPT; `messages`, `attributes` and `source` may be given as well."""
    messages = more.get("messages", [{"role": role, "content": text}])
    attributes = more.get("attributes", {})
    return {
        "prompt_id": prompt_id(messages, reference, attributes),
        "messages": messages,
        "reference": reference,
        "attributes": list(attributes.items()),
        "source": more.get("source", {"file": "prompts.jsonl", "line": 1}),
    }


def prompts(num: int = 3) -> pa.Table:
    """A PROMPT table of small sums, all different."""
    rows = [
        prompt(f"What is {i} + 1?", reference=str(i + 1), source={"file": "prompts.jsonl", "line": i + 1})
        for i in range(num)
    ]
    return rows_to_table(rows, PROMPT)


def candidate(completion: str = "The answer is 5.", *, text: str = "What is 2 + 3?", **more: Any) -> Candidate:
    """What a constraint sees; any field of Candidate may be given."""
    fields: dict[str, Any] = {"messages": (Message("user", text),), "reference": "5", **more}
    return Candidate(completion, **fields)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object] | str | bytes]) -> Path:
    """Write one line a row, objects as JSON, text and bytes as they are; return the path."""
    with path.open("wb") as stream:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False) if isinstance(row, Mapping) else row
            stream.write(line.encode() if isinstance(line, str) else line)
            stream.write(b"\n")
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

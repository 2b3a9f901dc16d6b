"""One prompt for every combination of protected values, from a prompt that holds `{gender}` where the value stands.

A prompt that cannot be expanded is refused with its reason, like a bad line. The prompts made of one share the
attribute SWAP_GROUP, the id of the original, and keep its reference, its other attributes and its source.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from rsft_cluster.config import FairnessConfig
from rsft_cluster.prompts.rows import BadLine
from rsft_cluster.schemas import PROMPT, SWAP_GROUP, prompt_id, rows_to_table


def complaint(row: Mapping[str, Any], fairness: FairnessConfig) -> str | None:
    """Return why a PROMPT row is unusable where decisions have to be fair; None where it is usable."""
    attributes = dict(row["attributes"])
    if fairness.cells == "equalised_odds" and fairness.merit not in attributes:
        return f"it has no attribute {fairness.merit!r}, which fairness.merit needs for equalised odds"
    if fairness.swaps != "none":
        return _unswappable(row["messages"], attributes, fairness)
    for name, values in fairness.protected.items():
        if attributes.get(name) not in values:
            return f"its attribute {name!r} is {attributes.get(name)!r}, none of {list(values)} of fairness.protected"
    return None


def bad_line(row: Mapping[str, Any], reason: str) -> BadLine:
    """Return the record of an unusable prompt; its content is the messages, as JSON."""
    raw = json.dumps(row["messages"], ensure_ascii=False).encode()
    source = row["source"]
    return BadLine.of_bytes(raw, file=source["file"], line=source["line"], byte_offset=None, reason=reason)


def swapped(prompts: pa.RecordBatch, fairness: FairnessConfig) -> pa.RecordBatch:
    """Return each prompt under every combination of protected values, in the order of `fairness.combinations`."""
    rows = [_under(row, values) for row in prompts.to_pylist() for values in fairness.combinations]
    table = rows_to_table(rows, PROMPT)
    return pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], schema=PROMPT)


def _unswappable(
    messages: Sequence[Mapping[str, str]], attributes: Mapping[str, str], fairness: FairnessConfig
) -> str | None:
    for name in fairness.protected:
        if not any(f"{{{name}}}" in message["content"] for message in messages):
            return f"it holds no {{{name}}}, where fairness.swaps puts the values of fairness.protected.{name}"
    present = [name for name in (*fairness.protected, SWAP_GROUP) if name in attributes]
    if present:
        return f"it has an attribute {present[0]!r}, which fairness.swaps sets; leave it out of the columns"
    return None


def _under(row: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, object]:
    placeholders = re.compile("|".join(re.escape(f"{{{name}}}") for name in values))
    messages = [
        {"role": m["role"], "content": placeholders.sub(lambda match: values[match[0][1:-1]], m["content"])}
        for m in row["messages"]
    ]
    attributes = {**dict(row["attributes"]), **values, SWAP_GROUP: row["prompt_id"]}
    return {
        "prompt_id": prompt_id(messages, row["reference"], attributes),
        "messages": messages,
        "reference": row["reference"],
        "attributes": list(attributes.items()),
        "source": row["source"],
    }

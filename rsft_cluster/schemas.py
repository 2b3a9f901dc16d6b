"""The seams between stages: four Arrow schemas, and `conform`, which every write goes through.

PROMPT -> CANDIDATE -> SCORE -> ACCEPTED. A field that is not nullable here is never null in a file.
Ids are digests of content, never positions, so that they survive a change of sharding or of order.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from json.encoder import encode_basestring as quoted

import pyarrow as pa

from rsft_cluster.errors import SchemaError

SCHEMA_VERSION = 4
_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _schema(name: str, fields: Sequence[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={"rsft_schema": name, "schema_version": str(SCHEMA_VERSION)})


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message; role `raw` is text without a chat template."""

    role: str
    content: str


def to_messages(value: Sequence[Mapping[str, str]]) -> tuple[Message, ...]:
    """Return the messages of a PROMPT or ACCEPTED row, as read by `to_pylist`."""
    return tuple(Message(role=message["role"], content=message["content"]) for message in value)


MESSAGES = pa.list_(
    _required("message", pa.struct([_required("role", pa.string()), _required("content", pa.string())]))
)
"""Chat messages in order. One message of role `raw` is text put to the policy without a chat template."""

TOKEN_IDS = pa.list_(_required("token_id", pa.int32()))

PROMPT = _schema(
    "prompt",
    [
        _required("prompt_id", pa.string()),
        _required("messages", MESSAGES),
        pa.field("reference", pa.string()),
        _required("attributes", pa.map_(pa.string(), pa.string())),
        _required("source", pa.struct([_required("file", pa.string()), _required("line", pa.int64())])),
    ],
)

ASKED = _schema(
    "asked",
    [*PROMPT, _required("first_index", pa.int32()), _required("num_candidates", pa.int32())],
)
"""Prompts that a later wave asks again: which index its candidates begin at, and how many there are to be."""

SEEN = _schema("seen", [_required("prompt_id", pa.string())])
"""Prompts that a night took."""

SWAP_GROUP = "swap_group"
"""Attribute that prompts share which are the same but for protected values (fairness)."""

CANDIDATE = _schema(
    "candidate",
    [
        _required("candidate_id", pa.string()),
        _required("prompt_id", pa.string()),
        _required("round", pa.int32()),
        _required("wave", pa.int32()),
        _required("index", pa.int32()),
        _required("prompt_token_ids", TOKEN_IDS),
        _required("token_ids", TOKEN_IDS),
        _required("text", pa.string()),
        _required("finish_reason", pa.string()),
        pa.field("logprob", pa.float64()),
        pa.field("target_logprob", pa.float64()),
        _required("survival", pa.float64()),
        _required("seed", pa.uint64()),
        _required("policy", pa.string()),
    ],
)
"""`survival` is the share of the completion's probability that earlier rejections had left when it was drawn: 1, but
for adaptive sampling. `logprob` and `target_logprob` are null where candidates were made elsewhere and came without."""

VERDICT = pa.struct(
    [
        _required("constraint", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("passed", pa.bool_()),
        _required("reason", pa.string()),
        pa.field("error", pa.string()),
        pa.field("fatal_at", pa.int32()),
        _required("duration_s", pa.float64()),
    ]
)
"""What one constraint said. `score` and `passed` are null when `error` is set, and when the constraint does not apply
to the prompt. `fatal_at` is the place, in characters of the completion, of the first one that made it wrong whatever
followed, where the constraint names it."""

SCORE = _schema(
    "score",
    [
        _required("candidate_id", pa.string()),
        _required("prompt_id", pa.string()),
        _required("index", pa.int32()),
        pa.field("score", pa.float64()),
        pa.field("passed", pa.bool_()),
        _required("verdicts", pa.list_(_required("verdict", VERDICT))),
        _required("num_tokens", pa.int32()),
        pa.field("logprob", pa.float64()),
        pa.field("target_logprob", pa.float64()),
        _required("survival", pa.float64()),
        _required("content", pa.string()),
        pa.field("decision", pa.string()),
        _required("u", pa.float64()),
        _required("rule_probability", pa.float64()),
        pa.field("cell", pa.string()),
        _required("cell_weight", pa.float64()),
        pa.field("swaps_agree", pa.bool_()),
        _required("acceptance_probability", pa.float64()),
        pa.field("repeat_of", pa.int32()),
        pa.field("rank", pa.int32()),
        pa.field("cap", pa.int32()),
        _required("accepted", pa.bool_()),
        _required("reason", pa.string()),
    ],
)
"""All that the decision rests on, so that it can be made again from this row alone.

`content` is a digest of the token ids, `decision` what a completion decides (fairness). The acceptance probability is
the rule's, times the weight of the fairness cell, divided by the survival; 0 where `swaps_agree` is false. `repeat_of`
is the index of the candidate that this one repeats, `rank` its place among those drawn, from 0, and `cap` how many of
those its prompt keeps.
"""

ACCEPTED = _schema(
    "accepted",
    [
        _required("candidate_id", pa.string()),
        _required("prompt_id", pa.string()),
        _required("round", pa.int32()),
        _required("prompt_token_ids", TOKEN_IDS),
        _required("token_ids", TOKEN_IDS),
        _required("messages", MESSAGES),
        pa.field("finish_reason", pa.string()),
        _required("score", pa.float64()),
        _required("weight", pa.float64()),
    ],
)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return `table` with exactly the columns, types and metadata of `schema`.

    Raises SchemaError when a column is missing, unknown, of a type that cannot be cast without loss,
    or null where the schema says it may not be.
    """
    name = (schema.metadata or {}).get(b"rsft_schema", b"table").decode()
    missing = [f for f in schema.names if f not in table.column_names]
    unknown = [c for c in table.column_names if c not in schema.names]
    if missing or unknown:
        raise SchemaError(f"{name}: missing columns {missing}, unknown columns {unknown}; expected {schema.names}")
    table = table.select(schema.names)
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise SchemaError(f"{name}.{field.name}: holds nulls, which the schema forbids")
    try:
        return table.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError) as error:
        raise SchemaError(f"{name}: {error}") from error


def rows_to_table(rows: Sequence[Mapping[str, object]], schema: pa.Schema) -> pa.Table:
    """Build a conforming table from row dictionaries; missing keys of nullable fields become null."""
    columns = {field.name: [row.get(field.name) for row in rows] for field in schema}
    try:
        arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
        raise SchemaError(f"rows do not fit {schema.names}: {error}") from error
    return conform(pa.Table.from_arrays(arrays, names=schema.names), schema)


def digest(*parts: object) -> str:
    """Return 32 hex digits that identify the parts: sha256 over their canonical JSON."""
    return _digest_of(_CANONICAL.encode(parts))


def prompt_id(messages: Sequence[Mapping[str, str]], reference: str | None, attributes: Mapping[str, str]) -> str:
    """Return the id of a prompt: a digest of its content and of nothing else.

    The same as `digest("prompt", messages, reference, attributes)`, written out, since every line that is read asks.
    """
    texts = [_message_text(m["role"], m["content"]) for m in messages]
    others = _CANONICAL.encode(dict(attributes)) if attributes else "{}"
    answer = "null" if reference is None else quoted(reference)
    return _digest_of(f'["prompt",[{",".join(texts)}],{answer},{others}]')


def message_digests(messages: pa.ListArray) -> list[str]:
    """Return `digest(messages)` of every prompt of a column."""
    ends, values = messages.offsets.to_pylist(), messages.values
    roles, contents = (values.field(name).to_pylist() for name in ("role", "content"))
    texts = [_message_text(role, content) for role, content in zip(roles, contents, strict=True)]
    return [_digest_of(f"[[{','.join(texts[start:end])}]]") for start, end in pairwise(ends)]


def _message_text(role: str, content: str) -> str:
    return f'{{"content":{quoted(content)},"role":{quoted(role)}}}'


def _digest_of(canonical: str) -> str:
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:32]


def candidate_id(prompt: str, round_number: int, index: int) -> str:
    """Return the id of the index-th candidate of a prompt in a round."""
    return digest("candidate", prompt, round_number, index)

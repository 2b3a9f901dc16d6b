"""Where prompts come from: files -> PROMPT batches and a record of every line that could not be used.

A prompt source is a function `(prompts: PromptsConfig, on_bad, **params) -> Iterator[pa.RecordBatch]` of
`schemas.PROMPT`. It yields at least every few thousand lines, an empty batch where all were bad, and calls
`on_bad` with a `BadLine` for each line that it cannot use. The built-in one is `files`.
"""

from collections.abc import Mapping, Sequence

from rsft_cluster.constraints.base import Message
from rsft_cluster.prompts.intake import Intake, read_prompts
from rsft_cluster.prompts.rows import BadLine
from rsft_cluster.prompts.source import files

__all__ = ["BadLine", "Intake", "files", "read_prompts", "to_messages"]


def to_messages(value: Sequence[Mapping[str, str]]) -> tuple[Message, ...]:
    """Return the messages of a PROMPT or ACCEPTED row, as read by `to_pylist`."""
    return tuple(Message(role=message["role"], content=message["content"]) for message in value)

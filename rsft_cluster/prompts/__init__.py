"""Prompts: files -> PROMPT batches, and a record of every line that could not be used.

A prompt source is a function `(prompts: PromptsConfig, on_bad, **params) -> Iterator[pa.RecordBatch]` of
`schemas.PROMPT`. It yields at least every few thousand lines, an empty batch where all were bad, and calls
`on_bad` with a `BadLine` for each line that it cannot use. The built-in one is `files`.
"""

from rsft_cluster.prompts.intake import Intake, read_prompts
from rsft_cluster.prompts.rows import BadLine
from rsft_cluster.prompts.source import files

__all__ = ["BadLine", "Intake", "files", "read_prompts"]

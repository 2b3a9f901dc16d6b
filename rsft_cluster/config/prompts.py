"""`policy:` and `prompts:`: the model, and the prompts that it answers."""

from typing import Literal

from pydantic import Field

from rsft_cluster.config.parts import Part, Plugin, PluginField


class PolicyConfig(Part):
    """The model that the run starts from."""

    model: str
    """A folder with a Hugging Face causal language model in safetensors, or a hub id."""
    revision: str | None = None
    """A commit of the hub repository. Without it the hub's `main` is resolved once, at the start of the run."""
    adapter: str | None = None
    """A folder with a LoRA adapter for `model`, in safetensors; it is merged into the weights as they load."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of weights while sampling and training. Use bfloat16 on GPUs."""
    chat_template: str | None = None
    """A Jinja file used instead of the tokenizer's own chat template."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of transformers."""


class Columns(Part):
    """Which fields of the source rows mean what. Dots reach into nested fields."""

    prompt: str = "prompt"
    """Raw text, used where a row has no messages column."""
    messages: str = "messages"
    """Chat messages: a list of {role, content}."""
    reference: str | None = None
    """The known right answer; never shown to the policy."""
    id: str | None = None
    """An id of the source's own. Rows that share one must have the same content."""
    attributes: tuple[str, ...] = ()
    """Fields kept as attributes of the prompt, as text."""


class PromptsConfig(Part):
    """Where prompts come from."""

    source: PluginField = Plugin(use="files")
    """The prompt source; `files` reads JSONL and Parquet from `paths`."""
    paths: tuple[str, ...] = ()
    """Files, folders or globs, relative to the config file. Read in sorted order."""
    columns: Columns = Columns()
    """How source fields map to prompts."""
    system: str | None = None
    """A system message put before the messages of every chat prompt that has none."""
    as_chat: bool = False
    """Put raw text to the policy as a user message, through the chat template."""
    max_bad_rate: float = Field(default=0.01, ge=0, le=1)
    """The run stops when more than this share of the lines is unusable."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first `limit` prompts."""

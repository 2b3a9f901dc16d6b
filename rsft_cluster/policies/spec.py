"""A policy as the workers of a stage load it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A policy as a worker loads it."""

    model: str
    """A local folder, or a hub id."""
    name: str = "round-0000"
    master: str | None = None
    """A folder with the same weights in float32, where `model` holds them rounded: what training goes on from."""
    adapter: str | None = None
    """A folder with a LoRA adapter that is merged into the model's weights."""
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: str = "sdpa"
    chat_template: str | None = None
    """The template's text, where the tokenizer's own is not to be used."""
    trust_remote_code: bool = False
    device: str = "cpu"
    threads: int = 1

"""The facts about a model that its folder holds, read without an engine: parameters, context, tokenizer, chat template.

Weights are not loaded, only the headers of their files. Raises ConfigError, naming the file, for what is missing or
cannot be read.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jinja2
from safetensors import safe_open
from tokenizers import Tokenizer

from rsft_cluster.errors import ConfigError
from rsft_cluster.policies.references import check_folder

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class ModelFiles:
    """A local Hugging Face model folder."""

    folder: Path

    def check(self) -> None:
        """Raise ConfigError unless weights, config and tokenizer are there in full."""
        check_folder(str(self.folder))
        index = self.folder / "model.safetensors.index.json"
        named = set(self._json(index.name)["weight_map"].values()) if index.exists() else set()
        if missing := sorted(name for name in named if not (self.folder / name).exists()):
            raise ConfigError(f"{index}: names {missing[0]} and {len(missing) - 1} others that are not there")
        if not any((self.folder / name).exists() for name in TOKENIZER_FILES):
            raise ConfigError(f"{self.folder}: holds no tokenizer ({', '.join(TOKENIZER_FILES)})")

    @cached_property
    def num_parameters(self) -> int:
        """Number of parameters in all weight files."""
        return sum(_num_parameters(path) for path in sorted(self.folder.glob("*.safetensors")))

    @cached_property
    def num_context_tokens(self) -> int | None:
        """Number of positions of the model; None where its config does not set it."""
        config = self._json("config.json")
        limits = (config.get(name) for name in ("max_position_embeddings", "n_positions", "n_ctx"))
        return next((int(limit) for limit in limits if limit), None)

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]:
        """The type to load the weights in: bfloat16 where they are stored so, float32 for all others."""
        config = self._json("config.json")
        return "bfloat16" if config.get("dtype", config.get("torch_dtype")) == "bfloat16" else "float32"

    @property
    def has_code(self) -> bool:
        """True if Python code comes with the model, to be run only if trusted."""
        return "auto_map" in self._json("config.json")

    @property
    def has_chat_template(self) -> bool:
        """True if the tokenizer has a chat template."""
        if (self.folder / "chat_template.jinja").exists() or (self.folder / "chat_template.json").exists():
            return True
        return bool(self._json("tokenizer_config.json").get("chat_template"))

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The fast tokenizer; None where the folder holds only files to make one from."""
        path = self.folder / "tokenizer.json"
        if not path.exists():
            return None
        with _reading(path):
            return Tokenizer.from_file(str(path))

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.exists():
            return {}
        with _reading(path):
            fields = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(fields, dict):
                raise TypeError("expected a JSON object")
            return fields


def check_template(path: Path) -> None:
    """Raise ConfigError unless the file is a Jinja template."""
    with _reading(path):
        text = path.read_text(encoding="utf-8")
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True).parse(text)
    except jinja2.TemplateSyntaxError as error:
        if "generation" not in str(error):  # a tag that transformers adds to Jinja
            raise ConfigError(f"{path}:{error.lineno}: not a Jinja template: {error}") from error


def _num_parameters(path: Path) -> int:
    with _reading(path), safe_open(path, framework="numpy") as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 not a mapping


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file") from error
    except Exception as error:  # tokenizers raises nothing more precise, safetensors a type of its own
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def is_model_folder(path: Path) -> bool:
    """Return whether a path is a model's folder."""
    return (path / "config.json").is_file()

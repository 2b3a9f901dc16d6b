"""What every part of a config is made of: frozen, strict models, and plug-ins by name."""

import re
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator


class Part(BaseModel):
    """Base of all parts: immutable, strict about unknown keys, docstrings as help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Plugin(Part):
    """A plug-in by name and the parameters it is bound with."""

    use: str
    """A built-in's name, or `package.module:attribute` for your own."""
    params: dict[str, Any] = {}
    """Keyword arguments; checked against the plug-in's signature when the config loads."""


def _plugin(value: object) -> object:
    return {"use": value} if isinstance(value, str) else value


PluginField = Annotated[Plugin, BeforeValidator(_plugin, json_schema_input_type=str | Plugin)]


class Constraint(Plugin):
    """A constraint and the part it plays in the score."""

    name: str = ""
    """How verdicts name it; by default the last part of `use`. Unique within a run."""
    required: bool = True
    """A candidate passes only if every required constraint passed."""
    weight: float = Field(default=1.0, ge=0)
    """Share in the weighted mean that is the score; 0 leaves it out of the score."""
    timeout_s: float = Field(default=10, gt=0)
    """Seconds that a call may take before its process is killed: the verdict is an error then, never a score."""
    when: dict[str, str | Annotated[tuple[str, ...], Field(min_length=1)]] = {}
    """Attributes of the prompt with the values, one or several, under which this constraint judges; always by default.
    Where it does not, it neither counts in the score nor is it required."""

    @property
    def counts(self) -> bool:
        """Whether it has a part in the score or in what passes."""
        return self.required or self.weight > 0

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, value: object) -> object:
        if isinstance(value, dict) and not value.get("name") and isinstance(value.get("use"), str):
            return {**value, "name": re.split(r"[.:]", value["use"])[-1]}
        return value


ConstraintField = Annotated[Constraint, BeforeValidator(_plugin, json_schema_input_type=str | Constraint)]


class WorkerRange(Part):
    """As many actors as there is work and room for, within bounds."""

    min: int = Field(ge=1)
    """Actors that the stage begins with; the cluster must offer room for these."""
    max: int = Field(ge=1)
    """Most actors, reached as nodes join. An idle one is given up again, down to `min`."""

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"min is {self.min}, which is above max = {self.max}")
        return self


_AtLeastOne = Annotated[int, Field(ge=1)]
_NUMBER = TypeAdapter(_AtLeastOne)


def _workers(value: object) -> int | WorkerRange:
    # Not a plain union, whose errors are those of all its members.
    if isinstance(value, dict | WorkerRange):
        return WorkerRange.model_validate(value)
    return _NUMBER.validate_python(value, strict=True)


Workers = Annotated[int | WorkerRange, BeforeValidator(_workers, json_schema_input_type=_AtLeastOne | WorkerRange)]
"""Actors of a stage: a number, or `{min: 2, max: 16}`."""


def fewest(workers: int | WorkerRange) -> int:
    """Return how many actors there are at least."""
    return workers if isinstance(workers, int) else workers.min


def most(workers: int | WorkerRange) -> int:
    """Return how many actors there are at most."""
    return workers if isinstance(workers, int) else workers.max

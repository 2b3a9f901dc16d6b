"""Shared by `classifier` and `reward_model`: several sequence classification models that judge one candidate.

Parameters are checked here, on the node that reads the config; models are loaded at the first candidate, on the
scoring worker, and stay there.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rsft_cluster.constraints.base import Candidate, Verdict
from rsft_cluster.errors import ConfigError

Combine = Literal["mean", "min", "votes"]
Reads = Literal["completion", "conversation"]
Truncate = Literal["never", "left"]
Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]
Names = str | Annotated[list[str], Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Tokens = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class ModelSettings:
    """One model, and how a constraint uses it."""

    constraint: str
    model: str
    revision: str | None
    reads: Reads
    truncate: Truncate
    device: Device
    dtype: Dtype
    batch_tokens: int


class Ensemble:
    """Models that are loaded at their first use. One that cannot be loaded is not tried again."""

    def __init__(self, settings: Sequence[ModelSettings]) -> None:
        self._settings = settings
        self._models: list[Any] = []
        self._failure: ConfigError | None = None

    def models(self) -> list[Any]:
        """Return the models (`SequenceModel`); raises ConfigError where one cannot be loaded."""
        if self._failure is not None:
            raise self._failure
        if not self._models:
            from rsft_cluster.constraints.models.sequence_models import SequenceModel  # noqa: PLC0415 an engine

            try:
                self._models = [SequenceModel(settings) for settings in self._settings]
            except ConfigError as error:
                self._failure = error
                raise
        return self._models

    def logits(self, candidates: Sequence[Candidate]) -> list[list[list[float]] | ValueError]:
        """Return for each candidate the logits of every model, or the error of a model that cannot read it."""
        rows = [self._encoded(candidate) for candidate in candidates]
        readable = [i for i, row in enumerate(rows) if not isinstance(row, ValueError)]
        columns: dict[int, list[list[float]]] = {i: [] for i in readable}
        for k, model in enumerate(self.models()):
            for i, logits in zip(readable, model.logits([rows[i][k] for i in readable]), strict=True):
                columns[i].append(logits)
        return [row if isinstance(row, ValueError) else columns[i] for i, row in enumerate(rows)]

    def _encoded(self, candidate: Candidate) -> Any:
        try:
            return [model.encode(candidate) for model in self.models()]
        except ConfigError:
            raise
        except ValueError as error:
            return error


def settings_of(constraint: str, model: Names, revision: Any, **shared: Any) -> list[ModelSettings]:
    """Return the settings of each model; raises ConfigError where a folder is not one of a model in safetensors."""
    models = as_list(model)
    revisions = each(constraint, "revision", revision, len(models))
    for name in models:
        _check_model(constraint, name)
    return [ModelSettings(constraint, m, r, **shared) for m, r in zip(models, revisions, strict=True)]


def as_list(names: Names) -> list[str]:
    """Return one name, or several, as a list."""
    return [names] if isinstance(names, str) else list(names)


def each(constraint: str, parameter: str, value: Any, num_models: int) -> list[Any]:
    """Return a parameter's value for every model: one for all, or a list with one each."""
    if not isinstance(value, list):
        return [value] * num_models
    if len(value) != num_models:
        raise ConfigError(
            f"{constraint}: {parameter} has {len(value)} values, expected one or {num_models}, one a model"
        )
    return value


def labels_of(folder: str) -> list[str] | None:
    """Return the labels that the config of a local model names; None for a model of the hub."""
    path = Path(folder, "config.json")
    if not path.is_file():
        return None
    named: dict[str, str] = json.loads(path.read_text(encoding="utf-8")).get("id2label") or {}
    return [named[i] for i in sorted(named, key=int)] or ["LABEL_0", "LABEL_1"]


def combined_verdict(scores: Sequence[float], combine: Combine, at_least: float, reason: str) -> Verdict:
    """Return one verdict from a score of each model: their mean, their minimum, or the share that reach `at_least`.

    With `votes` more than half of the models have to reach it.
    """
    if combine == "votes":
        score = sum(score >= at_least for score in scores) / len(scores)
        return Verdict(score, score > 0.5, f"{reason}: {score:.0%} of {len(scores)} models reach {at_least:g}")
    score = min(scores) if combine == "min" else sum(scores) / len(scores)
    named = f"{combine} score" if len(scores) > 1 else "score"
    relation = "at least" if score >= at_least else "below"
    return Verdict(score, score >= at_least, f"{reason}: {named} {score:.4g}, {relation} {at_least:g}")


def _check_model(constraint: str, model: str) -> None:
    folder = Path(model)
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith("."):
            raise ConfigError(f"{constraint}: model {model!r} is no folder here, expected one or a hub id")
        return
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ConfigError(f"{constraint}: model {model!r} holds no config.json with *.safetensors; no other is loaded")

"""`RewardModel`: reward models score the completion as an answer to its prompt.

A reward model is a sequence classification model with one output, trained on comparisons of answers (Christiano et
al. 2017). Its raw reward r has no scale of its own, so the score is sigmoid((r - center) / scale): with center 0 and
scale 1 the probability, under the model of Bradley and Terry (1952), that the completion is preferred to one of
reward 0. Several models make an ensemble; their minimum guards against a weakness of a single one.
"""

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from rsft_cluster.constraints.base import Candidate, Verdict
from rsft_cluster.constraints.models.ensembles import (
    Combine,
    Device,
    Dtype,
    Ensemble,
    Names,
    Share,
    Tokens,
    Truncate,
    combined_verdict,
    each,
    labels_of,
    settings_of,
)
from rsft_cluster.errors import ConfigError

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class RewardModel:
    """Score completions by the rewards of one or more models; pass those whose score is at least `at_least`.

    `model` is a folder or hub id, or a list of them; `revision`, `center` and `scale` are one for all, or one each.
    `combine` makes one score of several: their mean, their min, or the share of models that vote for the candidate.
    Prompt and completion go through the tokenizer's chat template, or else to the model as a pair of texts. What is
    too long for the model is an error, unless `truncate: left` cuts the beginning of the prompt.
    """

    isolated = False

    def __init__(  # noqa: PLR0913 each is a key of the config
        self,
        *,
        model: Names,
        revision: str | list[str | None] | None = None,
        center: Finite | list[Finite] = 0.0,
        scale: Positive | list[Positive] = 1.0,
        at_least: Share = 0.5,
        combine: Combine = "mean",
        truncate: Truncate = "never",
        device: Device = "auto",
        dtype: Dtype = "float32",
        batch_tokens: Tokens = 16384,
    ) -> None:
        settings = settings_of(
            "reward_model", model, revision, reads="conversation", truncate=truncate, device=device, dtype=dtype,
            batch_tokens=batch_tokens,
        )  # fmt: skip
        self._centers = each("reward_model", "center", center, len(settings))
        self._scales = each("reward_model", "scale", scale, len(settings))
        self._names = [model_settings.model for model_settings in settings]
        for name in self._names:
            _check_outputs(name, labels_of(name))
        self._at_least = at_least
        self._combine: Combine = combine
        self._ensemble = Ensemble(settings)

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict | Exception]:
        """Return one verdict per candidate, with the raw rewards as reason, or the error of a model."""
        for name, model in zip(self._names, self._ensemble.models(), strict=True):
            _check_outputs(name, model.labels)
        return [
            row if isinstance(row, Exception) else self._verdict([logits[0] for logits in row])
            for row in self._ensemble.logits(candidates)
        ]

    def _verdict(self, rewards: Sequence[float]) -> Verdict | Exception:
        for name, reward in zip(self._names, rewards, strict=True):
            if not math.isfinite(reward):
                return ValueError(f"the reward of {name} is {reward}")
        shown = ", ".join(f"{reward:.4g}" for reward in rewards)
        scores = [
            _sigmoid((reward - center) / scale)
            for reward, center, scale in zip(rewards, self._centers, self._scales, strict=True)
        ]
        return combined_verdict(scores, self._combine, self._at_least, f"reward {shown}")


def _check_outputs(model: str, labels: Sequence[str] | None) -> None:
    if labels is not None and len(labels) != 1:
        raise ConfigError(f"reward_model: model {model!r} has {len(labels)} outputs, expected 1; is it a classifier?")


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))

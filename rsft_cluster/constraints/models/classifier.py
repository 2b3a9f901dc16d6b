"""`Classifier`: sequence classification models judge the completion: its tone, its topic, whether it is toxic.

The score is the probability that the models give to the labels that are wanted, or to none of those that are not:
the softmax of their logits, or for a model of several labels at once (multi_label_classification) the sigmoid of each.
"""

import math
from collections.abc import Sequence

from rsft_cluster.constraints.base import Candidate, Verdict
from rsft_cluster.constraints.models.ensembles import (
    Combine,
    Device,
    Dtype,
    Ensemble,
    Names,
    Reads,
    Share,
    Tokens,
    Truncate,
    as_list,
    combined_verdict,
    labels_of,
    settings_of,
)
from rsft_cluster.errors import ConfigError


class Classifier:
    """Pass completions that have one of the `wanted` labels, or none of the `unwanted`, by at least `threshold`.

    `model` is a folder or hub id, or a list of them, which all know the labels; `combine` makes one probability of
    several: their mean, their min, or the share of models that vote for the candidate. The models read the
    `completion` only, or the whole `conversation`: through the tokenizer's chat template, or else as a pair of texts.
    What is too long is an error, unless `truncate: left` cuts the beginning.
    """

    isolated = False

    def __init__(  # noqa: PLR0913 each is a key of the config
        self,
        *,
        model: Names,
        wanted: Names | None = None,
        unwanted: Names | None = None,
        threshold: Share = 0.5,
        combine: Combine = "mean",
        revision: str | list[str | None] | None = None,
        reads: Reads = "completion",
        truncate: Truncate = "never",
        device: Device = "auto",
        dtype: Dtype = "float32",
        batch_tokens: Tokens = 16384,
    ) -> None:
        if (wanted is None) == (unwanted is None):
            raise ConfigError("classifier: give labels as wanted or as unwanted, one of the two")
        self._labels = as_list(wanted if wanted is not None else unwanted or [])
        self._are_wanted = wanted is not None
        settings = settings_of(
            "classifier", model, revision, reads=reads, truncate=truncate, device=device, dtype=dtype,
            batch_tokens=batch_tokens,
        )  # fmt: skip
        self._names = [model_settings.model for model_settings in settings]
        for name in self._names:
            if (known := labels_of(name)) is not None:
                self._label_indices(name, known)
        self._threshold = threshold
        self._combine: Combine = combine
        self._ensemble = Ensemble(settings)

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict | Exception]:
        """Return one verdict per candidate, with the probabilities as reason, or the error of a model."""
        models = self._ensemble.models()
        indices = [self._label_indices(name, model.labels) for name, model in zip(self._names, models, strict=True)]
        multi = [model.multi_label for model in models]
        return [
            logits if isinstance(logits, Exception) else self._verdict(logits, indices, multi)
            for logits in self._ensemble.logits(candidates)
        ]

    def _verdict(
        self, logits: Sequence[Sequence[float]], indices: Sequence[Sequence[int]], multi: Sequence[bool]
    ) -> Verdict | Exception:
        for name, row in zip(self._names, logits, strict=True):
            if not all(map(math.isfinite, row)):
                return ValueError(f"the logits of {name} are not finite: {row}")
        probabilities = [_probability(*arguments) for arguments in zip(logits, indices, multi, strict=True)]
        scores = probabilities if self._are_wanted else [1 - p for p in probabilities]
        shown = ", ".join(f"{p:.4g}" for p in probabilities)
        return combined_verdict(scores, self._combine, self._threshold, f"P({' or '.join(self._labels)}) = {shown}")

    def _label_indices(self, model: str, known: Sequence[str]) -> list[int]:
        unknown = [label for label in self._labels if label not in known]
        if unknown:
            parameter = "wanted" if self._are_wanted else "unwanted"
            raise ConfigError(f"classifier: {parameter} label {unknown[0]!r} is none of {model!r}: {', '.join(known)}")
        return [known.index(label) for label in self._labels]


def _probability(logits: Sequence[float], indices: Sequence[int], multi_label: bool) -> float:  # noqa: FBT001 of one model
    """Return the probability of any of the labels with these indices."""
    if multi_label or len(logits) == 1:
        return 1 - math.prod(1 / (1 + math.exp(min(700.0, logits[i]))) for i in indices)
    highest = max(logits)
    weights = [math.exp(logit - highest) for logit in logits]
    return min(1.0, sum(weights[i] for i in set(indices)) / sum(weights))

"""A sequence classification model on one device: the tokens of a candidate, and logits in batches.

This module imports torch and transformers: it is loaded on the scoring worker, at the first candidate. Weights come
only from safetensors, no code comes with a model, and one that lacks weights (a language model without the head that
was trained) is refused, where transformers would draw them at random.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rsft_cluster.constraints.base import Candidate
from rsft_cluster.constraints.models.ensembles import ModelSettings
from rsft_cluster.errors import ConfigError

_NO_LIMIT = 10**6
"""Tokenizers that set no limit say 10^30."""


class SequenceModel:
    """A model with its tokenizer."""

    def __init__(self, settings: ModelSettings) -> None:
        """Load the model; raises ConfigError naming it where it cannot be loaded."""
        self._settings = settings
        cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
        self._device = "cuda" if cuda else "cpu"
        torch.set_float32_matmul_precision("highest")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(settings.model, revision=settings.revision)
            self._model: Any = _load(settings).to(self._device)
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise ConfigError(f"{settings.constraint}: model {settings.model} cannot be loaded: {error}") from error
        self._tokenizer.truncation_side = "left"
        config: Any = self._model.config
        self.labels: tuple[str, ...] = tuple(config.id2label[i] for i in range(config.num_labels))
        self.multi_label: bool = config.problem_type == "multi_label_classification"
        self._pad: int | None = config.get_text_config().pad_token_id
        self._num_tokens = self._limit(config)

    def encode(self, candidate: Candidate) -> list[int]:
        """Return the token ids of a candidate; raises ValueError where they do not fit the model."""
        if self._settings.reads == "completion":
            texts: tuple[str, ...] = (candidate.completion,)
        elif self._tokenizer.chat_template is None or any(m.role == "raw" for m in candidate.messages):
            texts = ("\n".join(message.content for message in candidate.messages), candidate.completion)
        else:
            return self._encode_chat(candidate)
        return self._ids(*texts, add_special_tokens=True)

    def logits(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the logits of each row of token ids, in the same order, whatever is computed together."""
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), rows[i]))
        logits: dict[int, list[float]] = {}
        while order:
            num_rows = self._num_rows(len(rows[order[0]]))
            batch, order = order[:num_rows], order[num_rows:]
            logits |= zip(batch, self._forward([rows[i] for i in batch]), strict=True)
        return [logits[i] for i in range(len(rows))]

    def _encode_chat(self, candidate: Candidate) -> list[int]:
        conversation = [{"role": m.role, "content": m.content} for m in candidate.messages]
        conversation.append({"role": "assistant", "content": candidate.completion})
        try:
            text = self._tokenizer.apply_chat_template(conversation, tokenize=False)
        except TemplateError as error:
            raise ValueError(f"the chat template of {self._settings.model} refuses these messages: {error}") from error
        return self._ids(text, add_special_tokens=False)

    def _ids(self, *texts: str, add_special_tokens: bool) -> list[int]:
        """Return token ids; a pair is truncated in its first text, so that the completion is read whole."""
        truncates = self._settings.truncate == "left" and self._num_tokens is not None
        ids = self._tokenizer(
            *texts,
            add_special_tokens=add_special_tokens,
            truncation=("only_first" if truncates else False),
            max_length=self._num_tokens if truncates else None,
            verbose=False,
        )["input_ids"]
        if self._num_tokens is not None and len(ids) > self._num_tokens:
            raise ValueError(
                f"{len(ids)} tokens, and {self._settings.model} reads {self._num_tokens}; expected shorter candidates, "
                "another model, or truncate: left"
            )
        if not ids:
            raise ValueError(f"the candidate has no token for {self._settings.model} to read")
        return ids

    def _limit(self, config: Any) -> int | None:
        """Return how many tokens the model reads; None where nothing sets a limit."""
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and config.model_type in ("roberta", "xlm-roberta", "camembert"):
            positions -= config.pad_token_id + 1  # their positions begin after the pad token's
        limits = [n for n in (positions, self._tokenizer.model_max_length) if n is not None and 0 < n < _NO_LIMIT]
        return int(min(limits)) if limits else None

    def _num_rows(self, longest: int) -> int:
        # Without a pad token transformers cannot find the ends of several rows.
        return 1 if self._pad is None else max(1, self._settings.batch_tokens // longest)

    def _forward(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        try:
            return self._forward_together(rows)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(rows) // 2
        return self._forward(rows[:half]) + self._forward(rows[half:])

    def _forward_together(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[self._pad or 0] * (longest - len(row))] for row in rows], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self._device)
        with torch.inference_mode():
            return self._model(input_ids=ids, attention_mask=mask).logits.float().tolist()


def _load(settings: ModelSettings) -> Any:
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        settings.model,
        revision=settings.revision,
        dtype=getattr(torch, settings.dtype),
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"it lacks weights ({', '.join(missing[:3])}); it was not trained to score texts")
    model.config.use_cache = False
    return model.eval()

"""The loss of a step and its gradients, over all workers: see `terms/` for what it is made of."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from ray.train.torch import get_device
from torch import Tensor
from transformers import PreTrainedModel

from rsft_cluster.config import TrainingConfig
from rsft_cluster.training.batches import Batch, collate
from rsft_cluster.training.deepspeed_engine import logits_of
from rsft_cluster.training.losses import learned, weighted_loss
from rsft_cluster.training.noise import noisy_embeddings
from rsft_cluster.training.sources import MicroBatch, Source
from rsft_cluster.training.terms.configured import terms_of


class Objective:
    """What the steps of a training minimise."""

    def __init__(self, config: TrainingConfig, base: PreTrainedModel | None) -> None:
        """`base` is the policy of round 0, where a term needs it."""
        self._config = config
        self._base = base
        self._weights = {term.name: term.weight for term in terms_of(config)}

    def loss(self, values: Mapping[str, float]) -> float:
        """Return the loss that the values of terms add up to."""
        return sum(self._weights[name] * value for name, value in values.items())

    def backward(self, engine: DeepSpeedEngine, sources: Sequence[Source], step: int) -> dict[str, float]:
        """Accumulate this worker's gradients of a step; return the terms over all workers, unweighted, 0 where off."""
        share = {"rank": engine.global_rank, "world_size": engine.world_size, "size": self._config.micro_batch_size}
        micro_batches = [micro for source in sources for micro in source.micro_batches(step, **share)]
        device = get_device()
        terms = {name: torch.zeros((), dtype=torch.float64, device=device) for name in self._weights}
        for number, micro in enumerate(micro_batches, 1):
            engine.set_gradient_accumulation_boundary(number == len(micro_batches))
            rows = collate(micro.rows).to(device)
            values = self._values(engine, micro, rows)
            parts = {name: weighted_loss(v, rows.weights, micro.denominator) for name, v in values.items()}
            loss = torch.stack([self._weights[name] * part for name, part in parts.items()]).sum()
            # DeepSpeed averages gradients over workers; the loss is a sum over them.
            engine.backward(loss * engine.world_size, scale_wrt_gas=False)
            for name, part in parts.items():
                terms[name] += part.detach()
            if number < len(micro_batches):
                engine.step()  # counts the forward pass; the optimizer waits for the last one
        whole = torch.stack(list(terms.values()))
        dist.all_reduce(whole)
        return dict(zip(terms, whole.tolist(), strict=True))

    def _values(self, engine: DeepSpeedEngine, micro: MicroBatch, rows: Batch) -> dict[str, Tensor]:
        """Return the values of the terms that are over a micro batch, by row."""
        with self._noise(engine.module, micro, rows):
            at = learned(logits_of(engine, rows), rows.labels)
        base = None
        if self._base is not None and any(term.needs_base for term in micro.terms):
            with torch.no_grad():
                base = learned(logits_of(self._base, rows), rows.labels)
        return {term.name: term.values(at, rows, base) for term in micro.terms}

    @contextmanager
    def _noise(self, model: Any, micro: MicroBatch, rows: Batch) -> Iterator[None]:
        """Disturb what is learned; what is unlearned, and its probability, are those of the policy as it is."""
        if not self._config.neftune_alpha or any(term.learns_from_judged for term in micro.terms):
            yield
            return
        lengths = rows.attention_mask.sum(1)
        with noisy_embeddings(model.get_input_embeddings(), lengths, self._config.neftune_alpha):
            yield

"""The loss of a step and its gradients, over all workers: see `losses.py` for what it is."""

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
from rsft_cluster.training.losses import (
    completion_kl,
    completion_nll,
    completion_unlikelihood,
    learned,
    tapered_logprob,
    weighted_loss,
)
from rsft_cluster.training.noise import noisy_embeddings
from rsft_cluster.training.sources import Kind, Source


class Objective:
    """What the steps of a training minimise."""

    def __init__(self, config: TrainingConfig, base: PreTrainedModel | None) -> None:
        """`base` is the policy of round 0, where there is a KL to it."""
        self._config = config
        self._base = base
        self._weights = {
            "nll": 1.0,
            "rejection": config.rejection.weight if config.rejection else 0.0,
            "unlikelihood": config.unlikelihood.weight if config.unlikelihood else 0.0,
            "kl": config.kl_weight,
        }

    def loss(self, terms: Mapping[str, float]) -> float:
        """Return the loss that terms add up to."""
        return sum(self._weights[name] * value for name, value in terms.items())

    def backward(self, engine: DeepSpeedEngine, sources: Sequence[Source], step: int) -> dict[str, float]:
        """Accumulate this worker's gradients of a step; return the terms over all workers, unweighted, 0 where off."""
        rank, world_size, size = engine.global_rank, engine.world_size, self._config.micro_batch_size
        passes = [p for s in sources for p in s.passes(step, rank=rank, world_size=world_size, size=size)]
        device = get_device()
        terms = {name: torch.zeros((), dtype=torch.float64, device=device) for name in self._weights}
        for number, one in enumerate(passes, 1):
            rows = collate(one.rows).to(device)
            values = self._values(engine, one.kind, rows)
            parts = {name: weighted_loss(v, rows.weights, one.denominator) for name, v in values.items()}
            loss = torch.stack([self._weights[name] * part for name, part in parts.items()]).sum()
            # DeepSpeed averages gradients over workers; the loss is a sum over them.
            engine.backward(loss * world_size, scale_wrt_gas=False)
            for name, part in parts.items():
                terms[name] += part.detach()
            if number < len(passes):
                engine.step()  # counts the forward pass; the optimizer waits for the last one
        whole = torch.stack(list(terms.values()))
        dist.all_reduce(whole)
        return dict(zip(terms, whole.tolist(), strict=True))

    def _values(self, engine: DeepSpeedEngine, kind: Kind, rows: Batch) -> dict[str, Tensor]:
        """Return what each term is over, by row."""
        if kind != "accepted":
            at = learned(logits_of(engine, rows), rows.labels)
            if kind == "rejected":
                return {"rejection": tapered_logprob(at, rows.logprobs)}
            return {"unlikelihood": completion_unlikelihood(at)}
        with self._noise(engine.module, rows):
            at = learned(logits_of(engine, rows), rows.labels)
        values = {"nll": completion_nll(at)}
        if self._base is not None:
            with torch.no_grad():
                other = learned(logits_of(self._base, rows), rows.labels)
            values["kl"] = completion_kl(at, other)
        return values

    @contextmanager
    def _noise(self, model: Any, rows: Batch) -> Iterator[None]:
        """Disturb what is learned; what is unlearned, and its probability, are those of the policy as it is."""
        if not self._config.neftune_alpha:
            yield
            return
        lengths = rows.attention_mask.sum(1)
        with noisy_embeddings(model.get_input_embeddings(), lengths, self._config.neftune_alpha):
            yield

"""What a training learns from: accepted and replayed examples, rejected candidates, fatal tokens, each in batches."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from rsft_cluster.errors import NothingAcceptedError
from rsft_cluster.policies.tokens import decode, load_tokenizer
from rsft_cluster.training.batches import (
    DataOrder,
    Example,
    denominator,
    examples_digest,
    load_examples,
    load_replay,
    micro_batches,
    num_steps,
)
from rsft_cluster.training.job import TrainingJob
from rsft_cluster.training.rejected import fatal_examples, load_rejected

Kind = Literal["accepted", "rejected", "fatal"]


@dataclass(frozen=True)
class Pass:
    """What one worker puts through the policy at once, for one kind of loss."""

    kind: Kind
    rows: list[Example]
    denominator: float
    """Of the whole batch, over all passes and workers."""


@dataclass(frozen=True)
class Source:
    """Examples of one kind, and which of them each step sees."""

    kind: Kind
    examples: list[Example]
    order: DataOrder

    @classmethod
    def of(cls, kind: Kind, examples: list[Example], *, batch_size: int, seed: int) -> "Source":
        """Return a source of batches of that size, or of all examples where there are fewer."""
        return cls(kind, examples, DataOrder(len(examples), min(batch_size, len(examples)), seed))

    def batch(self, step: int) -> list[Example]:
        """Return the batch of a step, counted from 0, over all workers."""
        return [self.examples[i] for i in self.order.batch_indices(step)]

    def num_passes(self, *, world_size: int, size: int) -> int:
        """Return the forward passes of each worker in a step."""
        return math.ceil(math.ceil(self.order.batch_size / world_size) / size)

    def passes(self, step: int, *, rank: int, world_size: int, size: int) -> Iterator[Pass]:
        """Yield a worker's passes in a step; one without rows of its own gets one of weight 0, to keep step."""
        batch = self.batch(step)
        total, idle = denominator(batch), replace(batch[0], weight=0.0)
        for places in micro_batches([len(e) for e in batch], rank=rank, world_size=world_size, size=size):
            yield Pass(self.kind, [batch[i] for i in places] or [idle], total)


@dataclass(frozen=True)
class Material:
    """All that a training learns from."""

    sources: tuple[Source, ...]
    """The accepted examples first; those of rejected candidates where their terms are on and there are any."""
    num_replayed: int
    num_steps: int

    @property
    def accepted(self) -> Source:
        """The examples to learn, replayed ones among them."""
        return self.sources[0]

    @property
    def examples(self) -> list[Example]:
        """The examples of all sources."""
        return [e for source in self.sources for e in source.examples]

    @property
    def digest(self) -> str:
        """A digest of the examples of all sources, in their order."""
        return examples_digest(self.examples)


def read_material(job: TrainingJob) -> Material:
    """Read what a job learns from.

    Raises ConfigError for what cannot be used, StoreError for files that cannot be read or do not belong together, and
    NothingAcceptedError where there is nothing to learn.
    """
    config = job.config
    examples = load_examples(job.examples, per_prompt=config.per_prompt)
    replayed = load_replay(job.replay, job.policy, weight=config.replay_weight) if job.replay else []
    examples += replayed
    if not examples:
        raise NothingAcceptedError(f"{job.name}: there is no example to learn from")
    accepted = Source.of("accepted", examples, batch_size=config.batch_size, seed=job.seed)
    return Material((accepted, *_unlearned(job)), len(replayed), num_steps(config, len(examples)))


def _unlearned(job: TrainingJob) -> Iterator[Source]:
    config = job.config
    if config.rejection is None and config.unlikelihood is None:
        return
    rejected = load_rejected(job.judged, per_prompt=config.per_prompt)
    if config.rejection is not None and rejected:
        examples = [r.example for r in rejected]
        yield Source.of("rejected", examples, batch_size=config.rejection.batch_size, seed=job.seed)
    if config.unlikelihood is not None:
        fatal = fatal_examples(rejected, partial(decode, load_tokenizer(job.policy)))
        if fatal:
            yield Source.of("fatal", fatal, batch_size=config.unlikelihood.batch_size, seed=job.seed)

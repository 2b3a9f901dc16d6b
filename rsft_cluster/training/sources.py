"""What a training learns from: accepted and replayed examples, rejected candidates, fatal tokens, each in batches."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from rsft_cluster.errors import NothingAcceptedError
from rsft_cluster.policies.tokens import decode, load_tokenizer
from rsft_cluster.training.batches import (
    DataOrder,
    Example,
    denominator,
    examples_digest,
    load_examples,
    load_replay,
    num_steps,
)
from rsft_cluster.training.dealing import deal
from rsft_cluster.training.ending import Ending
from rsft_cluster.training.job import TrainingJob
from rsft_cluster.training.rejected import Decode, JudgedCandidates
from rsft_cluster.training.terms.base import Term
from rsft_cluster.training.terms.configured import active_terms


@dataclass(frozen=True)
class MicroBatch:
    """What one worker puts through the policy at once."""

    terms: tuple[Term, ...]
    """The terms that are over it."""
    rows: list[Example]
    denominator: float
    """Of the whole batch, over all micro batches and workers."""


@dataclass(frozen=True)
class Source:
    """Examples that some terms are over, and which of them each step sees."""

    terms: tuple[Term, ...]
    examples: list[Example]
    order: DataOrder

    @classmethod
    def of(cls, terms: tuple[Term, ...], examples: list[Example], *, batch_size: int, seed: int) -> "Source":
        """Return a source of batches of that size, or of all examples where there are fewer."""
        return cls(terms, examples, DataOrder(len(examples), min(batch_size, len(examples)), seed))

    def batch(self, step: int) -> list[Example]:
        """Return the batch of a step, counted from 0, over all workers."""
        return [self.examples[i] for i in self.order.batch_indices(step)]

    def micro_batches(self, step: int, *, rank: int, world_size: int, size: int) -> Iterator[MicroBatch]:
        """Yield a worker's micro batches in a step; one without rows of its own gets one of weight 0, to keep step."""
        batch = self.batch(step)
        total, idle = denominator(batch), replace(min(batch, key=len), weight=0.0)
        for places in deal([len(e) for e in batch], rank=rank, world_size=world_size, size=size):
            yield MicroBatch(self.terms, [batch[i] for i in places] or [idle], total)


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
    ending = partial(Ending.of, job.policy) if config.end_stopped else None
    examples = load_examples(job.examples, per_prompt=config.per_prompt, ending=ending)
    replayed = load_replay(job.replay, job.policy, weight=config.replay_weight) if job.replay else []
    examples += replayed
    if not examples:
        raise NothingAcceptedError(f"{job.name}: there is no example to learn from")
    own = tuple(term for term in active_terms(config) if not term.learns_from_judged)
    accepted = Source.of(own, examples, batch_size=config.batch_size, seed=job.seed)
    return Material((accepted, *_judged(job)), len(replayed), num_steps(config, len(examples)))


def _judged(job: TrainingJob) -> Iterator[Source]:
    """Yield the sources of the terms that learn from judged candidates, where there are any."""

    def decoder() -> Decode:
        return partial(decode, load_tokenizer(job.policy))

    candidates = JudgedCandidates(job.judged, per_prompt=job.config.per_prompt, decode=decoder)
    for term in active_terms(job.config) if job.judged else ():
        if term.learns_from_judged and (examples := list(term.examples(candidates))):
            batch_size = term.batch_size or job.config.batch_size
            yield Source.of((term,), examples, batch_size=batch_size, seed=job.seed)

"""What every training worker does: load the policy into DeepSpeed, take the steps, hand out the model.

A job in, rank 0's outcome back. All workers run this together; an error that all of them see alike is returned. What
one of them may see alone is raised, so that the others do not wait for it.
"""

import hashlib
import logging
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from transformers import PretrainedConfig
from transformers.utils.logging import disable_progress_bar

from rsft_cluster.errors import ConfigError, DivergedError, NothingAcceptedError, RsftError, StageError
from rsft_cluster.metrics.meter import LOSS, STEP, TRAINING_TOKENS
from rsft_cluster.policies.references import localised
from rsft_cluster.policies.tokens import num_context_tokens
from rsft_cluster.training.averaging import WeightAverage
from rsft_cluster.training.batches import Example
from rsft_cluster.training.checkpoints import (
    Progress,
    export_model,
    fingerprint,
    load_progress,
    save_progress,
    state_layout,
)
from rsft_cluster.training.deepspeed_engine import apply_gradients, load_engine, load_frozen
from rsft_cluster.training.failures import lasting
from rsft_cluster.training.job import TELL_INTERVAL_S, StepMetrics, TrainingJob, TrainingOutcome, tell
from rsft_cluster.training.losses import check_loss, learning_rate
from rsft_cluster.training.masters import full_weights
from rsft_cluster.training.objective import Objective
from rsft_cluster.training.sources import Material, read_material
from rsft_cluster.training.terms.configured import active_terms

MAX_METRICS = 500
"""Steps recorded at most, evenly spaced: enough for any plot, small in every checkpoint."""


@dataclass
class _Clock:
    """Wall time by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def train(job: TrainingJob) -> TrainingOutcome | RsftError:
    """Run one worker's part of a training and return the outcome, or the error that all workers agree on.

    Raises an error that this worker may be alone with: as a StageError where no attempt would do better.
    """
    job = replace(job, policy=localised(job.policy), base=job.base and localised(job.base))
    try:
        return _train(job)
    except (ConfigError, StageError) as error:
        return error
    except Exception as error:
        told = lasting(error, job.config)
        if told is None:
            raise
        raise told from error


def _train(job: TrainingJob) -> TrainingOutcome:
    clock = _Clock()
    _settle(job)
    with clock.phase("load_examples"):
        material = _load_material(job)
    with clock.phase("load_model"):
        engine, objective = _load_model(job, material)
        average = WeightAverage(job.config.ema_decay) if job.config.ema_decay and engine.global_rank == 0 else None
    with clock.phase("resume"):
        identity = fingerprint(job, material.digest)
        fresh = Progress(0, engine.world_size, identity, state_layout(job.config), math.nan, math.nan)
        progress = load_progress(engine, fresh, average)
        resumed_at = progress.step
    told = time.monotonic()
    while progress.step < material.num_steps:
        with clock.phase("steps"):
            progress = _step(engine, objective, job, material, progress)
            if job.config.ema_decay:
                _average(engine, average, step=progress.step)
        if engine.global_rank == 0:
            _meter(job, material, progress)
        if engine.global_rank == 0 and time.monotonic() - told >= TELL_INTERVAL_S:
            told = time.monotonic()
            tell(job, step=progress.step, num_steps=material.num_steps, loss=progress.last_loss)
        if progress.step % job.config.checkpoint_every == 0 and progress.step < material.num_steps:
            with clock.phase("checkpoints"):
                save_progress(engine, progress, average)
    if engine.global_steps != material.num_steps:
        raise StageError(f"{job.name}: {engine.global_steps} steps were taken, {material.num_steps} planned")
    with clock.phase("export"):
        export_model(engine, job, average)
    return TrainingOutcome(
        num_examples=len(material.accepted.examples) - material.num_replayed,
        num_replayed=material.num_replayed,
        num_steps=progress.step,
        first_loss=progress.first_loss,
        final_loss=progress.last_loss,
        num_workers=progress.world_size,
        zero_stage=job.config.zero_stage,
        resumed_at=resumed_at,
        metrics=progress.metrics,
        phases=clock.seconds,
    )


def _average(engine: DeepSpeedEngine, average: WeightAverage | None, *, step: int) -> None:
    """Take the weights after a step into the mean, which one worker has; all of them hand it their shards."""
    for name, weight in full_weights(engine):
        if average is not None:
            average.add([(name, weight)], step=step)


def _meter(job: TrainingJob, material: Material, progress: Progress) -> None:
    learned = material.accepted.batch(progress.step - 1)
    job.meter.add(TRAINING_TOKENS, sum(len(example.completion_ids) for example in learned))
    job.meter.put(LOSS, progress.last_loss)
    job.meter.put(STEP, progress.step)


def _settle(job: TrainingJob) -> None:
    """Make the engines quiet and independent of a compiler, and keep to the threads that were asked for."""
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train sets it to INFO and reports every checkpoint
    warnings.simplefilter("ignore", FutureWarning)  # between torch, transformers and DeepSpeed, every step
    disable_progress_bar()
    # Without this DeepSpeed compiles a shared-memory operator for CPU workers at the first start: it needs
    # g++ and ninja, takes minutes, and a kill in the middle leaves a lock on which every later start hangs.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if job.config.num_gpus == 0:
        torch.set_num_threads(job.config.threads)


def _load_material(job: TrainingJob) -> Material:
    """Load all that is learned; what one worker cannot use is an error of all of them."""
    material, error = None, None
    try:
        material = read_material(job)
    except (ConfigError, NothingAcceptedError) as found:
        error = found
    errors: list[RsftError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    for found in errors:
        if found is not None:
            raise found
    assert material is not None
    return material


def _load_model(job: TrainingJob, material: Material) -> tuple[DeepSpeedEngine, Objective]:
    config = job.config
    deepspeed.init_distributed(verbose=False)
    engine = load_engine(job.policy, config)
    model: Any = engine.module
    _check_fits(model.config, material.examples)
    needing = [term.key for term in active_terms(config) if term.needs_base]
    if needing and job.base is None:
        raise ConfigError(f"{needing[0]}: the job names no policy of round 0 to keep close to")
    return engine, Objective(config, load_frozen(job.base) if needing and job.base else None)


def _check_fits(config: PretrainedConfig, examples: list[Example]) -> None:
    longest = max(len(e) for e in examples)
    limit = num_context_tokens(config)
    if limit is not None and longest > limit:
        raise ConfigError(
            f"an example has {longest} tokens, but the policy has {limit} positions; lower "
            "sampling.max_tokens or leave out long prompts"
        )
    largest = max(int(max(e.prompt_ids.max(initial=0), e.completion_ids.max())) for e in examples)
    vocabulary = config.get_text_config(decoder=True).vocab_size
    if largest >= vocabulary:
        raise ConfigError(
            f"an example holds the token id {largest}, but the policy has {vocabulary} tokens: it was sampled "
            "from another model"
        )


def _step(
    engine: DeepSpeedEngine, objective: Objective, job: TrainingJob, material: Material, progress: Progress
) -> Progress:
    """Take one optimizer step and return the progress after it."""
    config, step = job.config, progress.step
    rate = learning_rate(config, step, material.num_steps)
    optimizer: Any = engine.optimizer
    for group in optimizer.param_groups:
        group["lr"] = rate
    _seed_step(job.seed, step, engine.global_rank)
    terms = objective.backward(engine, material.sources, step)
    loss = objective.loss(terms)
    first_nll = progress.metrics[0].terms["nll"] if step else terms["nll"]
    check_loss(loss, terms["nll"], step=step + 1, first_nll=first_nll, ratio=config.divergence_ratio)
    norm = apply_gradients(engine)
    if not math.isfinite(norm):
        raise DivergedError(f"step {step + 1}: the gradient norm is {norm}; lower training.learning_rate")
    metrics = progress.metrics
    if step % max(1, material.num_steps // MAX_METRICS) == 0 or step + 1 == material.num_steps:
        num_tokens = sum(len(e.completion_ids) for e in material.accepted.batch(step))
        metrics += (StepMetrics(step + 1, loss, terms, learning_rate=rate, grad_norm=norm, num_tokens=num_tokens),)
    first_loss = progress.first_loss if step else loss
    return replace(progress, step=step + 1, first_loss=first_loss, last_loss=loss, metrics=metrics)


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Make dropout and noise a function of the step and the worker, so that a resumed training repeats them."""
    key = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(key, "little") >> 1)

"""What every training worker does: load the policy into DeepSpeed, take the steps, hand out the model.

A job in, rank 0's outcome back. All workers run this together; an error that all of them see alike is
returned rather than raised, because Ray Train would answer an exception with another attempt.
"""

import hashlib
import inspect
import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from ray.train.torch import get_device
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations.deepspeed import HfDeepSpeedConfig
from transformers.utils.logging import disable_progress_bar

from rsft_cluster.config import TrainingConfig
from rsft_cluster.errors import ConfigError, DivergedError, NothingAcceptedError, RsftError, StageError
from rsft_cluster.generators.base import PolicySpec
from rsft_cluster.generators.encoding import num_context_tokens
from rsft_cluster.generators.loading import load_model
from rsft_cluster.policies import localised
from rsft_cluster.training.batches import (
    Batch,
    DataOrder,
    Example,
    collate,
    denominator,
    examples_digest,
    load_examples,
    load_replay,
    micro_batches,
    num_steps,
)
from rsft_cluster.training.checkpoints import Progress, export_model, fingerprint, load_progress, save_progress
from rsft_cluster.training.job import TELL_INTERVAL_S, StepMetrics, TrainingJob, TrainingOutcome, tell
from rsft_cluster.training.losses import check_loss, completion_nll, learning_rate, weighted_loss

MAX_METRICS = 500
"""Steps recorded at most, evenly spaced: enough for any plot, small in every checkpoint."""

BUCKET_ELEMENTS = 50_000_000
"""DeepSpeed allocates its communication buffers whole; its default of 5e8 elements takes 2 GB a worker."""

OWN_KEYS = {
    "train_batch_size": "training.batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.batch_size and micro_batch_size",
    "gradient_clipping": "training.max_grad_norm",
    "optimizer": "training.learning_rate, betas and weight_decay",
    "scheduler": "training.schedule",
    "fp16": "policy.dtype",
}
"""DeepSpeed options that have a key of their own here, which the loss and the schedule rely on."""


@dataclass
class _Clock:
    """Wall time by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


@dataclass(frozen=True)
class _Data:
    examples: list[Example]
    num_replayed: int
    order: DataOrder
    num_steps: int


def train(job: TrainingJob) -> TrainingOutcome | RsftError:
    """Run one worker's part of a training and return the outcome, or the error that all workers agree on."""
    job = replace(job, policy=localised(job.policy))
    try:
        return _train(job)
    except (ConfigError, StageError) as error:
        return error


def _train(job: TrainingJob) -> TrainingOutcome:
    clock = _Clock()
    _settle(job)
    with clock.phase("load_examples"):
        data = _load_data(job)
    with clock.phase("load_model"):
        engine = _load_engine(job, data.order.batch_size)
        model: Any = engine.module
        _check_fits(model.config, data.examples)
    with clock.phase("resume"):
        identity = fingerprint(job, examples_digest(data.examples))
        fresh = Progress(0, engine.world_size, identity, math.nan, math.nan)
        progress = load_progress(engine, identity) or fresh
        resumed_at = progress.step
    told = time.monotonic()
    while progress.step < data.num_steps:
        with clock.phase("steps"):
            progress = _step(engine, job, data, progress)
        if engine.global_rank == 0 and time.monotonic() - told >= TELL_INTERVAL_S:
            told = time.monotonic()
            tell(job, step=progress.step, num_steps=data.num_steps, loss=progress.last_loss)
        if progress.step % job.config.checkpoint_every == 0 and progress.step < data.num_steps:
            with clock.phase("checkpoints"):
                save_progress(engine, progress)
    if engine.global_steps != data.num_steps:
        raise StageError(f"{job.name}: {engine.global_steps} steps were taken, {data.num_steps} planned")
    with clock.phase("export"):
        export_model(engine, job.policy, job.output_uri)
    return TrainingOutcome(
        num_examples=len(data.examples) - data.num_replayed,
        num_replayed=data.num_replayed,
        num_steps=progress.step,
        first_loss=progress.first_loss,
        final_loss=progress.last_loss,
        num_workers=progress.world_size,
        zero_stage=job.config.zero_stage,
        resumed_at=resumed_at,
        metrics=progress.metrics,
        phases=clock.seconds,
    )


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


def _load_data(job: TrainingJob) -> _Data:
    """Load all that is learned; what one worker cannot use is an error of all of them."""
    data, error = None, None
    try:
        data = _read_data(job)
    except (ConfigError, NothingAcceptedError) as found:
        error = found
    errors: list[RsftError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    for found in errors:
        if found is not None:
            raise found
    assert data is not None
    return data


def _read_data(job: TrainingJob) -> _Data:
    config = job.config
    examples = load_examples(job.examples, per_prompt=config.per_prompt)
    replayed = load_replay(job.replay, job.policy, weight=config.replay_weight) if job.replay else []
    examples += replayed
    if not examples:
        raise NothingAcceptedError(f"{job.name}: there is no example to learn from")
    order = DataOrder(len(examples), min(config.batch_size, len(examples)), job.seed)
    return _Data(examples, len(replayed), order, num_steps(config, len(examples)))


def _load_engine(job: TrainingJob, batch_size: int) -> DeepSpeedEngine:
    deepspeed.init_distributed(verbose=False)
    share = math.ceil(batch_size / dist.get_world_size())
    settings = deepspeed_settings(job.config, job.policy.dtype, share=share)
    # from_pretrained looks for a live HfDeepSpeedConfig, and then loads each weight into its shards.
    sharding = HfDeepSpeedConfig(settings) if job.config.zero_stage == 3 else None
    model = _load_model(job.policy)
    if job.config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    config = job.config
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    engine.train()
    del sharding
    return engine


def _load_model(policy: PolicySpec) -> PreTrainedModel:
    model = load_model(policy)
    model.config.use_cache = False
    return model


def deepspeed_settings(config: TrainingConfig, dtype: str, *, share: int) -> dict[str, Any]:
    """Return the DeepSpeed config of a training: generated, then the user's options merged over it.

    `share` is the largest part of a batch that one worker gets. Raises ConfigError for options that have a
    key of their own in the training config.
    """
    for key, own in OWN_KEYS.items():
        if key in config.deepspeed:
            raise ConfigError(f"training.deepspeed.{key}: set {own} instead")
    settings = {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": math.ceil(share / config.micro_batch_size),
        "gradient_clipping": config.max_grad_norm,
        "steps_per_print": 1 << 62,
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
        },
    }
    if dtype == "bfloat16":
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    merged = _merge(settings, config.deepspeed)
    if merged["zero_optimization"]["stage"] != config.zero_stage:
        raise ConfigError("training.deepspeed.zero_optimization.stage: set training.zero_stage instead")
    return merged


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


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


def _step(engine: DeepSpeedEngine, job: TrainingJob, data: _Data, progress: Progress) -> Progress:
    """Take one optimizer step and return the progress after it."""
    config, step = job.config, progress.step
    rate = learning_rate(config, step, data.num_steps)
    optimizer: Any = engine.optimizer
    for group in optimizer.param_groups:
        group["lr"] = rate
    _seed_step(job.seed, step, engine.global_rank)
    batch = [data.examples[i] for i in data.order.batch_indices(step)]
    loss = _backward(engine, batch, config.micro_batch_size)
    first_loss = progress.first_loss if step else loss
    check_loss(loss, step=step + 1, first_loss=first_loss, ratio=config.divergence_ratio)
    norm = _apply(engine)
    if not math.isfinite(norm):
        raise DivergedError(f"step {step + 1}: the gradient norm is {norm}; lower training.learning_rate")
    metrics = progress.metrics
    if step % max(1, data.num_steps // MAX_METRICS) == 0 or step + 1 == data.num_steps:
        num_tokens = sum(len(e.completion_ids) for e in batch)
        metrics += (StepMetrics(step + 1, loss, rate, norm, num_tokens),)
    return replace(progress, step=step + 1, first_loss=first_loss, last_loss=loss, metrics=metrics)


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Make dropout a function of the step and the worker, so that a resumed training repeats it."""
    key = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(key, "little") >> 1)


def _backward(engine: DeepSpeedEngine, batch: Sequence[Example], size: int) -> float:
    """Accumulate this worker's gradients over its share; return the loss of the whole batch."""
    rank, world_size = engine.global_rank, engine.world_size
    share = micro_batches([len(e) for e in batch], rank=rank, world_size=world_size, size=size)
    idle = replace(batch[0], weight=0.0)
    total = denominator(batch)
    device = get_device()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    for number, places in enumerate(share, 1):
        rows = collate([batch[i] for i in places] or [idle]).to(device)
        part = weighted_loss(_forward(engine, rows), rows.weights, total)
        # DeepSpeed averages gradients over workers; the loss is a sum over them.
        engine.backward(part * world_size, scale_wrt_gas=False)
        loss += part.detach()
        if number < len(share):
            engine.step()  # counts the forward pass; the optimizer waits for the last one
    dist.all_reduce(loss)
    return float(loss)


def _forward(engine: DeepSpeedEngine, rows: Batch) -> torch.Tensor:
    keep = {"logits_to_keep": rows.num_logits} if _can_keep_logits(type(engine.module)) else {}
    output = engine(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False, **keep)
    return completion_nll(output.logits, rows.labels)


@cache
def _can_keep_logits(model_type: type[PreTrainedModel]) -> bool:
    return "logits_to_keep" in inspect.signature(model_type.forward).parameters


def _apply(engine: DeepSpeedEngine) -> float:
    """Take the optimizer step and return the gradient norm before clipping."""
    if not engine.zero_optimization() and not engine.bfloat16_enabled():
        # DeepSpeed reports no norm here; the averaged gradients lie in the parameters, until it clips them.
        norm = torch.nn.utils.get_total_norm([p.grad for p in engine.parameters() if p.grad is not None])
        engine.step()
        return float(norm)
    engine.step()
    reported = engine.get_global_grad_norm()
    assert reported is not None, "training.deepspeed has turned the gradient norm off"
    return float(reported)

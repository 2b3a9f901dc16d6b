"""The policy in DeepSpeed: how it is loaded and configured, asked for logits, and stepped."""

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import deepspeed
import torch
from deepspeed import DeepSpeedEngine
from ray.train.torch import get_device
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from rsft_cluster.config import TrainingConfig
from rsft_cluster.policies.loading import load_model
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.training.batches import Batch
from rsft_cluster.training.masters import restore_masters

BUCKET_ELEMENTS = 50_000_000
"""DeepSpeed allocates its communication buffers whole; its default of 5e8 elements takes 2 GB a worker."""


def load_engine(policy: PolicySpec, config: TrainingConfig) -> DeepSpeedEngine:
    """Load a policy, ready for training."""
    settings = deepspeed_settings(config, policy.dtype)
    # from_pretrained looks for a live HfDeepSpeedConfig, and then loads each weight into its shards.
    sharding = HfDeepSpeedConfig(settings) if config.zero_stage == 3 else None
    model = load_model(policy)
    model.config.use_cache = False
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    engine.train()
    del sharding
    if policy.dtype == "bfloat16":
        restore_masters(engine, policy, settings)
    return engine


def load_frozen(policy: PolicySpec) -> PreTrainedModel:
    """Load a policy that is only looked at, onto this worker's device."""
    model: Any = load_model(policy)
    return model.requires_grad_(requires_grad=False).eval().to(get_device())


def deepspeed_settings(config: TrainingConfig, dtype: str) -> dict[str, Any]:
    """Return the DeepSpeed config of a training: generated, then the user's options merged over it."""
    settings = {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        # Several: how many passes a step really has is said at each of them.
        "gradient_accumulation_steps": 2,
        "gradient_clipping": config.max_grad_norm,
        "steps_per_print": 1 << 62,
        "bf16": {"enabled": dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            # Without ZeRO, DeepSpeed has no float32 weights beside those in bfloat16.
            "stage": max(config.zero_stage, 1) if dtype == "bfloat16" else config.zero_stage,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
        },
    }
    return _merge(settings, config.deepspeed)


def logits_of(model: DeepSpeedEngine | PreTrainedModel, rows: Batch) -> Tensor:
    """Return the logits of rows, of the last positions alone where the model can leave out the others."""
    kind = type(model.module if isinstance(model, DeepSpeedEngine) else model)
    keep = {"logits_to_keep": rows.num_logits} if _can_keep_logits(kind) else {}
    output: Any = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False, **keep)
    return output.logits


def apply_gradients(engine: DeepSpeedEngine) -> float:
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


@cache
def _can_keep_logits(model_type: type[PreTrainedModel]) -> bool:
    return "logits_to_keep" in inspect.signature(model_type.forward).parameters


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged

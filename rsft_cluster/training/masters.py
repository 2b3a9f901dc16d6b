"""The float32 weights that a model in bfloat16 is trained with: DeepSpeed keeps them, the model has them rounded.

An update is often smaller than what rounding takes away, so trainings that follow on one another pass these on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param, safe_set_local_fp32_param
from safetensors import safe_open
from torch import Tensor
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from rsft_cluster.policies.loading import load_model
from rsft_cluster.policies.spec import PolicySpec


def full_weights(engine: DeepSpeedEngine) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight whole, on this worker's device, in float32; a tied one once.

    All workers must take all of them: where weights are in shards, each is gathered from all as its turn comes.
    """
    model: Any = engine.module
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.float32:
            with deepspeed.zero.GatheredParameters([parameter]):
                yield name, parameter.detach()
        else:
            master = safe_get_full_fp32_param(parameter)
            assert master is not None, f"{name}: DeepSpeed keeps no float32 weights of it"
            yield name, master


def restore_masters(engine: DeepSpeedEngine, policy: PolicySpec, settings: Mapping[str, Any]) -> None:
    """Set the float32 weights to those that a policy is stored with, which the loaded model has rounded."""
    if not _is_stored_wider(policy):
        return
    is_sharded = settings["zero_optimization"]["stage"] == 3
    # from_pretrained looks for a live HfDeepSpeedConfig, and then keeps this worker's shards alone.
    sharding = HfDeepSpeedConfig({**settings, "bf16": {"enabled": False}}) if is_sharded else None
    stored: Any = load_model(replace(policy, model=policy.master or policy.model, dtype="float32"))
    model: Any = engine.module
    weights = dict(stored.named_parameters())
    for name, parameter in model.named_parameters():
        if is_sharded:
            safe_set_local_fp32_param(parameter, weights[name].ds_tensor)
        else:
            safe_set_full_fp32_param(parameter, weights[name].detach())
    del sharding


def _is_stored_wider(policy: PolicySpec) -> bool:
    """Return whether a policy's files may hold more than bfloat16 does."""
    folder = Path(policy.model)
    if policy.master or policy.adapter or not folder.is_dir():
        return True
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            if any(stored.get_slice(name).get_dtype() != "BF16" for name in stored.keys()):  # noqa: SIM118 no mapping
                return True
    return False

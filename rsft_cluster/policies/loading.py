"""A policy's weights as a model: those of its folder or hub id, with a LoRA adapter merged in where it has one.

Sampling and training load the same way, so that both see the same numbers.
"""

import warnings
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rsft_cluster.errors import ConfigError
from rsft_cluster.policies.spec import PolicySpec


def load_model(policy: PolicySpec) -> PreTrainedModel:
    """Load the policy's weights on the CPU, or sharded where DeepSpeed says so.

    Raises ConfigError naming the model, or the adapter, that cannot be loaded.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            policy.model,
            revision=policy.revision,
            dtype=getattr(torch, policy.dtype),
            attn_implementation=policy.attention,
            use_safetensors=True,
            trust_remote_code=policy.trust_remote_code,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"policy.model {policy.model}: cannot be loaded: {error}") from error
    return model if policy.adapter is None else _merged(model, policy.adapter)


def _merged(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """Return the model with an adapter's differences added to its weights: as fast as a model without one."""
    try:
        # An engine of its own, and only adapters need it.
        from peft import PeftModel  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("policy.adapter: needs peft; install rsft-cluster[lora]") from error
    try:
        with warnings.catch_warnings():
            # Weights that are not found would be left at zero, and the adapter at nothing.
            warnings.filterwarnings("error", message=".*missing adapter keys")
            adapted = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
        return cast("Any", adapted).merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, UserWarning) as error:
        raise ConfigError(f"policy.adapter {adapter}: does not fit {model.name_or_path}: {error}") from error

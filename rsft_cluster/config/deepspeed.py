"""`training.deepspeed:`: the options of DeepSpeed that only move work, and what to set instead of the others."""

from collections.abc import Mapping
from typing import Any

OPTIONS: dict[str, Any] = {
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "zero_optimization": {
        "reduce_bucket_size": int,
        "allgather_bucket_size": int,
        "overlap_comm": bool,
        "contiguous_gradients": bool,
        "reduce_scatter": bool,
        "allgather_partitions": bool,
        "round_robin_gradients": bool,
        "sub_group_size": int,
        "offload_optimizer": {"device": ("cpu", "none"), "pin_memory": bool},
        "offload_param": {"device": ("cpu", "none"), "pin_memory": bool},
        "stage3_max_live_parameters": int,
        "stage3_max_reuse_distance": int,
        "stage3_prefetch_bucket_size": int,
        "stage3_param_persistence_threshold": int,
    },
}
"""Options and their types, or the values that they may have. None of them changes what is learned."""

INSTEAD = {
    "train_batch_size": "set training.batch_size instead",
    "train_micro_batch_size_per_gpu": "set training.micro_batch_size instead",
    "gradient_accumulation_steps": "set training.batch_size and micro_batch_size instead",
    "gradient_clipping": "set training.max_grad_norm instead",
    "optimizer": "set training.learning_rate, betas and weight_decay instead",
    "scheduler": "set training.schedule instead",
    "fp16": "set policy.dtype instead",
    "bf16": "set policy.dtype instead",
    "amp": "set policy.dtype instead",
    "data_types": "gradients are always added up in float32; leave it out",
    "activation_checkpointing": "set training.gradient_checkpointing instead",
    "tensor_parallel": "a layer is not split over workers here; set training.zero_stage to 3 instead",
    "sequence_parallel_size": "a sequence is not split over workers here; set training.gradient_checkpointing instead",
    "pipeline": "layers are not split over workers here; set training.zero_stage to 3 instead",
    "tensorboard": "set trackers instead",
    "wandb": "set trackers instead",
    "csv_monitor": "set trackers instead",
    "comet": "set trackers instead",
    "zero_optimization.stage": "set training.zero_stage instead",
}
"""What is right in place of options that have a key of their own here, or that DeepSpeed would ignore or fail on."""

FROM_STAGE = {"offload_optimizer": 1, "offload_param": 3}
"""The ZeRO stage below which DeepSpeed ignores an option; those that begin with `stage3_` it ignores below 3."""


def check_deepspeed(options: Mapping[str, Any], *, zero_stage: int) -> None:
    """Raise ValueError, naming the option and what would be right, unless all are known, fit, and are used."""
    _check(options, OPTIONS, "")
    for name in options.get("zero_optimization", {}):
        needed = FROM_STAGE.get(name, 3 if name.startswith("stage3_") else 0)
        if zero_stage < needed:
            raise ValueError(
                f"deepspeed.zero_optimization.{name}: has no effect with zero_stage {zero_stage}; choose zero_stage "
                f"{needed}{'' if needed == 3 else ' or more'}, or leave it out"
            )


def _check(options: Mapping[str, Any], known: Mapping[str, Any], above: str) -> None:
    for name, value in options.items():
        path = f"{above}{name}"
        if name not in known:
            expected = f"is no option that can be set; expected one of {', '.join(known)}"
            raise ValueError(f"deepspeed.{path}: {INSTEAD.get(path, expected)}")
        kind = known[name]
        if isinstance(kind, Mapping) and isinstance(value, Mapping):
            _check(value, kind, f"{path}.")
        elif expected := _unfit(value, kind):
            raise ValueError(f"deepspeed.{path}: is {value!r}; expected {expected}")


def _unfit(value: object, kind: Any) -> str:
    """Return what a value should have been, nothing where it fits."""
    if isinstance(kind, Mapping):
        return f"a mapping of {', '.join(kind)}"
    if isinstance(kind, tuple):
        return "" if value in kind else " or ".join(kind)
    if kind is bool:
        return "" if isinstance(value, bool) else "true or false"
    return "" if _is_count(value) else "a whole number of at least 0"


def _is_count(value: object) -> bool:
    # YAML takes 5e8 for a fraction.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 and value % 1 == 0

"""The type that a model is computed in: that of its weights, or a wider one that is asked for."""

import logging
import math
import time
from functools import cache
from typing import Literal

import torch
from torch import nn

from rsft_cluster.errors import ConfigError
from rsft_cluster.generators.engine.packing import PackedLinear, can_pack

logger = logging.getLogger(__name__)

ComputeDtype = Literal["weights", "auto", "float32", "bfloat16"]
WORTHWHILE = 1.25
"""How many times as fast bfloat16 products have to be. What a busy machine times is not what it decodes, and workers
may choose apart: where repeats have to be exact, name the type instead of `auto`."""
ROWS, WIDTH = 64, 1024
"""Of the products that are timed: a few milliseconds each."""
NUM_TRIALS = 5


def compute_dtype(model: nn.Module, stored: torch.dtype, choice: ComputeDtype) -> torch.dtype:
    """Return the type to compute in, given that of the weights. Raises ConfigError for one that would round these."""
    if choice == "weights":
        return stored
    if choice == "auto":
        on_cpu = next(model.parameters()).device.type == "cpu"
        return torch.float32 if on_cpu and stored == torch.bfloat16 and bfloat16_speed() < WORTHWHILE else stored
    chosen: torch.dtype = getattr(torch, choice)
    if chosen.itemsize < stored.itemsize:
        raise ConfigError(f"compute_dtype: {choice} would round the weights, which are {stored}; set policy.dtype")
    return chosen


def widen(model: nn.Module, dtype: torch.dtype) -> None:
    """Turn weights and buffers of narrower types into `dtype`; nothing is rounded, and the values are the same."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.dtype.itemsize < dtype.itemsize:
            tensor.data = tensor.data.to(dtype)
    config = getattr(model, "config", None)
    if config is not None:
        config.dtype = dtype


@cache
def bfloat16_speed() -> float:
    """Return how many times as fast as float32 products those of bfloat16 are on this CPU, with this many threads."""
    if not can_pack(torch.bfloat16):
        return 0.0
    dtypes = (torch.float32, torch.bfloat16)
    layers = [(PackedLinear(torch.ones(WIDTH, WIDTH, dtype=d), None), torch.ones(ROWS, WIDTH, dtype=d)) for d in dtypes]
    fastest = [math.inf, math.inf]
    for trial in range(NUM_TRIALS + 1):
        for i, (layer, inputs) in enumerate(layers):
            start = time.perf_counter()
            layer(inputs)
            if trial:  # the first is a warm-up
                fastest[i] = min(fastest[i], time.perf_counter() - start)
    ratio = fastest[0] / fastest[1]
    logger.info("event=bfloat16_products speed=%.2f", ratio)
    return ratio

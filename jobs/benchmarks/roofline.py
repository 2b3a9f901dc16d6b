"""The most that this machine could do: its measured matrix products and copies against what a token asks for.

A decode step of `rows` sequences multiplies `rows` vectors with every weight matrix, reads the weights once and
reads every sequence's keys and values. Prefill, sampling and everything else are left out, so it is a bound.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from jobs.benchmarks.workload import Shape

COPIED_BYTES = 256 * 2**20
NUM_PASSES = 3


@dataclass(frozen=True, slots=True)
class Demand:
    """What one token asks for, on average."""

    mean_context: float
    flops: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Machine:
    """What the machine gave in one measurement."""

    flops_per_second: float
    """Of the model's own matrix products, `rows` rows each."""
    bytes_per_second: float
    """Read and written by a copy."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """The bound on tokens a second, and what sets it."""

    demand: Demand
    machine: Machine
    tokens_per_second: float
    bound_by: str


class Probe:
    """Measures the machine with matrices of a model's own widths, in its dtype."""

    def __init__(self, shape: Shape, *, dtype: torch.dtype, rows: int, threads: int) -> None:
        torch.set_num_threads(threads)
        # One matrix for each of the model's, so that they come from memory as often as the model's would.
        self._weights = [
            torch.ones(outputs, inputs, dtype=dtype) for inputs, outputs, n in shape.linears() for _ in range(n)
        ]
        self._inputs = {w.shape[1]: torch.ones(rows, w.shape[1], dtype=dtype) for w in self._weights}
        self._flops = sum(2 * rows * w.numel() for w in self._weights)
        self._source = torch.ones(COPIED_BYTES // 4)
        self._target = torch.zeros_like(self._source)

    def measure(self) -> Machine:
        """Take the best of a few passes."""
        products, copying = _fastest(self._multiply), _fastest(lambda: self._target.copy_(self._source))
        return Machine(self._flops / products, 2 * COPIED_BYTES / copying)

    @torch.inference_mode()
    def _multiply(self) -> None:
        for weight in self._weights:
            functional.linear(self._inputs[weight.shape[1]], weight)


def demand(shape: Shape, *, dtype: torch.dtype, rows: int, lengths: Sequence[tuple[int, int]]) -> Demand:
    """Return what a token asks for; `lengths` are of prompts and their answers."""
    num_tokens = sum(answer for _, answer in lengths)
    # The t-th token of an answer sees the prompt and what came before, itself included.
    context = sum(prompt * answer + answer * (answer + 1) / 2 for prompt, answer in lengths) / num_tokens
    weights = sum(inputs * outputs * n for inputs, outputs, n in shape.linears())
    attention = 4 * context * shape.heads * shape.head_dim * shape.layers
    read = context * shape.num_cache_values
    return Demand(context, 2 * weights + attention, (weights / rows + read) * dtype.itemsize)


def roofline(asked: Demand, measured: Sequence[Machine]) -> Roofline:
    """Return the bound, by the median of the measurements."""
    machine = Machine(
        statistics.median(m.flops_per_second for m in measured), statistics.median(m.bytes_per_second for m in measured)
    )
    seconds = {"products": asked.flops / machine.flops_per_second, "reads": asked.bytes / machine.bytes_per_second}
    bound_by = max(seconds, key=lambda name: seconds[name])
    return Roofline(asked, machine, 1 / seconds[bound_by], bound_by)


def _fastest(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(NUM_PASSES):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)

"""The mean of the weights over the steps of a training, one of n steps ago counting decay^n.

Normalised, as Adam's moments are, so that the weights that training started from have no part in it. Only rank 0 holds
it, in float32: every worker has the same weights after a step.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FILE = "average.safetensors"


class WeightAverage:
    """The mean so far, by the parameters' names."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, parameters: Iterable[tuple[str, Tensor]], *, step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        share = (1 - self._decay) / (1 - self._decay**step)
        for name, weight in parameters:
            mean = self._mean.setdefault(name, torch.zeros_like(weight, dtype=torch.float32))
            mean.lerp_(weight.float(), share)

    def over(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a model's state with the mean in place of its parameters, in their dtypes."""
        return {name: self._mean[name].to(kept) if name in self._mean else kept for name, kept in state.items()}

    def save(self, folder: Path) -> None:
        """Write the mean into a checkpoint's folder."""
        save_file({name: mean.cpu() for name, mean in self._mean.items()}, folder / FILE)

    def load(self, folder: Path, device: torch.device) -> None:
        """Go on from what `save` wrote."""
        self._mean = load_file(folder / FILE, device=str(device))

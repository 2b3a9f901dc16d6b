"""RMS norms in one compiled pass each, where a model's own make eight of torch's over copies in float32."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rsft_cluster.generators.engine.compiled import as_array, kernel_for

EXACTNESS = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7}
"""What a replaced norm's answers may differ by, as a share of them: a bit of the last place."""


class CompiledNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self._rms_norm = kernel_for(weight.dtype).rms_norm
        self._weight = weight.detach().float().numpy()
        self._epsilon = np.float32(epsilon)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs (..., dim), normalised."""
        rows = inputs.reshape(-1, inputs.shape[-1]).contiguous()
        output = torch.empty_like(rows)
        self._rms_norm(as_array(rows), self._weight, self._epsilon, as_array(output))
        return output.view(inputs.shape)


def compile_norms(model: PreTrainedModel) -> int:
    """Replace the RMS norms of a model on a CPU by compiled ones that give the same answers; return how many.

    There has to be a kernel for the model's type.
    """
    replaced = 0
    for parent in [*model.modules()]:
        for name, child in parent.named_children():
            norm = _compiled(child) if type(child).__name__.endswith("RMSNorm") else None
            if norm is not None:
                setattr(parent, name, norm)
                replaced += 1
    return replaced


@torch.inference_mode()
def _compiled(norm: Any) -> CompiledNorm | None:
    """Return a compiled norm, or None for one that is made in another way."""
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    parameters = dict(norm.named_parameters())
    if epsilon is None or parameters.keys() != {"weight"} or norm.weight.dtype not in EXACTNESS:
        return None
    inputs = torch.linspace(-2.0, 3.0, 4 * len(norm.weight)).view(4, -1).sin().to(norm.weight.dtype)
    made = CompiledNorm(norm.weight, epsilon)
    expected = norm(inputs)
    tolerance = EXACTNESS[norm.weight.dtype]
    return made if torch.allclose(made(inputs), expected, rtol=tolerance, atol=tolerance * 1e-3) else None

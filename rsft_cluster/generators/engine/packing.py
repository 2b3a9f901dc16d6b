"""Weights packed once for the CPU's matrix products, instead of at every product.

oneDNN wants weights in blocks that fit its kernels; torch's linear brings them into that order at each call. Packed
weights also make a row's result independent of how many rows are multiplied with it, in float32, for any number of
threads.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rsft_cluster.generators.engine.replacing import replace_modules

ROWS = 128
"""Rows that the packing is made for; any number works."""


class PackedLinear(nn.Module):
    """A linear layer over a packed weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
        self._bias = bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Return inputs @ weight.T + bias."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self._bias, "none", [], "")


def pack(model: PreTrainedModel) -> int:
    """Replace the linear layers of a model on a CPU by packed ones; return how many were replaced.

    None where this machine's oneDNN does not take the model's dtype.
    """
    return replace_modules(model, _packed) if can_pack(model.dtype) else 0


def _packed(module: nn.Module) -> PackedLinear | None:
    """Return a packed layer in place of a linear one."""
    if type(module) not in (nn.Linear, Conv1D):
        return None
    linear = cast("Any", module)
    return PackedLinear(linear.weight.T if isinstance(module, Conv1D) else linear.weight, linear.bias)


def can_pack(dtype: torch.dtype) -> bool:
    """Say whether this machine's oneDNN takes a type."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())

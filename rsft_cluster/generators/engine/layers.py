"""What stands between a layer's matrix products, in one compiled pass: RMS norms, and what gates a gated MLP.

Torch makes eight passes of a norm, over copies in float32, and two of a gate.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rsft_cluster.generators.engine.compiled import as_array, for_each, kernel_for
from rsft_cluster.generators.engine.replacing import replace_modules

EXACTNESS = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7}
"""What a replaced module's answers may differ by, as a share of them: a bit of the last place."""
PART = 1 << 16
"""Numbers for which a thread is worth its while: they take about 50 microseconds."""


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


class CompiledMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, gate: nn.Linear, up: nn.Linear, down: nn.Module) -> None:
        super().__init__()
        self._gate = kernel_for(gate.weight.dtype).gate
        self.gate_and_up = _stacked(gate, up)
        self.down = down

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the answer (..., hidden) to inputs (..., hidden)."""
        both = self.gate_and_up(inputs)
        gated = both.new_empty((*both.shape[:-1], both.shape[-1] // 2))
        rows, output = as_array(both.flatten(0, -2)), as_array(gated.flatten(0, -2))
        size = -(-len(rows) // min(torch.get_num_threads(), -(-rows.size // PART)))
        parts = [slice(start, start + size) for start in range(0, len(rows), size)]
        for_each(lambda part: self._gate(rows[part], output[part]), parts)
        return self.down(gated)


def compile_layers(model: nn.Module) -> int:
    """Replace RMS norms and gated MLPs of a model on a CPU by compiled ones that give the same answers.

    Returns how many. There has to be a kernel for the model's type.
    """
    return replace_modules(model, _compiled)


@torch.inference_mode()
def _compiled(module: nn.Module) -> nn.Module | None:
    """Return a module that does the same, compiled; None for one that does something else."""
    if type(module).__name__.endswith("RMSNorm"):
        return _compiled_norm(module)
    if {name for name, _ in module.named_children()} == {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return _compiled_mlp(module)
    return None


def _compiled_norm(norm: Any) -> CompiledNorm | None:
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    parameters = dict(norm.named_parameters())
    if epsilon is None or parameters.keys() != {"weight"} or norm.weight.dtype not in EXACTNESS:
        return None
    made = CompiledNorm(norm.weight, epsilon)
    inputs = _some(len(norm.weight), norm.weight.dtype)
    return made if _alike(made(inputs), norm(inputs)) else None


def _compiled_mlp(mlp: Any) -> CompiledMLP | None:
    """Return a compiled MLP, or None for one that is made in another way.

    That it is made in this way is seen before gate and up are put together, which takes as much memory as they have.
    """
    gate, up, down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    if not type(gate) is type(up) is nn.Linear or gate.weight.shape != up.weight.shape:
        return None
    inputs = _some(gate.in_features, gate.weight.dtype)
    if gate.weight.dtype not in EXACTNESS or not _alike(mlp.act_fn(inputs), functional.silu(inputs)):
        return None
    if not torch.equal(mlp(inputs), down(mlp.act_fn(gate(inputs)) * up(inputs))):
        return None
    return CompiledMLP(gate, up, down)


def _some(width: int, dtype: torch.dtype) -> Tensor:
    """Return rows of some numbers, (4, width)."""
    return torch.linspace(-2.0, 3.0, 4 * width).view(4, -1).sin().mul(3.0).to(dtype)


def _alike(found: Tensor, expected: Tensor) -> bool:
    tolerance = EXACTNESS[expected.dtype]
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance * 1e-3)


def _stacked(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """Return a linear layer that gives the outputs of both, one after the other."""
    biases = [torch.zeros(len(each.weight)) if each.bias is None else each.bias for each in (first, second)]
    has_bias = first.bias is not None or second.bias is not None
    both = nn.Linear(first.in_features, first.out_features + second.out_features, bias=has_bias, device="meta")
    both.weight = nn.Parameter(torch.cat([first.weight, second.weight]), requires_grad=False)
    if has_bias:
        both.bias = nn.Parameter(torch.cat(biases).to(both.weight.dtype), requires_grad=False)
    return both

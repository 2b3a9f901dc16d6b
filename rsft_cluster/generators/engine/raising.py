"""A model's arithmetic in float32, its weights left as they are."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def raised(model: nn.Module) -> Iterator[None]:
    """Let forwards within the block compute in float32: each module's weights are raised while it is called.

    Exact, for float32 holds every value of a narrower type; memory for one module's weights is needed beside them.
    Call without inference mode.
    """
    with ExitStack() as hooks:
        for module in model.modules():
            narrow = [p for p in module.parameters(recurse=False) if p.dtype in (torch.bfloat16, torch.float16)]
            if narrow:
                for handle in _raise_in_calls(module, narrow):
                    hooks.callback(handle.remove)
        yield


def _raise_in_calls(module: nn.Module, parameters: list[nn.Parameter]) -> list[Any]:
    stored: list[torch.Tensor] = []

    def before(*_: Any) -> None:
        stored.extend(p.data for p in parameters)
        for parameter in parameters:
            parameter.data = parameter.data.float()

    def after(*_: Any) -> None:
        for parameter, data in zip(parameters, stored, strict=True):
            parameter.data = data
        stored.clear()

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True)]

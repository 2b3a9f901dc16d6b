"""Modules of a model in the place of others, made one by one so that few weights are in memory twice."""

from collections.abc import Callable

from torch import nn


def replace_modules(model: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> int:
    """Put what `make` returns in the place of each module for which that is not None; return how many were replaced."""
    replaced = 0
    for name, child in [*model.named_children()]:
        made = make(child)
        if made is None:
            replaced += replace_modules(child, make)
        else:
            setattr(model, name, made)
            replaced += 1
    return replaced

"""Which modules will draw a dropout mask."""

from __future__ import annotations

from torch import nn


def active_dropout(model: nn.Module) -> list[str]:
    """Names of the modules in training mode whose dropout has a probability above 0."""
    return [name for name, module in model.named_modules() if module.training and _probability(module) > 0.0]


def _probability(module: nn.Module) -> float:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p
    if isinstance(module, nn.RNNBase):
        return module.dropout if module.num_layers > 1 else 0.0
    return module.dropout if isinstance(module, nn.MultiheadAttention) else 0.0

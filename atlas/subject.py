"""One published model with its data and its loss, as every part of this room takes it. Nothing of layerhess is here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Pair = tuple[Tensor, float]


@dataclass(frozen=True)
class Subject:
    """A model that is ready to be analysed: loaded, in eval mode, with the weights of its package.

    Attributes:
        model, batches: both in one dtype; batches as ``lh.Objective`` takes them.
        total: the loss of a batch as (sum, count), written in plain torch; the truths are made from it.
        criterion: the same loss as a criterion on (output, target); None: ``total`` is what the analysis gets.
        blocks: "module" or "parameter": what the blocks are. examined: the five of which both ends, trace and density
            are measured. checked: the ten whose largest eigenvalue is held against the truth.
        packages: distributions that the weights, the code and the data come from. memory: a budget; two subjects are
            measured side by side, in 12 GB.
    """

    model: nn.Module
    batches: list[Any]
    total: Callable[[nn.Module, Any], Pair]
    criterion: nn.Module | None
    blocks: str
    examined: tuple[str, ...]
    checked: tuple[str, ...]
    packages: tuple[str, ...]
    memory: str | None = None

    def members(self) -> dict[str, dict[str, nn.Parameter]]:
        """Block -> its trainable parameters by name, in the model's order; a module's own, without its children's."""
        found: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                block = name if self.blocks == "parameter" else name.rpartition(".")[0]
                found.setdefault(block, {})[name] = parameter
        return found

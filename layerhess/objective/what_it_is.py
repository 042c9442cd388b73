"""What one sees of an objective by typing its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from layerhess.linalg.described import Described, Description, called
from layerhess.linalg.numbers import count, counted


class SaysWhatItIs(Described):
    """An objective in words. Its data is not touched: reading it may take long, or be possible once only."""

    model: nn.Module
    data: Any
    loss: Any
    evaluation: Any
    batch_size: int | None
    mode: str
    stop_gradients: str
    parameters: dict[str, nn.Parameter]
    frozen: tuple[str, ...]
    devices: tuple[torch.device, ...]
    dtype: torch.dtype
    notes: list[str]

    def _describe(self) -> Description:
        numel = sum(parameter.numel() for parameter in self.parameters.values())
        frozen = f", {counted(len(self.frozen), 'frozen tensor')}" if self.frozen else ""
        devices = ", ".join(map(str, self.devices))
        split = f", split into {count(self.batch_size)} examples" if self.batch_size is not None else ""
        settings = [f"mode: {self.mode}", f"stop_gradients: {self.stop_gradients}"]
        return Description(
            f"Objective of {called(type(self.model).__name__)}, {counted(numel, 'parameter')}",
            (
                f"loss: {self._loss()}; data: {_kind(self.data)}{split}",
                f"{counted(len(self.parameters), 'trainable tensor')}{frozen}, {_short(self.dtype)} on {devices}",
                "; ".join(settings),
                *(f"note: {note}" for note in self.notes[:1]),
            ),
            columns=("parameter", "shape", "numel", "dtype"),
            rows=tuple(
                (called(name), " x ".join(map(str, p.shape)) or "scalar", count(p.numel()), _short(p.dtype))
                for name, p in self.parameters.items()
            ),
        )

    def _loss(self) -> str:
        if self.loss is None:
            return "the model's own"
        name = getattr(self.loss, "name", None) or getattr(self.loss, "__name__", None) or type(self.loss).__name__
        return called(name)


def _kind(data: Any) -> str:
    """The data's type, and how many batches it says it has."""
    name = called(type(data).__name__)
    if isinstance(data, (tuple, Mapping)):
        return f"one batch, {name}"
    try:
        return f"{name} of {counted(len(data), 'batch', 'batches')}"
    except Exception:  # no length, or one that fails
        return name


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

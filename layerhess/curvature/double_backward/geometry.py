"""The geometry of a convolution (stride, padding, ...), and its three bilinear maps: the output and both transposes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CONVOLUTIONS: dict[Callable[..., Tensor], int] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}


@dataclass(frozen=True)
class Geometry:
    """How a kernel w moves over x, both with two dimensions for examples and channels, or channels and channels."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def output(self, x: Tensor, w: Tensor, offset: Tensor | None = None) -> Tensor:
        """y = x * w + offset."""
        none = [0] * len(self.stride)
        return torch.convolution(x, w, offset, self.stride, self.padding, self.dilation, False, none, self.groups)

    def input_gradient(self, g: Tensor, w: Tensor, shape: torch.Size) -> Tensor:
        """The transpose of x -> x * w at g; ``shape`` is that of x."""
        made: Tensor = self._transposes(g, g.new_empty(1).expand(shape), w, [True, False, False])[0]
        return made

    def weight_gradient(self, g: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
        """The transpose of w -> x * w at g; ``shape`` is that of w."""
        made: Tensor = self._transposes(g, x, g.new_empty(1).expand(shape), [False, True, False])[1]
        return made

    def _transposes(self, g: Tensor, x: Tensor, w: Tensor, wanted: list[bool]) -> Any:
        none = [0] * len(self.stride)
        return torch.ops.aten.convolution_backward(
            g, x, w, None, self.stride, self.padding, self.dilation, False, none, self.groups, wanted
        )


def geometry(n: int, stride: Any, padding: Any, dilation: Any, groups: int) -> Geometry | None:
    """The geometry in n dimensions; None where the arguments have another number of them, or are words."""
    if isinstance(padding, str):
        return None
    found = Geometry(_each(stride, n), _each(padding, n), _each(dilation, n), groups)
    return found if len(found.stride) == len(found.padding) == len(found.dilation) == n else None


def _each(value: Any, n: int) -> tuple[int, ...]:
    """One integer stands for all dimensions."""
    try:
        return (operator.index(value),) * n
    except TypeError:
        made = tuple(int(v) for v in value)
        return made * n if len(made) == 1 else made

"""A few very long rows of which each stretch of columns lies on a device of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class SpreadRows:
    """(m, n) rows in stretches of columns; what :mod:`layerhess.linalg.long_rows` needs of them, and no more.

    Args:
        parts: (m, n_i) of each stretch, in their order. device: of what is made of whole rows.
    """

    def __init__(self, parts: Sequence[Tensor], device: torch.device) -> None:
        self.parts, self.device = list(parts), device

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return len(self), sum(part.shape[1] for part in self.parts)

    @property
    def dtype(self) -> torch.dtype:
        """Of all stretches."""
        return self.parts[0].dtype

    def __getitem__(self, rows: slice) -> SpreadRows:
        return SpreadRows([part[rows] for part in self.parts], self.device)

    def __setitem__(self, rows: slice, values: Tensor | SpreadRows) -> None:
        sizes = [part.shape[1] for part in self.parts]
        own = torch.split(values, sizes, dim=1) if isinstance(values, Tensor) else values.parts
        for part, value in zip(self.parts, own, strict=True):
            part[rows] = value

    def clone(self) -> SpreadRows:
        """A copy, stretch by stretch."""
        return SpreadRows([part.clone() for part in self.parts], self.device)

    def whole(self) -> Tensor:
        """(m, n) on one device: these rows may not fit there."""
        return torch.cat([part.to(self.device) for part in self.parts], dim=1)

"""What is asked of a pass: products of one block's vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from layerhess.objective.blocks import Block


@dataclass(frozen=True)
class Request:
    """Products of one block's vectors.

    Attributes:
        block: which parameters the vectors belong to (the full model is the block of all parameters).
        vectors: (s, P_b) float64, or float32 for a float32 model, one vector a row.
        rows: the block whose components of the products are wanted, as in A[rows, block] v; by default ``block``
            itself.
        quadratic: blocks for which every batch's own v_c' (A v)_c is recorded, see :attr:`DataPass.quadratics`.
    """

    block: Block
    vectors: Tensor
    rows: Block | None = None
    quadratic: tuple[Block, ...] = ()

    @property
    def image(self) -> Block:
        """Where the products live."""
        return self.rows or self.block

    @property
    def parts(self) -> tuple[Any, ...]:
        """Everything that tells it from another request, for a digest."""
        quadratic = [(block.name, block.parameters) for block in self.quadratic]
        return self.block.name, self.block.parameters, self.image.parameters, quadratic, self.vectors

"""A Hessian is symmetric: a product that is not was not made with one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from layerhess.blocks import Block
from layerhess.sweep import Request, Sweep
from layerhess.vectors import random_unit


@dataclass(frozen=True)
class Symmetry:
    """What was measured for one block.

    Attributes:
        asymmetry: relative; about rounding when right, 1e-3 and more when wrong.
        norm: ||A u|| for a random unit u, the larger of two.
    """

    asymmetry: float
    norm: float


def symmetry(sweep: Sweep, blocks: Mapping[str, Block], seed: int) -> dict[str, Symmetry]:
    """Compare <u, A v> with <v, A u> for each block, on the sweep's (small) data.

    Two pairs a block: two random unit vectors, whose inner products are of size ||A u|| / sqrt(n) and are scaled so;
    and a random vector with its own product, v = A u / ||A u||, which looks where A is large. Three products a block,
    in two passes.
    """
    device = sweep.objective.device
    first = {
        key: Request(block, torch.stack([random_unit(block.numel, seed, f"symmetry {key}", i, device) for i in (0, 1)]))
        for key, block in blocks.items()
    }
    applied = sweep.run(first)
    norms = {key: float(torch.linalg.vector_norm(rows, dim=1).max()) for key, rows in applied.items()}
    seen = {key: rows[0] / max(float(torch.linalg.vector_norm(rows[0])), 1e-300) for key, rows in applied.items()}
    second = sweep.run({key: Request(blocks[key], rows[None]) for key, rows in seen.items()})
    return {
        key: Symmetry(_asymmetry(first[key].vectors, applied[key], seen[key], second[key][0]), norms[key])
        for key in blocks
    }


def _asymmetry(u: Tensor, au: Tensor, w: Tensor, aw: Tensor) -> float:
    lengths = torch.linalg.vector_norm(au, dim=1)
    if float(lengths.min()) == 0.0:
        return 0.0
    n = u.shape[1]
    random = float((u[1] @ au[0] - u[0] @ au[1]).abs() / lengths.max()) * math.sqrt(n)
    steered = float((w @ au[0] - u[0] @ aw).abs() / torch.maximum(lengths[0], (u[0] @ aw).abs()))
    # One dimension has no asymmetry; in few dimensions a product u'Au may happen to be small, never both.
    return max(random if n > 1 else 0.0, steered)

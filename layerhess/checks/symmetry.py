"""Checks that products are symmetric, <u, A v> = <v, A u>, as those of a Hessian must be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from layerhess.curvature.data_pass import DataPass, Request
from layerhess.linalg.bounds import zero_level
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective.blocks import Block, make_block

NOISE = 100.0  # times the zero level
LARGEST_SCALE = 30.0  # the smallest tensors are scaled up by its square, and their rounding with them


@dataclass(frozen=True)
class Symmetry:
    """What was measured for one block.

    Attributes:
        asymmetry: relative; about rounding when right, 1e-3 and more when wrong.
        norm: ||A u|| for a random unit u, the larger of two.
    """

    asymmetry: float
    norm: float


def symmetry(
    data_pass: DataPass, blocks: Mapping[str, Block], seed: int, known: Mapping[str, Tensor] = MappingProxyType({})
) -> dict[str, Symmetry]:
    """Compare <u, A v> with <v, A u> for each block, on the pass's (small) data.

    Two pairs a block: two random unit vectors, whose inner products are of size ||A u|| / sqrt(n) and are scaled so;
    and a random vector with its own product, v = A u / ||A u||, which tests where A is large. A block of several
    tensors has a third: random vectors whose parts are larger where the product was small, so that a fault in one
    tensor shows next to others of more curvature. Three to five products a block; the last pass has one of each.

    Args:
        known: key -> (P_b,) the product with :func:`start`, for blocks where that was made before.
    """
    device = data_pass.objective.device
    first = {
        key: Request(block, torch.stack([start(block, key, seed, i, device) for i in (0, 1)]))
        for key, block in blocks.items()
    }
    asked = {key: Request(r.block, r.vectors[1:]) if key in known else r for key, r in first.items()}
    applied = data_pass.run(asked)
    applied |= {key: torch.cat([known[key][None], applied[key]]) for key in blocks if key in known}
    scales = {key: _scale(block, applied[key]) for key, block in blocks.items() if len(block.parameters) > 1}
    scaled = {key: Request(blocks[key], first[key].vectors * scale) for key, scale in scales.items()}
    balanced = data_pass.run(scaled) if scaled else {}
    norms = {key: float(torch.linalg.vector_norm(rows, dim=1).max()) for key, rows in applied.items()}
    seen = {key: rows[0] / max(float(torch.linalg.vector_norm(rows[0])), 1e-300) for key, rows in applied.items()}
    second = data_pass.run({key: Request(blocks[key], rows[None]) for key, rows in seen.items()})
    measured = {}
    for key, request in first.items():
        pairs = [
            _random(request.vectors, applied[key]),
            _steered(request.vectors[0], applied[key][0], seen[key], second[key][0]),
        ]
        if key in balanced:
            pairs.append(_random(request.vectors, balanced[key] * scales[key]))
        # NaN is the worst of all.
        measured[key] = Symmetry(max(pairs, key=lambda x: math.inf if math.isnan(x) else x), norms[key])
    return measured


def start(block: Block, key: str, seed: int, number: int = 0, device: torch.device | None = None) -> Tensor:
    """The random unit vector (P_b,) that a block is multiplied by first; number 1 is the one beside it."""
    return random_unit(block.numel, seed, f"symmetry {key}", number, device)


def size_of_product(data_pass: DataPass, block: Block, seed: int) -> float:
    """||A u|| for a random unit u: :attr:`Symmetry.norm` without the check of symmetry."""
    u = start(block, block.name, seed, device=data_pass.objective.device)
    return float(torch.linalg.vector_norm(data_pass.run({block.name: Request(block, u[None])})[block.name]))


def asymmetric_tensors(data_pass: DataPass, names: list[str], seed: int, limit: float) -> dict[str, float]:
    """Tensors with an asymmetric diagonal block -> asymmetry; tensors that count as zero are left out."""
    parameters = data_pass.objective.parameters
    blocks = {name: make_block(name, {name: parameters[name]}) for name in names}
    measured = symmetry(data_pass, blocks, seed)
    level = noise_level(data_pass.objective.dtype, max(m.norm for m in measured.values()))
    return {key: m.asymmetry for key, m in measured.items() if not m.asymmetry <= limit and not m.norm <= level}


def noise_level(dtype: torch.dtype, full_norm: float) -> float:
    """The norm of a product with a random unit vector that may be all rounding, and so of any asymmetry.

    A bias before a normalisation has no curvature, and what is left where the sums cancel is divided by the standard
    deviation that it is normalised by: 2e-13 of the full product was seen in float64. Other dtypes are judged by a
    float64 copy, or where there is none by the level below which blocks count as zero.
    """
    level = zero_level(torch.finfo(dtype).eps, full_norm)
    return NOISE * level if dtype == torch.float64 else level


def _scale(block: Block, applied: Tensor) -> Tensor:
    """(P_b,) factors: about 1/sqrt of the size of each tensor's part of a random product, 1 where that is rounding."""
    sizes = [shape.numel() for shape in block.shapes]
    rms = torch.stack([part.square().mean().sqrt() for part in torch.split(applied, sizes, dim=1)])
    largest = rms.max()
    factors = torch.where(rms > 1e-6 * largest, torch.rsqrt(rms / largest), 1.0).clamp(1.0, LARGEST_SCALE)
    return torch.repeat_interleave(factors, torch.tensor(sizes, device=factors.device))


def _random(u: Tensor, au: Tensor) -> float:
    length = float(torch.linalg.vector_norm(au, dim=1).max())
    if length == 0.0 or u.shape[1] == 1:  # one dimension has no asymmetry
        return 0.0
    return float((u[1] @ au[0] - u[0] @ au[1]).abs()) / length * math.sqrt(u.shape[1])


def _steered(u: Tensor, au: Tensor, w: Tensor, aw: Tensor) -> float:
    # In few dimensions u'Au may happen to be small, but never this and the length both.
    size = max(float(torch.linalg.vector_norm(au)), float((u @ aw).abs()))
    return float((w @ au - u @ aw).abs()) / size if size > 0.0 else 0.0

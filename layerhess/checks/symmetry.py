"""Checks that products are symmetric, <u, A v> = <v, A u>, as those of a Hessian must be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from layerhess.curvature.data_pass import DataPass, Request
from layerhess.curvature.device import beside
from layerhess.linalg.bounds import zero_level
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective.blocks import Block, in_groups, is_large, make_block

NOISE = 100.0  # times the zero level
LARGEST_SCALE = 30.0  # the smallest tensors are scaled up by its square, and their rounding with them


@dataclass(frozen=True)
class Symmetry:
    """What was measured for one block.

    Attributes:
        asymmetry: relative; about rounding when right, 1e-3 and more when wrong.
        norm: ||A u|| for a random unit u, the larger of two.
        seconds: its share of a pass that made one product of each block.
    """

    asymmetry: float
    norm: float
    seconds: float = field(default=0.0, compare=False)


def symmetry(
    data_pass: DataPass, blocks: Mapping[str, Block], seed: int, known: dict[str, Tensor] | None = None
) -> dict[str, Symmetry]:
    """Compare <u, A v> with <v, A u> for each block, on the pass's (small) data.

    Two pairs a block: two random unit vectors, whose inner products are of size ||A u|| / sqrt(n) and are scaled so;
    and a random vector with its own product, v = A u / ||A u||, which tests where A is large. A block of several
    tensors has a third: random vectors whose parts are larger where the product was small, so that a fault in one
    tensor shows next to others of more curvature. Three to five products a block. Of blocks with as many parameters as
    the largest one, one vector and its product are held at a time; random vectors are drawn anew where they are needed.

    Args:
        known: key -> (P_b,) the product with :func:`start`, for blocks where that was made before; taken out of here.
    """
    known = {} if known is None else known
    measured: dict[str, Symmetry] = {}
    groups = in_groups(blocks, max((block.numel for block in blocks.values()), default=0))
    for group in sorted(groups, key=lambda group: known.keys().isdisjoint(group)):  # those first of which one is held
        measured |= _Pairs(data_pass, group, seed).measured({key: known.pop(key) for key in group if key in known})
    return {key: measured[key] for key in blocks}


class _Pairs:
    """The pairs <u, A v>, <v, A u> of some blocks."""

    def __init__(self, data_pass: DataPass, blocks: Mapping[str, Block], seed: int) -> None:
        self._pass, self._blocks, self._seed = data_pass, blocks, seed
        self._together = sum(block.numel for block in blocks.values())
        self._short: dict[tuple[str, int], Tensor] = {}
        self._factors: dict[str, Tensor] = {}  # by block, (tensors,) of scaled vectors

    def measured(self, applied: dict[str, Tensor]) -> dict[str, Symmetry]:
        """Of each block; ``applied``: the products with the first vector that are known, emptied here."""
        first = self._random(0, applied)
        steered = self._steered(applied, {key: norm for key, (norm, _, _) in first.items()})
        seconds = self._pass.seconds / len(self._blocks)
        second = self._random(1, {})
        found = {}
        for key, block in self._blocks.items():
            norm = _larger(first[key][0], second[key][0])
            asymmetry = _larger(steered[key], self._unequal(key, first[key][1], second[key][1], norm))
            if len(block.parameters) > 1:
                self._factors[key] = _factors(block, first[key][2] + second[key][2])
            found[key] = Symmetry(asymmetry, norm, seconds)
        scaled = [self._random(number, {}, self._factors) for number in (0, 1)] if self._factors else []
        for key in self._factors:
            one, other = (made[key] for made in scaled)
            own = self._unequal(key, one[1], other[1], _larger(one[0], other[0]))
            found[key] = replace(found[key], asymmetry=_larger(found[key].asymmetry, own))
        return found

    def _random(
        self, number: int, applied: dict[str, Tensor], factors: Mapping[str, Tensor] | None = None
    ) -> dict[str, tuple[float, float, Tensor]]:
        """By block, of the product A u_i with a random vector: its norm, its product with the other one, its squares.

        Args:
            applied: the products that are known; the others are put there. factors: of F A F, with this diagonal F.

        Returns:
            key -> (norm, <u_j, A u_i>, (tensors,) sums of squares).
        """
        blocks = {key: block for key, block in self._blocks.items() if factors is None or key in factors}
        asked = {
            key: Request(block, self._vector(key, number)[None]) for key, block in blocks.items() if key not in applied
        }
        if asked:
            applied |= {key: rows[0] for key, rows in self._pass.run(asked).items()}
        del asked
        found = {}
        for key, block in blocks.items():
            applied[key] = self._scaled(key, applied[key].double())
            cross = float(self._drawn(key, 1 - number) @ applied[key])
            squares = torch.stack([part.square().sum() for part in block.split(applied[key]).values()])
            found[key] = float(torch.linalg.vector_norm(applied[key])), cross, squares
        return found

    def _steered(self, applied: dict[str, Tensor], norms: Mapping[str, float]) -> dict[str, float]:
        """By block, the asymmetry of the first vector with its own product; ``applied``: those products, emptied."""
        rows = {key: applied.pop(key).div_(max(norms[key], 1e-300)) for key in self._blocks}
        asked = {key: Request(self._blocks[key], rows.pop(key)[None]) for key in self._blocks}
        made = self._pass.run(asked)
        del asked
        found = {}
        for key, norm in norms.items():
            form = float(self._drawn(key, 0) @ made.pop(key)[0])
            # In few dimensions u'Au may happen to be small, but never this and the length both.
            size = max(norm, abs(form))
            found[key] = abs(norm - form) / size if size > 0.0 else 0.0
        return found

    def _drawn(self, key: str, number: int) -> Tensor:
        """Not to be written into: short ones are kept."""
        if (kept := self._short.get((key, number))) is not None:
            return kept
        parameters = self._pass.objective.parameters
        drawn = start(self._blocks[key], key, self._seed, number, beside(self._blocks[key], parameters))
        if not is_large(self._together):
            self._short[key, number] = drawn
        return drawn

    def _vector(self, key: str, number: int) -> Tensor:
        drawn = self._drawn(key, number)
        return self._scaled(key, drawn.clone() if (key, number) in self._short else drawn)

    def _scaled(self, key: str, vector: Tensor) -> Tensor:
        """Each tensor's part times its factor, in place."""
        if key in self._factors:
            for part, factor in zip(self._blocks[key].split(vector).values(), self._factors[key], strict=True):
                part *= factor
        return vector

    def _unequal(self, key: str, one: float, other: float, length: float) -> float:
        if length == 0.0 or self._blocks[key].numel == 1:  # one dimension has no asymmetry
            return 0.0
        return abs(one - other) / length * math.sqrt(self._blocks[key].numel)


def start(block: Block, key: str, seed: int, number: int = 0, device: torch.device | None = None) -> Tensor:
    """The random unit vector (P_b,) that a block is multiplied by first; number 1 is the one beside it."""
    return random_unit(block.numel, seed, f"symmetry {key}", number, device)


def size_of_product(data_pass: DataPass, block: Block, seed: int) -> float:
    """||A u|| for a random unit u: :attr:`Symmetry.norm` without the check of symmetry."""
    u = start(block, block.name, seed, device=beside(block, data_pass.objective.parameters))
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


def _factors(block: Block, squares: Tensor) -> Tensor:
    """(tensors,) about 1/sqrt of the size of each tensor's part of a random product, 1 where that is rounding."""
    numbers = torch.tensor([shape.numel() for shape in block.shapes]).to(squares.device)
    rms = (squares / (2 * numbers)).sqrt()
    largest = rms.max()
    return torch.where(rms > 1e-6 * largest, torch.rsqrt(rms / largest), 1.0).clamp(1.0, LARGEST_SCALE)


def _larger(a: float, b: float) -> float:
    """NaN is the worst of all."""
    return a if math.isnan(a) or a > b else b

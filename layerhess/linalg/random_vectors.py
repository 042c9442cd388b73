"""Reproducible random vectors, which depend on a seed, a name and a number only; and the sign of a vector."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

SIGNS = 1  # a word of the seed that only random_signs adds


def random_unit(n: int, seed: int, name: str, draw: int, device: torch.device | None = None) -> Tensor:
    """A unit vector (n,) float64, uniform on the sphere; depends on (seed, name, draw) only.

    The block's name seeds the draw, not its position or a rank, so that adding blocks or processes changes nothing.
    """
    generator = np.random.default_rng([seed & 0xFFFFFFFF, zlib.crc32(name.encode()), draw])
    vector = torch.from_numpy(generator.standard_normal(n))
    vector /= torch.linalg.vector_norm(vector)
    return vector if device is None else vector.to(device)


def random_parts(sizes: Iterable[int], seed: int, name: str, draw: int) -> Iterator[Tensor]:
    """Random normal vectors of these sizes, float64: :func:`random_unit` in parts and not normalised.

    One after the other, for those who need not have all of it at once.
    """
    generator = np.random.default_rng([seed & 0xFFFFFFFF, zlib.crc32(name.encode()), draw])
    return (torch.from_numpy(generator.standard_normal(size)) for size in sizes)


def random_signs(n: int, seed: int, name: str, draw: int, device: torch.device | None = None) -> Tensor:
    """A Rademacher vector (n,) float64 of +1 and -1; depends on (seed, name, draw) only.

    Independent of :func:`random_unit` with the same arguments, and so of what a solver found from its random start.
    """
    generator = np.random.default_rng([seed & 0xFFFFFFFF, zlib.crc32(name.encode()), draw, SIGNS])
    signs = torch.from_numpy(generator.integers(0, 2, n, dtype=np.int8)).double().mul_(2.0).sub_(1.0)
    return signs if device is None else signs.to(device)


def oriented(vector: Tensor) -> Tensor:
    """The vector or its negative, so that its largest component (in absolute value) is positive."""
    return vector if vector[vector.abs().argmax()] >= 0 else -vector

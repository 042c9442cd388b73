"""Reproducible random vectors, which depend on a seed, a name and a number only; and the sign of a vector."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

NORMAL, SIGNS = 0, 1  # words of the seed
CHUNK = 1 << 20  # numbers that one generator draws: part of a long vector can be drawn without what is before it


def random_unit(n: int, seed: int, name: str, draw: int, device: torch.device | None = None) -> Tensor:
    """A unit vector (n,) float64, uniform on the sphere; depends on (seed, name, draw) only.

    The block's name seeds the draw, not its position or a rank, so that adding blocks or processes changes nothing.
    """
    vector = next(random_parts([n], seed, name, draw))
    vector /= torch.linalg.vector_norm(vector)
    return vector if device is None else vector.to(device)


def random_parts(sizes: Iterable[int], seed: int, name: str, draw: int) -> Iterator[Tensor]:
    """Random normal vectors of these sizes, float64: :func:`random_unit` in parts and not normalised.

    One after the other, for those who need not have all of it at once.
    """
    generators, left = _generators(seed, name, draw, NORMAL), 0
    for size in sizes:
        part, start = np.empty(size), 0
        while start < size:
            if not left:
                generator, left = next(generators), CHUNK
            count = min(left, size - start)
            generator.standard_normal(out=part[start : start + count])
            start, left = start + count, left - count
        yield torch.from_numpy(part)


def random_signs(n: int, seed: int, name: str, draw: int, device: torch.device | None = None) -> Tensor:
    """A Rademacher vector (n,) float64 of +1 and -1; depends on (seed, name, draw) only.

    Independent of :func:`random_unit` with the same arguments, and so of what a solver found from its random start.
    """
    signs = torch.empty(n, dtype=torch.float64)
    for part, generator in zip(torch.split(signs, CHUNK), _generators(seed, name, draw, SIGNS), strict=False):
        part.copy_(torch.from_numpy(generator.integers(0, 2, len(part), dtype=np.int8))).mul_(2.0).sub_(1.0)
    return signs if device is None else signs.to(device)


def _generators(seed: int, name: str, draw: int, kind: int) -> Iterator[np.random.Generator]:
    """One for each chunk of a vector."""
    words = [seed & 0xFFFFFFFF, zlib.crc32(name.encode()), draw]
    yield np.random.default_rng([*words, SIGNS] if kind == SIGNS else words)
    for chunk in itertools.count(1):
        yield np.random.default_rng([*words, kind, chunk])


def oriented(vector: Tensor) -> Tensor:
    """The vector or its negative, so that its largest component (in absolute value) is positive."""
    return vector if vector[vector.abs().argmax()] >= 0 else -vector

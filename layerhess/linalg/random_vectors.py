"""Flat block vectors: reproducible random draws, float64 inner products, conversion to parameter shapes."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from layerhess.errors import InputError
from layerhess.objective.blocks import Block

SIGNS = 1  # a word of the seed that only random_signs adds


def solver_device(device: torch.device) -> torch.device:
    """Where solver vectors live: with the model, unless the device has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def random_unit(n: int, seed: int, name: str, draw: int, device: torch.device | None = None) -> Tensor:
    """A unit vector (n,) float64, uniform on the sphere; depends on (seed, name, draw) only.

    The block's name, not its place or a rank, seeds the draw, so that adding blocks or processes changes nothing.
    """
    generator = np.random.default_rng([seed & 0xFFFFFFFF, zlib.crc32(name.encode()), draw])
    vector = torch.from_numpy(generator.standard_normal(n))
    vector /= torch.linalg.vector_norm(vector)
    return vector if device is None else vector.to(device)


def random_signs(n: int, seed: int, name: str, draw: int, device: torch.device | None = None) -> Tensor:
    """A Rademacher vector (n,) float64 of +1 and -1; depends on (seed, name, draw) only.

    Independent of :func:`random_unit` with the same arguments: what a solver found from its random start may stand
    beside these draws as a given.
    """
    generator = np.random.default_rng([seed & 0xFFFFFFFF, zlib.crc32(name.encode()), draw, SIGNS])
    signs = torch.from_numpy(generator.integers(0, 2, n, dtype=np.int8)).double().mul_(2.0).sub_(1.0)
    return signs if device is None else signs.to(device)


def flatten(block: Block, parts: Mapping[str, Tensor]) -> Tensor:
    """Parameter-shaped tensors to one flat (P_b,) vector.

    Raises:
        InputError: missing or extra names, or a wrong shape.
    """
    if set(parts) != set(block.parameters):
        odd = sorted(set(parts) ^ set(block.parameters))[:4]
        raise InputError(
            f"the vector's names are not those of block {block.name!r}",
            where=", ".join(odd),
            what_to_do="give one tensor per parameter of the block",
        )
    for name, shape in zip(block.parameters, block.shapes, strict=True):
        if parts[name].shape != shape:
            raise InputError(
                f"the vector has shape {tuple(parts[name].shape)} for {name!r}, whose shape is {tuple(shape)}",
                where=name,
                what_to_do="give each parameter's own shape",
            )
    return torch.cat([parts[name].reshape(-1) for name in block.parameters])


def check_flat(block: Block, vector: Tensor) -> Tensor:
    """The vector itself, if it is a flat (P_b,) tensor.

    Raises:
        InputError: otherwise.
    """
    if not isinstance(vector, Tensor) or vector.shape != (block.numel,):
        shape = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
        raise InputError(
            f"the vector for block {block.name!r} is {shape}, not a flat tensor of shape ({block.numel},)",
            where=block.name,
            what_to_do="flatten it in named_parameters() order",
        )
    return vector


def oriented(vector: Tensor) -> Tensor:
    """The vector or its negative, so that its largest component (in absolute value) is positive."""
    return vector if vector[vector.abs().argmax()] >= 0 else -vector

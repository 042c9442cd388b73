"""Directions in the space of parameters: given as tensors by name, or random and filter-normalised."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from layerhess.errors import InputError
from layerhess.linalg.random_vectors import random_parts
from layerhess.objective.objective import Objective

RANDOM = "random"
KEY = "(direction)"  # in the seeds of random directions
HOW = 'give a dict of tensors by parameter name, such as analysis.blocks[name].eigenvectors[0], or ("random", seed)'


def directions_of(given: Any) -> list[Any]:
    """One direction, or the two of a pair, as they were given.

    Raises:
        InputError: it is neither.
    """
    if _is_one(given):
        return [given]
    if isinstance(given, (tuple, list)) and len(given) == 2 and all(map(_is_one, given)):
        return list(given)
    raise InputError(f"the direction is {_kind(given)}", where="direction", what_to_do=HOW)


def _is_one(given: Any) -> bool:
    return isinstance(given, Mapping) or (isinstance(given, (tuple, list)) and given[:1] in ((RANDOM,), [RANDOM]))


def _kind(given: Any) -> str:
    if isinstance(given, (tuple, list)):
        return f"a {type(given).__name__} of {len(given)}"
    return repr(given) if isinstance(given, str) else type(given).__name__


def check_direction(given: Any, objective: Objective, within: Sequence[str]) -> None:
    """Look at a direction before any work.

    Raises:
        InputError: unknown names, wrong shapes, not finite, zero; no such parameters for a random one.
    """
    if not isinstance(given, Mapping):
        if len(given) != 2 or isinstance(given[1], bool) or not isinstance(given[1], Integral):
            raise InputError(f"a random direction is {tuple(given)!r}", where="direction", what_to_do=HOW)
        _moved(objective, within)
        return
    if not given:
        raise InputError("the direction has no tensor", where="direction", what_to_do=HOW)
    if unknown := [str(name) for name in given if name not in objective.parameters]:
        frozen = [name for name in unknown if name in objective.frozen]
        raise InputError(
            f"the direction has {'frozen' if frozen else 'unknown'} parameters: {', '.join((frozen or unknown)[:4])}",
            where="direction",
            what_to_do="call requires_grad_(True) on them before the Objective is made"
            if frozen
            else "use names of the objective's parameters, such as " + ", ".join(list(objective.parameters)[:4]),
        )
    for name, part in given.items():
        shape = objective.parameters[name].shape
        if not isinstance(part, Tensor) or not part.is_floating_point():
            raise InputError(
                f"the direction's {name!r} is no tensor of real numbers", where=f"direction, {name}", what_to_do=HOW
            )
        if part.shape != shape:
            raise InputError(
                f"the direction has shape {tuple(part.shape)} for {name!r}, whose shape is {tuple(shape)}",
                where=f"direction, {name}",
                what_to_do="give each parameter's own shape",
            )
        if not bool(torch.isfinite(part).all()):
            raise InputError(
                "the direction holds a NaN or an infinity", where=f"direction, {name}", what_to_do="repair it"
            )
    if not any(bool(part.any()) for part in given.values()):
        raise InputError("the direction is zero", where="direction", what_to_do="give one that moves some parameter")


def made(given: Any, objective: Objective, within: Sequence[str]) -> dict[str, Tensor]:
    """The direction as float64 tensors beside the parameters that it moves, in model order (in session)."""
    if isinstance(given, Mapping):
        return {
            name: given[name].detach().to(parameter.device, torch.float64)
            for name, parameter in objective.parameters.items()
            if name in given
        }
    return _filter_normalised(objective, int(given[1]), _moved(objective, within))


def title(given: Any) -> str:
    """What the direction is, in words."""
    if not isinstance(given, Mapping):
        return f"random, filter-normalised, seed {int(given[1])}"
    names = list(given)
    return names[0] if len(names) == 1 else f"{len(names)} tensors from {names[0]} to {names[-1]}"


def _moved(objective: Objective, within: Sequence[str]) -> list[str]:
    """Names of the parameters that a random direction moves: those with filters."""
    found = [n for n in objective.parameters if not within or any(fnmatch.fnmatchcase(n, glob) for glob in within)]
    moved = [name for name in found if objective.parameters[name].ndim >= 2]
    if not moved:
        raise InputError(
            f"no parameter of two or more dimensions is named {' or '.join(within)}"
            if within
            else "no parameter has two or more dimensions, and a random direction moves no others",
            where="within" if within else "direction",
            what_to_do="use names of the objective's parameters, such as " + ", ".join(list(objective.parameters)[:4]),
        )
    return moved


def _filter_normalised(objective: Objective, seed: int, names: Sequence[str]) -> dict[str, Tensor]:
    """Normal numbers, each filter of the length of the weights' own filter (Li et al. 2018, section 4).

    A filter is what makes one output: a row along dimension 0. Tensors of one dimension (biases, normalisations) stay
    where they are. A parameter's numbers depend on the seed and its name only.

    Raises:
        InputError: all filters are zero.
    """
    direction = {}
    for name in names:
        weights = objective.parameters[name].detach().double()
        (drawn,) = random_parts([weights.numel()], seed, KEY + name, 0)
        rows = drawn.reshape(weights.shape).to(weights.device).flatten(1)
        lengths = torch.linalg.vector_norm(weights.flatten(1), dim=1) / torch.linalg.vector_norm(rows, dim=1)
        direction[name] = (rows * lengths[:, None]).reshape(weights.shape)
    if not any(bool(part.any()) for part in direction.values()):
        raise InputError(
            "the direction is zero, since all filters are", where="direction", what_to_do="give a dict of tensors"
        )
    return direction

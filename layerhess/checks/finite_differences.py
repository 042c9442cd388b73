"""Checks that products of a network agree with finite differences of its gradients."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from layerhess.curvature.batch_graph import BatchGraph, GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.device import solver_device
from layerhess.curvature.double_backward.mode import Rewritten
from layerhess.curvature.gradient_sum import add_gradient
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.linalg.random_vectors import random_parts
from layerhess.objective.blocks import Block, is_large
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import kept_values

STEPS = (1e-3, 1e-4, 1e-5)  # relative to the size of each tensor
SMALL_STEPS = (1e-6, 1e-7, 1e-8)  # that cross few kinks
SHARP_STEPS = (1e-9, 1e-11)  # where no other step agrees: a saturated network may be curved in a narrow place
OFFSET = 1e-3  # away from the weights, where units at a kink (a zero bias on a blank image) have no derivative
AGREEMENT = 1e-4
ROUNDING = 10.0  # units in the last place of a gradient
UNSETTLED = 0.02  # relative error of a difference from which it tells nothing
NEARBY = "near the weights"  # the random direction to the place that is looked at
Move = Callable[[Mapping[str, Tensor], float], None]
Base = Callable[[], Iterable[tuple[str, Tensor]]]
QUIET = 1e-9  # times the largest block's product: may be rounding, and no difference of gradients can tell


def finite_differences(
    objective: Objective, batch: object, blocks: Mapping[str, Block], full: Block, seed: int, counters: Counters,
    kinks: bool = False, make_graph: GraphMaker = HessianGraph,
) -> tuple[dict[str, float], float]:  # fmt: skip
    """Compare the rows (H u)_b with central differences (g(theta + r u) - g(theta - r u))_b / 2r.

    Run on a float64 copy of the model, whose weights it moves. |F(2r) - F(r)| tracks the error of F(r), so a block is
    judged only at a step where that is small, and fails only if no step agrees. Each tensor moves in proportion to its
    own size, since parameters may differ by many orders of magnitude.

    Before anything fails, :data:`SHARP_STEPS` are tried. They must have less error, and can only acquit.

    A network with kinks is looked at near its weights, with steps so small that a kink is seldom crossed; where one is,
    the step's error is large.

    Args:
        objective: a float64 copy, in session. batch: a float64 sample. blocks: to compare. full: the tensors that move,
            theirs among them. kinks: the network has some. make_graph: makes the Hessian's graphs.

    Returns:
        (block -> relative disagreement beyond what the step explains, largest step error among the judged blocks).
        Blocks without a usable step are absent.
    """
    names = list(full.parameters)
    with movable(objective, nearby(objective, full, seed) if kinks else None) as move:
        direction = scaled_direction(objective, full, seed)
        exact = _product(make_graph(objective, batch, names, counters), direction)
        products = {key: _norm(exact, block) for key, block in blocks.items()}
        quiet = QUIET * max(products.values(), default=0.0)
        judged: dict[str, float] = {}
        worst_step = 0.0
        for step in (*(SMALL_STEPS if kinks else STEPS), *SHARP_STEPS):
            sharp = step in SHARP_STEPS
            most = AGREEMENT if sharp else UNSETTLED
            if sharp and all(off <= AGREEMENT for off in judged.values()):
                break
            seen = _differences(objective, batch, names, exact, step, functools.partial(move, direction), counters)
            settled = True
            for key, block in blocks.items():
                if judged.get(key, 0.0 if sharp else 1.0) <= AGREEMENT:
                    continue
                own = _Differences(*(_together(norms, block) for norms in seen))
                size = max(products[key], own.near)
                # The gradient behind saturated outputs is the same number on both sides: no error, and nothing seen.
                noise = ROUNDING * torch.finfo(torch.float64).eps * own.gradient / step
                error = max(own.error, noise)
                off = None if size <= quiet else beyond_error(own.away, error, size, most=most)
                if off is None or (sharp and off > AGREEMENT):  # those steps acquit, or tell nothing
                    settled &= size <= quiet
                    continue
                judged[key] = min(judged.get(key, math.inf), off)
                worst_step = max(worst_step, error / size)
                settled &= judged[key] <= AGREEMENT
            if settled:
                break
    return judged, worst_step


def beyond_error(off: float, error: float, size: float, noise: float = 0.0, most: float = UNSETTLED) -> float | None:
    """A disagreement beyond what the step's error explains, relative; None where the step tells nothing.

    Args:
        off: between what is judged and F(r). error: |F(2r) - F(r)|, which tracks the error of F(r). size: of both.
            noise: of F(r), by rounding. most: of the error and noise together, relative.
    """
    told = size > 0.0 and error + noise <= most * size  # not so where a product is NaN
    return max(0.0, off - 3.0 * error) / size if told else None


def scaled_direction(
    objective: Objective, full: Block, seed: int, name: str = "finite differences", draw: int = 0
) -> dict[str, Tensor]:
    """A random direction, each tensor's part beside it and as long; padding rows of an embedding stay.

    Args:
        name, draw: as for :func:`layerhess.linalg.random_vectors.random_unit`.
    """
    return dict(scaled_parts(objective, full, seed, name, draw))


def scaled_parts(
    objective: Objective, full: Block, seed: int, name: str, draw: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """:func:`scaled_direction` in float64, one tensor after the other."""
    sizes = norms({name: objective.parameters[name].detach() for name in full.parameters})
    smallest = min((size for size in sizes.values() if size > 0.0), default=1.0)
    padding = {
        id(module.weight): module.padding_idx
        for module in objective.model.modules()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None
    }
    drawn = random_parts([shape.numel() for shape in full.shapes], seed, name, draw)
    for own, shape, flat in zip(full.parameters, full.shapes, drawn, strict=True):
        parameter = objective.parameters[own]
        part = flat.view(shape).to(solver_device(parameter.device))
        if (row := padding.get(id(parameter))) is not None:
            part[row] = 0.0  # autograd treats the padding row as a constant: do not move it
        part *= (sizes[own] or smallest) / max(float(torch.linalg.vector_norm(part)), 1e-300)
        yield own, part


def nearby(objective: Objective, full: Block, seed: int, place: int = 0) -> Base:
    """Makes the direction to one of the random places near the weights, where they are now."""
    if is_large(full.numel):
        return functools.partial(scaled_parts, objective, full, seed, NEARBY, place)
    parts = list(scaled_parts(objective, full, seed, NEARBY, place))
    return lambda: parts


def norms(parts: Mapping[str, Tensor]) -> dict[str, float]:
    """Euclidean norms of many tensors, in one call of the kind that torch's optimisers use."""
    found = torch._foreach_norm(list(parts.values()))
    return dict(zip(parts, torch.stack([norm.to(found[0].device) for norm in found]).tolist(), strict=True))


@contextmanager
def movable(objective: Objective, base: Base | None = None, origin: bool = True) -> Iterator[Move]:
    """Run the body, in which the weights move; then put their values back bit by bit.

    Nothing of a model's length is held for that where the objective is a copy, whose weights can be made again.

    Args:
        base: makes a direction, :data:`OFFSET` of which is added to the weights in the body. origin: a copy's weights
            are those that it was made of.

    Yields:
        move(direction, step): put the weights where they were plus base, and ``step`` times ``direction`` from there.
    """
    tensors: list[Tensor] = list(objective.parameters.values())
    source = objective.origin.values() if origin and objective.origin is not None else None
    with kept_values(tensors, source) as values:

        def move(direction: Mapping[str, Tensor], step: float) -> None:
            with torch.no_grad():
                torch._foreach_copy_(tensors, values)
                for name, part in () if base is None else base():
                    objective.parameters[name].add_(part.to(objective.parameters[name]), alpha=OFFSET)
                for name, part in direction.items():
                    objective.parameters[name].add_(part.to(objective.parameters[name]), alpha=step)

        if base is not None:
            move({}, 0.0)
        yield move


@contextmanager
def displaced(objective: Objective, direction: Mapping[str, Tensor], step: float) -> Iterator[None]:
    """Add ``step`` times ``direction`` to the parameters, and put their values back bit by bit."""
    with movable(objective) as move:
        move(direction, step)
        yield


class _Differences(NamedTuple):
    """Norms, of each tensor or of some together.

    Attributes:
        gradient: on one side. near: of F(r). away: of F(r) less the product. error: of F(2r) less F(r).
    """

    gradient: Any
    near: Any
    away: Any
    error: Any


def _differences(
    objective: Objective, batch: object, names: Sequence[str], exact: Mapping[str, Tensor | None], step: float,
    move: Callable[[float], None], counters: Counters,
) -> _Differences:  # fmt: skip
    """By tensor, what the central differences F(r) and F(2r) of the gradient show.

    All is made in one vector: F(r) first, then F(r) - F(2r).

    Args:
        exact: the product that is judged. move: puts the weights so many steps from where they were.
    """
    moving = {name: objective.parameters[name] for name in names}
    seen = _Differences({}, {}, {}, {})
    total: dict[str, Tensor] = {}
    for factor, weight in ((1.0, 1.0), (-1.0, -1.0), (2.0, -0.5), (-2.0, 0.5)):
        move(factor * step)
        with Rewritten():  # as in products: torch's own derivative may be wrong where a loss differentiates
            loss, _ = objective.terms(batch)
        add_gradient(loss, moving, total, weight / (2.0 * step))
        counters.count("forwards")
        counters.count("backwards")
        if factor == 1.0:
            seen.gradient.update({name: 2.0 * step * _size(total.get(name)) for name in names})
        if factor == -1.0:
            seen.near.update({name: _size(total.get(name)) for name in names})
            seen.away.update({name: _size(_minus(total.get(name), exact[name])) for name in names})
    seen.error.update({name: _size(total.get(name)) for name in names})
    move(0.0)
    return seen


def _product(graph: BatchGraph, direction: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    names = list(direction)
    return dict(zip(names, graph.product(names, dict(direction)), strict=True))


def _minus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else (-b if a is None else a - b)


def _size(part: Tensor | None) -> float:
    return 0.0 if part is None else float(torch.linalg.vector_norm(part.detach()))


def _norm(parts: Mapping[str, Tensor | None], block: Block) -> float:
    return _together({name: _size(parts[name]) for name in block.parameters}, block)


def _together(sizes: Mapping[str, float], block: Block) -> float:
    """The norm of a block from those of its tensors."""
    return math.hypot(*(sizes[name] for name in block.parameters))

"""Checks that products of a network agree with finite differences of its gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.double_backward.mode import Rewritten
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective.blocks import Block
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
    if kinks:
        with displaced(objective, scaled_direction(objective, full, seed, NEARBY), OFFSET):
            return _compared(objective, batch, blocks, full, seed, counters, SMALL_STEPS, make_graph)
    return _compared(objective, batch, blocks, full, seed, counters, STEPS, make_graph)


def _compared(
    objective: Objective, batch: object, blocks: Mapping[str, Block], full: Block, seed: int, counters: Counters,
    steps: Sequence[float], make_graph: GraphMaker,
) -> tuple[dict[str, float], float]:  # fmt: skip
    direction = scaled_direction(objective, full, seed)
    names = list(direction)
    graph = make_graph(objective, batch, names, counters)
    exact = dict(zip(names, graph.product(names, direction), strict=True))
    products = {key: _norm(exact, block) for key, block in blocks.items()}
    quiet = QUIET * max(products.values(), default=0.0)
    judged: dict[str, float] = {}
    worst_step = 0.0
    for step in (*steps, *SHARP_STEPS):
        sharp = step in SHARP_STEPS
        most = AGREEMENT if sharp else UNSETTLED
        if sharp and all(off <= AGREEMENT for off in judged.values()):
            break
        near, gradient = _difference(objective, batch, direction, step, counters)
        far, _ = _difference(objective, batch, direction, 2.0 * step, counters)
        settled = True
        for key, block in blocks.items():
            if judged.get(key, 0.0 if sharp else 1.0) <= AGREEMENT:
                continue
            size = max(products[key], _norm(near, block))
            # The gradient behind saturated outputs is the same number on both sides: no error, and nothing seen.
            noise = ROUNDING * torch.finfo(torch.float64).eps * _norm(gradient, block) / step
            error = max(_norm(_minus(far, near), block), noise)
            away = _norm(_minus(exact, near), block)
            off = None if size <= quiet else beyond_error(away, error, size, most=most)
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
    drawn = full.split(random_unit(full.numel, seed, name, draw))
    parts = {name: part.to(objective.parameters[name].device) for name, part in drawn.items()}
    sizes = norms({name: objective.parameters[name].detach() for name in parts})
    for module in objective.model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            for name, parameter in objective.parameters.items():
                # Autograd treats the padding row as a constant: do not move it.
                if parameter is module.weight and name in parts:
                    row = torch.tensor(module.padding_idx, device=parameter.device)
                    parts[name] = parts[name].index_fill(0, row, 0.0)
    smallest = min((size for size in sizes.values() if size > 0.0), default=1.0)
    lengths = norms(parts)
    return {name: part * ((sizes[name] or smallest) / max(lengths[name], 1e-300)) for name, part in parts.items()}


def norms(parts: Mapping[str, Tensor]) -> dict[str, float]:
    """Euclidean norms of many tensors, in one call of the kind that torch's optimisers use."""
    found = torch._foreach_norm(list(parts.values()))
    return dict(zip(parts, torch.stack([norm.to(found[0].device) for norm in found]).tolist(), strict=True))


@contextmanager
def displaced(objective: Objective, direction: Mapping[str, Tensor], step: float) -> Iterator[None]:
    """Add ``step`` times ``direction`` to the parameters, and put their values back bit by bit."""
    parameters: list[Tensor] = [objective.parameters[name] for name in direction]
    with kept_values(parameters):
        with torch.no_grad():
            parts = [part.to(parameter) for part, parameter in zip(direction.values(), parameters, strict=True)]
            torch._foreach_add_(parameters, parts, alpha=step)
        yield


def _difference(
    objective: Objective, batch: object, direction: Mapping[str, Tensor], step: float, counters: Counters
) -> tuple[dict[str, Tensor | None], dict[str, Tensor | None]]:
    """(the central difference of the gradient, the gradient on one side)."""
    sides = []
    moving = [objective.parameters[name] for name in direction]
    for sign in (1.0, -1.0):
        with displaced(objective, direction, sign * step):
            with Rewritten():  # as in products: torch's own derivative may be wrong where a loss differentiates
                loss, _ = objective.terms(batch)
            sides.append(torch.autograd.grad(loss, moving, allow_unused=True))
        counters.count("forwards")
        counters.count("backwards")
    difference = {
        name: None if plus is None or minus is None else (plus - minus) / (2.0 * step)
        for name, plus, minus in zip(direction, *sides, strict=True)
    }
    return difference, dict(zip(direction, sides[0], strict=True))


def _minus(a: Mapping[str, Tensor | None], b: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    result: dict[str, Tensor | None] = {}
    for name, left in a.items():
        right = b[name]
        result[name] = left if right is None else (-right if left is None else left - right)
    return result


def _norm(parts: Mapping[str, Tensor | None], block: Block) -> float:
    squares = [float(part.detach().square().sum()) for name in block.parameters if (part := parts[name]) is not None]
    return math.sqrt(sum(squares))

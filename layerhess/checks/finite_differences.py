"""Checks that products of a smooth network agree with finite differences of its gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from layerhess.curvature.counters import Counters
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective.blocks import Block
from layerhess.objective.objective import Objective

STEPS = (1e-3, 1e-4, 1e-5)  # relative to the size of each tensor
AGREEMENT = 1e-4


def finite_differences(
    objective: Objective, batch: object, blocks: Mapping[str, Block], full: Block, seed: int, counters: Counters
) -> tuple[dict[str, float], float]:
    """Compare the rows (H u)_b with central differences (g(theta + r u) - g(theta - r u))_b / 2r.

    Run on a float64 copy of the model, whose weights it moves. |F(2r) - F(r)| tracks the error of F(r), so a block is
    judged only at a step where that is small, and fails only if no step agrees. Each tensor moves in proportion to its
    own size, since parameters may differ by many orders of magnitude.

    Args:
        objective: a float64 copy, in session. batch: a float64 sample. blocks, full: of the model.

    Returns:
        (block -> relative disagreement beyond what the step explains, largest step error among the judged blocks).
        Blocks without a usable step are absent.
    """
    direction = scaled_direction(objective, full, seed)
    names = list(objective.parameters)
    graph = HessianGraph(objective, batch, names, counters)
    exact = dict(zip(names, graph.product(names, direction), strict=True))
    judged: dict[str, float] = {}
    worst_step = 0.0
    for step in STEPS:
        near = _difference(objective, batch, direction, step, counters)
        far = _difference(objective, batch, direction, 2.0 * step, counters)
        for key, block in blocks.items():
            if judged.get(key, 1.0) <= AGREEMENT:
                continue
            product = _norm(exact, block)
            error = _norm(_minus(far, near), block)
            if product == 0.0 or error > 0.02 * product:
                continue
            disagreement = _norm(_minus(exact, near), block)
            judged[key] = min(judged.get(key, math.inf), max(0.0, disagreement - 3.0 * error) / product)
            worst_step = max(worst_step, error / product)
        if len(judged) == len(blocks) and max(judged.values()) <= AGREEMENT:
            break
    return judged, worst_step


def scaled_direction(objective: Objective, full: Block, seed: int) -> dict[str, Tensor]:
    """A random direction, each tensor's part as long as the tensor; padding rows of an embedding stay."""
    parts = full.split(random_unit(full.numel, seed, "finite differences", 0, objective.device))
    sizes = {name: float(torch.linalg.vector_norm(p.detach())) for name, p in objective.parameters.items()}
    for module in objective.model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            for name, parameter in objective.parameters.items():
                if parameter is module.weight:  # autograd treats the padding row as a constant: do not move it
                    parts[name] = parts[name].index_fill(0, torch.tensor(module.padding_idx), 0.0)
    smallest = min((size for size in sizes.values() if size > 0.0), default=1.0)
    return {
        name: part * ((sizes[name] or smallest) / max(float(torch.linalg.vector_norm(part)), 1e-300))
        for name, part in parts.items()
    }


def _difference(
    objective: Objective, batch: object, direction: Mapping[str, Tensor], step: float, counters: Counters
) -> dict[str, Tensor | None]:
    sides = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for name, parameter in objective.parameters.items():
                parameter.add_(direction[name], alpha=sign * step)
        loss, _ = objective.terms(batch)
        parameters = list(objective.parameters.values())
        sides.append(torch.autograd.grad(loss, parameters, allow_unused=True))
        counters.count("forwards")
        counters.count("backwards")
        with torch.no_grad():
            for name, parameter in objective.parameters.items():
                parameter.add_(direction[name], alpha=-sign * step)
    return {
        name: None if plus is None or minus is None else (plus - minus) / (2.0 * step)
        for name, plus, minus in zip(objective.parameters, *sides, strict=True)
    }


def _minus(a: Mapping[str, Tensor | None], b: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    result: dict[str, Tensor | None] = {}
    for name, left in a.items():
        right = b[name]
        result[name] = left if right is None else (-right if left is None else left - right)
    return result


def _norm(parts: Mapping[str, Tensor | None], block: Block) -> float:
    squares = [float(part.detach().square().sum()) for name in block.parameters if (part := parts[name]) is not None]
    return math.sqrt(sum(squares))

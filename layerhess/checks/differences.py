"""On a smooth net, products must agree with finite differences of gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from layerhess.blocks import Block
from layerhess.ledger import Ledger
from layerhess.objective import Objective
from layerhess.products.reverse import BatchGraph
from layerhess.vectors import random_unit

STEPS = (1e-3, 1e-4, 1e-5)  # relative to ||theta||
AGREEMENT = 1e-4


def finite_differences(
    objective: Objective, batch: object, blocks: Mapping[str, Block], full: Block, seed: int, ledger: Ledger
) -> tuple[dict[str, float], float]:
    """Compare the rows (H u)_b with central differences (g(theta + r u) - g(theta - r u))_b / 2r.

    Run on a float64 copy of the model, whose weights it moves. |F(2r) - F(r)| tracks the error of F(r), so a block is
    judged only at a step where that is small.

    Args:
        objective: a float64 copy, in session. batch: a float64 sample. blocks, full: of the model.

    Returns:
        (block -> relative disagreement beyond what the step explains, largest step error among the judged blocks).
        Blocks without a usable step are absent.
    """
    direction = full.split(random_unit(full.numel, seed, "finite differences", 0, objective.device))
    names = list(objective.parameters)
    graph = BatchGraph(objective, batch, names, ledger)
    exact = dict(zip(names, graph.product(names, direction), strict=True))
    size = max(1.0, float(torch.sqrt(sum(p.detach().square().sum() for p in objective.parameters.values()))))  # type: ignore[arg-type]
    judged: dict[str, float] = {}
    worst_step = 0.0
    for step in STEPS:
        near = _difference(objective, batch, direction, step * size, ledger)
        far = _difference(objective, batch, direction, 2.0 * step * size, ledger)
        for key, block in blocks.items():
            if key in judged:
                continue
            product = _norm(exact, block)
            error = _norm(_minus(far, near), block)
            if product == 0.0 or error > 0.02 * product:
                continue
            disagreement = _norm(_minus(exact, near), block)
            judged[key] = max(0.0, disagreement - 3.0 * error) / product
            worst_step = max(worst_step, error / product)
    return judged, worst_step


def _difference(
    objective: Objective, batch: object, direction: Mapping[str, Tensor], step: float, ledger: Ledger
) -> dict[str, Tensor | None]:
    sides = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for name, parameter in objective.parameters.items():
                parameter.add_(direction[name], alpha=sign * step)
        loss, _ = objective.terms(batch)
        parameters = list(objective.parameters.values())
        sides.append(torch.autograd.grad(loss, parameters, allow_unused=True))
        ledger.count("forwards")
        ledger.count("backwards")
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

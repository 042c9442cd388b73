"""Checks products with the Jacobian J of an output: against its transpose, and against finite differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from layerhess.checks.finite_differences import (
    AGREEMENT,
    SHARP_STEPS,
    STEPS,
    UNSETTLED,
    beyond_error,
    displaced,
    scaled_direction,
)
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.output_graph import OutputGraph
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective.blocks import Block
from layerhess.objective.objective import Objective

ROUNDED = 30.0  # times eps and the largest tensor's product: rounding in that of another
CANCELLED = 1e6  # the same in float64, which decides: what is left of a bias before a norm, see symmetry.noise_level


def disagreements(
    objective: Objective, batch: Any, names: Sequence[str], make_graph: GraphMaker, seed: int, counters: Counters
) -> dict[str, float]:
    """For each tensor, how far <J v, J v> and <J' J v, v> are apart, relative, beyond what rounding explains.

    J' S J is symmetric with any J, right or wrong, as long as the same one is on both sides. J' is a plain backward
    pass and J is made by differentiating it; where a second derivative is wrong, they are not transposes.

    Returns:
        parameter -> relative difference; those the output does not depend on are absent.
    """
    graph = _made(make_graph, objective, batch, names, counters)
    pairs: dict[str, tuple[float, float]] = {}
    for name in names:
        parameter = objective.parameters[name]
        drawn = random_unit(parameter.numel(), seed, f"transpose {name}", 0, parameter.device)
        v = drawn.view(parameter.shape).to(parameter.dtype).to(parameter.device)
        moved = graph.push_forward({name: v})
        back = None if moved is None else graph.pull_back([name], moved)[name]
        if moved is not None and back is not None:
            pairs[name] = float(moved.double().square().sum()), float((back.double() * v.double()).sum())
    largest = max((math.sqrt(length) for length, _ in pairs.values()), default=0.0)
    eps = torch.finfo(objective.dtype).eps
    share = CANCELLED if objective.dtype == torch.float64 else ROUNDED
    figures = {}
    for name, (length, form) in pairs.items():
        noise = share * eps * (largest / max(math.sqrt(length), 1e-300) - 1.0)  # more of it in weaker tensors
        figures[name] = max(0.0, abs(length - form) / max(length, abs(form), 1e-300) - noise)
        if math.isnan(length) or math.isnan(form):
            figures[name] = math.inf
    return figures


class Moves:
    """J v against central differences of the output, on a float64 copy whose weights are moved and put back.

    The step adapts as for :func:`layerhess.checks.finite_differences.finite_differences`: a disagreement counts only
    where |F(2r) - F(r)|, which tracks the error of F(r), is small, and beyond three times that.

    Attributes:
        error: the step error of the latest answer, relative.
    """

    def __init__(
        self, objective: Objective, batch: Any, full: Block, make_graph: GraphMaker, seed: int, counters: Counters
    ) -> None:
        self._objective, self._batch, self._make_graph, self._counters = objective, batch, make_graph, counters
        self._direction = scaled_direction(objective, full, seed)
        self.error = 0.0

    def disagreement(self, names: Sequence[str]) -> float | None:
        """Relative, when the named tensors move together; None if no step can tell."""
        part = {name: self._direction[name] for name in names}
        # Made again each time: moving a weight, even there and back, invalidates the graphs that hold it.
        graph = _made(self._make_graph, self._objective, self._batch, names, self._counters)
        product = graph.push_forward(part)
        size = 0.0 if product is None else float(torch.linalg.vector_norm(product))
        found: float | None = None
        for step in (*STEPS, *SHARP_STEPS):
            sharp = step in SHARP_STEPS
            if product is None or size == 0.0 or (sharp and found is None):
                break
            near, far = self._difference(part, step), self._difference(part, 2.0 * step)
            error = float(torch.linalg.vector_norm(far - near))
            off = beyond_error(
                float(torch.linalg.vector_norm(product - near)), error, size, most=AGREEMENT if sharp else UNSETTLED
            )
            if off is None or (sharp and off > AGREEMENT):
                continue
            if found is None or off < found:
                found, self.error = off, error / size
            if found <= AGREEMENT:
                break
        return found

    def _difference(self, part: dict[str, Tensor], step: float) -> Tensor:
        sides = []
        for sign in (1.0, -1.0):
            with displaced(self._objective, part, sign * step):
                graph = _made(self._make_graph, self._objective, self._batch, [], self._counters)
                sides.append(graph.output.detach().clone())
        return (sides[0] - sides[1]) / (2.0 * step)


def _made(
    make_graph: GraphMaker, objective: Objective, batch: Any, names: Sequence[str], counters: Counters
) -> OutputGraph:
    graph = make_graph(objective, batch, names, counters)
    assert isinstance(graph, OutputGraph)
    return graph

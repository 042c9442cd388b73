"""Chooses the steps of differences of gradients: by |F(2r) - F(r)|, which tracks the error of F(r), on the sample."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from layerhess.checks.symmetry import start
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL, DataPass, Request
from layerhess.curvature.device import beside
from layerhess.curvature.difference_graph import Differences
from layerhess.objective.blocks import Block
from layerhess.objective.objective import Objective

APART = 4.0  # from one step to the next
TRIES = 4  # in one direction
ENOUGH = {torch.float64: 1e-8, torch.float32: 3e-5}  # no other step is tried below this error
TOLERANCE = 1e-2  # of a block's products, above which they are refused
QUIET = 1e-5  # times the full product: an error below that is rounding of the whole model's gradient


def choose_steps(
    objective: Objective, blocks: Mapping[str, Block], full: Block, make: Differences, seed: int, counters: Counters
) -> dict[str, float]:
    """Choose one step a block, with a random vector; ``make`` has steps and errors afterwards.

    Longer steps have more of the third derivative and cross more kinks; shorter ones leave less of the gradients'
    digits. The error is overstated by a factor of up to three where it is the former.

    Args:
        objective: on the sample, in session. blocks: those to analyse. full: of all parameters; done too.

    Returns:
        key -> relative error, for the blocks whose error exceeds :data:`TOLERANCE`.
    """
    everything = {FULL: full, **blocks}
    size = 0.0
    refused = {}
    for key, block in everything.items():
        error, length = _chosen(objective, block, key, make, seed, counters)
        size = size or length
        relative = error / length if length > 0.0 else 0.0
        make.errors[block.parameters] = relative
        # NaN counts as too much. What is nothing beside the model's other blocks may be zero: solvers will see.
        if not relative <= TOLERANCE and not error <= QUIET * size:
            refused[key] = relative
    return refused


def _chosen(
    objective: Objective, block: Block, key: str, make: Differences, seed: int, counters: Counters
) -> tuple[float, float]:
    """(absolute error, length of the product) at the best step, which ``make`` has then."""
    vector = start(block, key, seed, device=beside(block, objective.parameters))
    usual = make.usual(objective.dtype)
    best = step, (error, length) = usual, _tried(objective, block, vector, usual, make, counters)
    # A kink that a short step crosses costs 1 / r, but few do. Where none is, a longer step looks better by luck.
    for factor in (1.0 / APART, APART) if make.smooth else (1.0 / APART,):
        for number in range(1, TRIES):
            if best[1][0] <= ENOUGH.get(objective.dtype, 0.0) * best[1][1]:
                break
            step = usual * factor**number
            error, length = _tried(objective, block, vector, step, make, counters)
            if not error < best[1][0]:
                break
            best = step, (error, length)
        if best[0] != usual:
            break
    make.steps[block.parameters] = best[0]
    return best[1]


def _tried(
    objective: Objective, block: Block, vector: Tensor, step: float, make: Differences, counters: Counters
) -> tuple[float, float]:
    make.steps[block.parameters] = step
    near, far = (
        DataPass(objective, list(block.parameters), counters, make_graph=one).run({"": Request(block, vector[None])})[
            ""
        ]
        for one in (make, make.doubled())
    )
    error = float(torch.linalg.vector_norm(far.sub_(near)))
    return (error if math.isfinite(error) else math.inf), float(torch.linalg.vector_norm(near))

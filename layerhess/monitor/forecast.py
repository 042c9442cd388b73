"""What the first point is going to cost, from one gradient of one batch."""

from __future__ import annotations

import torch

from layerhess.curvature.counters import Counters
from layerhess.curvature.device import synchronise
from layerhess.monitor.tracking import LEAST
from layerhess.objective import batches
from layerhess.objective.objective import Objective

GRAPH, FULL_PRODUCT, BLOCK_PRODUCT = 2.5, 2.1, 1.1  # gradients that these take
CHECKS, SAMPLE_CHECKS = 5.0, 30.0  # and those of a check: on all data, on a sample
SAMPLE = 256  # examples; fewer are their own sample
TIMED = 64  # examples that are timed
COST = 10.0  # steps of a training that this takes, at a guess


def first_point(objective: Objective, blocks: int, full: int) -> tuple[float, float]:
    """Seconds of a first point, and of its checks besides (in session); it need be right but for a factor of two.

    The gradient of a few examples is timed; data of unknown length counts as one batch.

    Args:
        blocks, full: how many blocks are followed, and how many matrices of the whole model.
    """
    batch = next(objective.batches(), None)
    if batch is None:
        return 0.0, 0.0
    number = _number(objective, batch)
    size = batches.leading_size(batch)
    timed = batches.spread_slice(batch, TIMED) if size is not None and size > TIMED else batch
    gradient = _seconds(objective, timed) * number * max(1.0, (size or 1) / TIMED)
    products = 2 * LEAST * (BLOCK_PRODUCT * blocks + FULL_PRODUCT * full)
    examples = (size or 1) * number
    checks = CHECKS + SAMPLE_CHECKS * min(1.0, SAMPLE / examples)
    return (GRAPH + products) * gradient, checks * gradient


def _seconds(objective: Objective, batch: object) -> float:
    """Of a batch's gradient."""
    clock, taken = Counters().clock, []
    for _ in range(2):  # the first one may wait for what is loaded late
        synchronise(*objective.devices)
        start = clock()
        loss, _ = objective.terms(batch)
        if loss.requires_grad:
            torch.autograd.grad(loss, list(objective.parameters.values()), allow_unused=True)
        synchronise(*objective.devices)
        taken.append(clock() - start)
    return min(taken)


def _number(objective: Objective, first: object) -> float:
    """How many batches like the first one there are."""
    data, own = objective.data, batches.leading_size(first)
    if batches.is_single(data):
        whole = batches.leading_size(data)
        return whole / own if whole and own and objective.batch_size else 1.0
    try:
        return float(len(data))
    except TypeError:
        return 1.0

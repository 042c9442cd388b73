"""May batches go through the model together? Two are held against both by themselves, then all data against all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from layerhess.checks.mean import compared, tolerance
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL, DataPass, Request
from layerhess.curvature.device import beside
from layerhess.curvature.factors.mixed_graph import MixedGraphs
from layerhess.curvature.gradient_sum import add_gradient
from layerhess.errors import first_line
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective import batches
from layerhess.objective.blocks import Block, make_block
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import moved, preserved_random_state, random_states

CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative: of a product's part; of a loss a tenth
ONE_BY_ONE = "small batches were processed one by one"
BESIDE = 1e-2  # of the whole product, for a part that is small beside it


def why_apart(objective: Objective, pair: Sequence[Any]) -> str:
    """Why two batches must not be joined, for the middle of a sentence; "" if they may be (in session).

    Loss, count and gradient of both together are held against the sums over the two, at these weights and at moved
    ones: at one point they may agree by accident, as behind a head of zeros.

    Args:
        pair: two prepared batches that are alike, see :func:`layerhess.objective.batches.shared_rows`.
    """
    with preserved_random_state():
        before = random_states()
        try:
            together = batches.joined(pair)
            if together is None:
                return "they are not alike"
            why = _differing(objective, together, pair)
            with moved(objective.parameters.values()):
                why = why or _differing(objective, together, pair)
        except Exception as error:  # user code that takes no such batch can raise anything
            return f"together they fail: {first_line(error)}"
        return why or ("the model draws random numbers" if random_states() != before else "")


def why_not_whole(objective: Objective, together: Objective, make_graph: GraphMaker, asked: Sequence[Block]) -> str:
    """Why the data's batches were not joined, as a sentence; "" if they may be (in session, on all ranks).

    Two batches say nothing of the others. So the loss of all data and a product of all blocks with a random vector are
    compared, joined and apart, at moved weights. The product sees what has neither a value nor a slope at the weights.

    Args:
        together: the objective with joined batches. make_graph: as for the passes. asked: blocks.
    """
    exact = make_graph.exact if isinstance(make_graph, MixedGraphs) else make_graph
    names = list(dict.fromkeys(name for block in asked for name in block.parameters))
    block = make_block(FULL, {name: objective.parameters[name] for name in names})
    vector = random_unit(block.numel, 0, "joined", 0, beside(block, objective.parameters))[None]

    def found(of: Objective) -> tuple[str, float, Tensor]:
        data_pass = DataPass(of, names, Counters(), make_graph=exact)
        product = data_pass.run({FULL: Request(block, vector)})[FULL][0]
        return data_pass.note, data_pass.loss_sum, product

    try:
        with preserved_random_state(), moved(objective.parameters.values()):
            (failed, loss, product), (_, apart, own) = found(together), found(objective)
    except Exception as error:  # as above
        return f"{ONE_BY_ONE}: they fail at moved weights: {first_line(error)}"
    if failed:
        return failed
    close = CLOSE[objective.dtype]
    if not abs(loss - apart) <= 0.1 * close * abs(apart):
        return f"{ONE_BY_ONE}: the loss of all of them together is not the sum over them"
    whole = BESIDE * float(torch.linalg.vector_norm(own))
    parts, differences = block.split(own[None]), block.split((product - own)[None])
    wrong = [
        name
        for name, part in parts.items()
        if not float(torch.linalg.vector_norm(differences[name]))
        <= close * (float(torch.linalg.vector_norm(part)) + whole)
    ]
    return f"{ONE_BY_ONE}: a product with {wrong[0]} of all of them together is not the sum over them" if wrong else ""


def _differing(objective: Objective, together: Any, pair: Sequence[Any]) -> str:
    """What of both together is not the sum over the two, or is not finite; "" if nothing."""
    difference: dict[str, Tensor] = {}  # of gradients, beside which there is one more at a time
    size = 0.0

    def judge(batch: Any, weight: float = -1.0) -> tuple[Tensor, float]:
        nonlocal size
        loss, count = objective.terms(batch)
        own: dict[str, Tensor] = {}
        if loss.requires_grad:
            add_gradient(loss, objective.parameters, own, weight)
        size += _square(own) if weight < 0.0 else 0.0
        for name, part in own.items():
            difference[name] = difference[name].add_(part) if name in difference else part
        return loss.detach(), count

    found = compared(judge, judge(together, 1.0), [pair], objective.dtype)
    if not found.finite:
        return "their loss is not finite, or not at weights that are moved a little"
    if not found.adds_up:
        return f"their {found.told[0]} is not the sum over the two"
    same = _square(difference) <= tolerance(objective.dtype) ** 2 * size
    return "" if same else "their gradient is not the sum over the two"


def _square(parts: Mapping[str, Tensor]) -> float:
    return sum(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in parts.values())

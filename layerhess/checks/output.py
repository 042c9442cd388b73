"""What Gauss-Newton and the empirical Fisher take for granted of the loss, looked at on the sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from layerhess.errors import CheckError, InputError
from layerhess.ledger import Ledger
from layerhess.objective import Objective
from layerhess.products.graph import GraphMaker
from layerhess.products.output import GaussNewtonGraph
from layerhess.results import Check
from layerhess.survey import adds_up
from layerhess.vectors import random_unit

ROUTE = 1e-4  # relative difference of two gradients that rounding never makes: both take the same way back
PROBES = 8
LINEAR = (
    "the loss is linear in the model's output on the sample (as NLLLoss is in log-probabilities, and L1Loss), so that "
    "Gauss-Newton is 0 there: let the model end at the logits and put log_softmax into the criterion "
    "(CrossEntropyLoss), or use operator='hessian'"
)
INDEFINITE = (
    "the loss is not convex in the model's output, so Gauss-Newton is no positive semidefinite matrix here: it may be "
    "indefinite"
)


def check_cut(objective: Objective, samples: Sequence[Any], names: Sequence[str], ledger: Ledger) -> Check:
    """The gradient must reach the parameters through the output alone: J' (d loss / d output) is all of it.

    Raises:
        CheckError: it does not, as with an auxiliary loss or a weight penalty; the parameters are named.
    """
    worst = 0.0
    for batch in samples:
        graph = GaussNewtonGraph(objective, batch, names, ledger)
        if not graph.loss.requires_grad:
            continue
        inputs = [objective.parameters[name] for name in names]
        whole = dict(zip(names, torch.autograd.grad(graph.loss, inputs, allow_unused=True), strict=True))
        ledger.count("backwards")
        size = _norm([part for part in whole.values() if part is not None])
        floor = 100.0 * torch.finfo(objective.dtype).eps * size
        beside = {}
        for name in names:
            missing = _norm([_difference(whole[name], graph.gradient[name])])
            share = missing / max(_norm([whole[name]]), floor, 1e-300)
            worst = max(worst, share)
            if not share <= ROUTE:
                beside[name] = share
        if beside:
            raise CheckError(
                "the loss depends on the parameters beside the model's output (an auxiliary loss, a weight penalty), "
                f"so that Gauss-Newton would leave that out: {max(beside.values()):.1e} of a gradient",
                where="parameters " + ", ".join(list(beside)[:4]),
                what_to_do="take that term out of the loss and add its own Hessian by hand, or give all that the loss "
                "is made of as one output with lh.batch_loss(loss, output=forward), or use operator='hessian'",
            )
    return Check("cut at the output", True, f"the gradient passes through the output to {worst:.1e}")


def notes_on_convexity(objective: Objective, samples: Sequence[Any], seed: int, ledger: Ledger) -> list[str]:
    """Sentences for a loss that is linear in the output (G = 0), or not convex in it; by random probes <x, S x>.

    Each probe looks at all items of a sample together, and at some of them alone, where no other can hide them.
    """
    tolerance = max(100.0 * torch.finfo(objective.dtype).eps, 1e-9)
    linear, indefinite, looked = True, False, False
    for batch in samples:
        graph = GaussNewtonGraph(objective, batch, [], ledger)
        output = graph.output
        if not output.requires_grad or not output.numel():
            continue
        looked = True
        for probe in range(PROBES):
            flat = random_unit(output.numel(), seed, "convexity", probe, output.device)
            x = flat.view(output.shape).to(output.dtype).to(output.device)
            for direction in (x, _alone(x, probe)):
                curved = graph.curve(direction)
                length = 0.0 if curved is None else float(torch.linalg.vector_norm(curved))
                if curved is None or length == 0.0:
                    continue
                linear = False
                form = float((direction.double() * curved.double()).sum())
                indefinite |= form < -tolerance * length * float(torch.linalg.vector_norm(direction))
    return [LINEAR] * (linear and looked) + [INDEFINITE] * indefinite


def check_items(objective: Objective, samples: Sequence[Any], make_graph: GraphMaker, ledger: Ledger) -> Check:
    """The losses of the single items must add up to the loss of their batch.

    Raises:
        InputError: they do not; then a gradient of one item has no meaning.
    """
    worst = 0.0
    for batch in samples:
        graph = make_graph(objective, batch, [], ledger)
        with torch.no_grad():
            value, count = objective.terms(batch)
        whole = float(value.double())
        worst = max(worst, abs(whole - graph.loss_sum) / max(abs(whole), 1e-300))
        if not adds_up(whole, [graph.loss_sum], count, [graph.count], objective.dtype):
            raise InputError(
                "the losses of single items do not add up to the loss of their batch "
                f"({graph.loss_sum:.6g} against {whole:.6g}), so they have no gradients of their own",
                where=objective.evaluation.name,
                what_to_do="use a loss that is a sum over the items of dimension 0, lh.batch_loss(fn) with the right "
                "(loss_sum, count), or operator='gauss_newton'",
            )
    return Check("items", True, f"the losses of single items add up to those of their batches to {worst:.1e}")


def _alone(x: Tensor, probe: int) -> Tensor:
    """The probe at one item of dimension 0, another one each time."""
    if x.ndim == 0:
        return x
    kept = torch.zeros_like(x)
    item = (probe * x.shape[0]) // PROBES
    kept[item] = x[item]
    return kept


def _difference(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else b
    return a - b


def _norm(parts: Sequence[Tensor | None]) -> float:
    return math.sqrt(sum(float(part.detach().double().square().sum()) for part in parts if part is not None))

"""Checks on a sample what the Gauss-Newton matrix and the empirical Fisher assume about the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from layerhess.checks.mean import adds_up
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.output_graph import GaussNewtonGraph, OutputGraph
from layerhess.errors import CheckError, InputError
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective import batches
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import moved
from layerhess.results.record import Check

ROUTE = 1e-4  # relative difference of two gradients that rounding never makes: both go back through the same operations
PROBES = 8
ALONE = 1e-4  # relative change of an item's loss that another batch size can make by rounding
LINEAR = (
    "the loss is linear in the model's output on the sample (as NLLLoss is in log-probabilities, and L1Loss), so that "
    "Gauss-Newton is 0 there: let the model end at the logits and put log_softmax into the criterion "
    "(CrossEntropyLoss), or use operator='hessian'"
)
INDEFINITE = (
    "the loss is not convex in the model's output, so Gauss-Newton is no positive semidefinite matrix here: it may be "
    "indefinite"
)


def check_cut(
    objective: Objective, samples: Sequence[Any], places: Sequence[str], names: Sequence[str], counters: Counters
) -> Check:
    """Check that the whole gradient goes through the output: it must be J' (d loss / d output).

    Args:
        places: which batches the samples are parts of.

    Raises:
        InputError: the gradient is NaN or infinite; the batch and the parameters are named.
        CheckError: it does not, as with an auxiliary loss or a weight penalty; the parameters are named.
    """
    worst = 0.0
    for batch, place in zip(samples, places, strict=True):
        graph = GaussNewtonGraph(objective, batch, names, counters)
        if not graph.loss.requires_grad:
            continue
        inputs = [objective.parameters[name] for name in names]
        whole = dict(zip(names, torch.autograd.grad(graph.loss, inputs, allow_unused=True), strict=True))
        counters.count("backwards")
        if wrong := [n for n, part in whole.items() if part is not None and not bool(torch.isfinite(part).all())]:
            raise InputError(
                "the gradient is NaN or infinite, though the loss is finite",
                where=f"batch {place}, " + ", ".join(wrong[:3]),
                what_to_do="look for sqrt, norm, log or division at 0 in that module (their derivatives are infinite)",
            )
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


def notes_on_convexity(objective: Objective, samples: Sequence[Any], seed: int, counters: Counters) -> list[str]:
    """Sentences for a loss that is linear in the output (G = 0), or not convex in it; by random probes <x, S x>.

    Each probe tests all items of a sample together, and some of them alone, where no other can hide them.
    """
    tolerance = max(100.0 * torch.finfo(objective.dtype).eps, 1e-9)
    linear, indefinite, looked = True, False, False
    for batch in samples:
        graph = GaussNewtonGraph(objective, batch, [], counters)
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


def check_items(
    objective: Objective, samples: Sequence[Any], make_graph: GraphMaker, coarsest: torch.dtype, counters: Counters
) -> Check:
    """Check that the items' losses add up to that of their batch, and that none depends on the other items.

    The second does not follow from the first: with a normalisation over the batch, the items of one forward pass add
    up, but each depends on the others.

    Raises:
        InputError: one of them fails; then a gradient of one item has no meaning.
    """
    worst, alone, looked = 0.0, 0.0, False
    for batch in samples:
        graph = make_graph(objective, batch, [], counters)
        assert isinstance(graph, OutputGraph)
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
        for weights in (nullcontext(), moved(objective.parameters.values())):  # a head of zeros hides the others
            with weights:
                change = _change_in_other_company(objective, batch, make_graph, counters)
            looked |= change is not None
            alone = max(alone, change or 0.0)
            if change is not None and not change <= max(ALONE, 30.0 * torch.finfo(coarsest).eps):
                raise InputError(
                    "an item's loss depends on the other items of its batch (with a part of the batch alone it changes "
                    f"by {change:.1e}): the empirical Fisher, made of the gradients of single items, is not defined",
                    where=type(objective.model).__name__,
                    what_to_do="take what ties a batch together out of the model (a normalisation over the batch), or "
                    "use another operator",
                )
    return Check(
        "items",
        True,
        f"the losses of single items add up to those of their batches to {worst:.1e} and "
        + (f"depend on the rest of the batch to {alone:.1e}" if looked else "no batch can be cut to see more of them"),
    )


def _change_in_other_company(
    objective: Objective, batch: Any, make_graph: GraphMaker, counters: Counters
) -> float | None:
    """Largest change of an item's loss, over the largest loss, when the batch is evaluated in two parts.

    None where it cannot be cut, or a part cannot be evaluated.
    """
    parts = batches.halves(batch)
    if parts is None:
        return None
    try:
        with torch.no_grad():
            graphs = [make_graph(objective, part, [], counters) for part in (batch, *parts)]
    except Exception:  # user code that needs whole batches can raise anything; nothing is known then
        return None
    losses, *again = [graph.output.reshape(-1).double() for graph in graphs if isinstance(graph, OutputGraph)]
    if (together := torch.cat(again)).shape != losses.shape or not losses.numel():
        return None
    return float((together - losses).abs().max()) / max(float(losses.abs().max()), 1e-300)


def _alone(x: Tensor, probe: int) -> Tensor:
    """x with all items of dimension 0 but one set to zero, another one for each probe."""
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

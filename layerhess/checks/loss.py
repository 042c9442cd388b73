"""Checks that the loss is deterministic, and that it is a sum over the examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layerhess.checks.forward_trace import Trace
from layerhess.checks.mean import compared, cuts
from layerhess.checks.randomness import randomness_refused, repeats
from layerhess.curvature.device import is_out_of_memory
from layerhess.curvature.double_backward.mode import Rewritten
from layerhess.errors import InputError
from layerhess.objective import batches
from layerhess.objective.evaluation import differentiates
from layerhess.objective.objective import Objective
from layerhess.objective.perturbation import LAST_DIGITS, perturbed
from layerhess.objective.snapshot import moved, preserved_random_state, random_states
from layerhess.results.record import Check

FEW = 4  # examples of a batch that batch_size cuts into single ones


def check_determinism(objective: Objective, sample: Any, seen: Trace) -> Check:
    """Evaluate the sample twice, from two random states; if it draws random numbers, at moved weights as well.

    A difference counts as rounding only if no random number was drawn, or if it also occurs from the same random state
    (kernels whose order of summation varies), and only up to a size.

    Raises:
        InputError: the loss differs, or the forward pass changes a parameter; the modules are named.
    """
    if seen.changed:
        raise InputError(
            "the forward pass itself changes parameters, so the loss is no function of them",
            where=", ".join(seen.changed[:4]),
            what_to_do="leave that out of the forward pass, for example max_norm of an Embedding",
        )

    def value() -> float:
        return float(objective.terms(sample)[0].detach())

    with preserved_random_state():
        before = random_states()
        first = value()
        drawn = random_states() != before
        second = value()
    by_chance = drawn and first != second and value() == first
    if drawn and not by_chance:  # behind a head of zeros no mask of a dropout shows
        with preserved_random_state(), moved(objective.parameters.values()):
            there = value(), value()
        if math.isfinite(there[0]) and not repeats(*there, seen.coarsest):
            raise randomness_refused(objective, sample, *there)
    if by_chance or not repeats(first, second, seen.coarsest):
        raise randomness_refused(objective, sample, first, second)
    difference = abs(first - second) / max(abs(first), abs(second), 1e-300)
    return Check("determinism", True, f"the loss of a sample repeats to {difference:.1e}")


def refuse_wrong_derivatives(objective: Objective, sample: Any, seen: Trace) -> None:
    """Refuse a loss with a derivative of the network in it that torch gets wrong (after :func:`check_determinism`).

    Through torch's LayerNorm and BatchNorm a third derivative, as of a PINN, is another number. The curvature would be
    that of the right loss, and whoever trains has the other.

    Raises:
        InputError: naming the norms.
    """
    if not differentiates(objective.evaluation):
        return
    own = float(objective.terms(sample)[0].detach())
    with Rewritten():
        right = float(objective.terms(sample)[0].detach())
    if repeats(own, right, seen.coarsest):
        return
    # A loss near 0 is a difference of outputs and targets, and either form of a norm rounds in its own way.
    with perturbed(objective.model.parameters(), seen.coarsest):
        there = float(objective.terms(sample)[0].detach())
        with Rewritten():
            right_there = float(objective.terms(sample)[0].detach())
    if abs(own - right) <= LAST_DIGITS * max(abs(own - there), abs(right - right_there)):
        return
    norms = [
        f"{name or '(root)'} ({type(module).__name__})"
        for name, module in objective.model.named_modules()
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase))
    ]
    raise InputError(
        f"the loss differentiates the network through a normalisation more often than torch can: it gives {own:.6g} "
        f"for a sample whose loss is {right:.6g}",
        where=", ".join(norms[:3]) or "a normalisation",
        what_to_do="write that norm with plain operations, as (x - mean) / sqrt(var + eps), for training too",
    )


@dataclass(frozen=True)
class Additivity:
    """Whether a batch may be cut.

    Attributes:
        check: the line for the result. uncut: why a batch must not be cut, for the middle of a sentence; "" if it may
            be. note: for the reader, where the split into batches is part of the loss.
    """

    check: Check
    uncut: str = ""
    note: str = ""


def check_additivity(objective: Objective, pieces: Sequence[Any], several: Any = None) -> Additivity:
    """Compare the loss of a batch with the sum over its two parts, at moved weights.

    Behind a head of zeros all examples have the same loss, and a penalty on a batch may be zero at these weights. Only
    where the loss is not finite at the moved weights it is compared at these.

    Args:
        pieces: the first one that can be split is taken; where there are single examples only, ``several``, or part of
            a batch as the data has it.

    Raises:
        InputError: they differ although ``batch_size`` splits batches, or although the loader shuffles.
    """
    if norms := objective.tied_norms:
        return _not_applicable(f"{norms.what}, which ties a batch together")
    sample = next(filter(batches.halves, (*pieces, several)), None)
    if sample is None and objective.batch_size is not None:
        whole_batch = next(filter(batches.halves, objective.resized(None).batches()), None)
        sample = None if whole_batch is None else batches.spread_slice(whole_batch, FEW)
    if batches.halves(sample) is None:
        return _not_applicable("the sample cannot be split")
    try:
        with torch.no_grad():
            with moved(objective.parameters.values()):
                found = compared(objective.terms, objective.terms(sample), cuts(sample), objective.dtype)
            if not found.finite:
                found = compared(objective.terms, objective.terms(sample), cuts(sample), objective.dtype)
    except Exception as error:  # user code that needs whole batches can raise anything
        if is_out_of_memory(error) and any((batches.leading_size(one) or 0) > 1 for one in pieces):
            raise  # smaller pieces may fit
        return _not_applicable("a part of a batch cannot be evaluated")
    if found.adds_up:
        return Additivity(
            Check("additivity", True, f"a sample's loss equals the sum over its two parts to {found.off:.1e}")
        )
    if objective.batch_size is not None:
        kind, whole, parts = found.told
        raise InputError(
            f"the {kind} of a batch is not the sum over its parts ({whole:.6g} against {parts:.6g})",
            where=f"pieces of {objective.batch_size} examples, for want of memory"
            if objective.spares
            else f"batch_size={objective.batch_size}",
            what_to_do="give batches of the size that is meant, without batch_size: the split is part of the loss",
        )
    if batches.is_shuffling(objective.data):
        raise InputError(
            "the loss of a batch is not the sum over its examples, and the loader shuffles: every pass has another "
            "loss",
            where="data",
            what_to_do="use shuffle=False, or lh.batch_loss(fn) with the right (loss_sum, count)",
        )
    why = f"the {found.told[0]} of a batch is not the sum over its examples"
    detail = f"{why}: the split into batches is part of the loss"
    return Additivity(Check("additivity", False, detail), why, detail)


def _not_applicable(why: str) -> Additivity:
    return Additivity(Check("additivity", True, f"not applicable: {why}"), why)

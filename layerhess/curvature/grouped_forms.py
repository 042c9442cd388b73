"""v' H_g v for every group g of a batch's examples at once, from one graph of the whole batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from layerhess.curvature.counters import Counters
from layerhess.curvature.double_backward.mode import Rewritten
from layerhess.objective.blocks import Block
from layerhess.objective.item_losses import item_losses
from layerhess.objective.losses import CriterionLoss
from layerhess.objective.objective import Objective

NOISE = 100.0  # eps of the largest form: a block without curvature has forms that are all rounding
AGREEMENT = 1e-3  # of the sum of the groups' forms with the whole one, relative to their sizes; rounding is far below


class GroupedForms:
    """The loss sum as sum_g w_g L_g with weights w = 1 that autograd may differentiate.

    v'H(w)v is linear in w, so that its derivative with respect to w_g is v' H_g v: one product and one more backward
    pass through it give the forms of all groups, where cutting the batch would take a product of every piece. Being
    linear, the forms must add up to v'H v; that is checked for each vector, since it takes third derivatives, which
    nothing else here does.

    Cost: a gradient's graph to make; for each vector the time of 1.6 to 1.9 products and 1.9 times their memory (a
    convolutional and a fully connected network, torch 2.13 on one CPU core).

    Args:
        objective: in session; its criterion must give one loss for every item, see :func:`has_forms`.
        batch: a prepared batch. size: examples of a group; the last one may have fewer.
        names: the parameters that vectors will be of. counters: counts; a form counts as two products.

    Attributes:
        items: how many losses there are; as many as examples, unless the model makes several outputs of each.
        groups: how many groups.
    """

    def __init__(self, objective: Objective, batch: Any, size: int, names: Iterable[str], counters: Counters) -> None:
        self._counters = counters
        self._parameters = {name: objective.parameters[name] for name in names}
        with Rewritten(thrice=True):
            losses, _ = item_losses(objective.evaluation, objective.model, batch, "item")
        counters.count("forwards")
        self.items = len(losses)
        group = torch.arange(len(losses), device=losses.device) // size
        self.groups = int(group[-1]) + 1 if len(losses) else 0
        self._weights = torch.ones(self.groups, dtype=losses.dtype, device=losses.device, requires_grad=True)
        self._sums: list[tuple[float, float]] = []  # what the forms of a vector add up to wrongly, and their sizes
        self._gradient: dict[str, Tensor | None] = dict.fromkeys(self._parameters)
        loss = (self._weights[group] * losses).sum()
        if losses.requires_grad:
            parts = torch.autograd.grad(loss, list(self._parameters.values()), create_graph=True, allow_unused=True)
            counters.count("backwards")
            self._gradient = dict(zip(self._parameters, parts, strict=True))

    def forms(self, block: Block, vector: Tensor) -> Tensor:
        """(G,) float64 forms of one (P_b,) vector; not to be used unless they :attr:`add_up`."""
        parts = {n: part.to(self._parameters[n]) for n, part in block.split(vector).items()}
        known = {n: g for n in block.parameters if (g := self._gradient[n]) is not None and g.requires_grad}
        nothing = torch.zeros(self.groups, dtype=torch.float64)
        self._counters.count("products", 2)
        if not known:
            return nothing
        products = torch.autograd.grad(
            list(known.values()),
            [self._parameters[n] for n in block.parameters],
            [parts[n] for n in known],
            create_graph=True,
            allow_unused=True,
        )
        there = [(p, parts[n]) for n, p in zip(block.parameters, products, strict=True) if p is not None]
        if not there:
            return nothing
        whole = torch.stack([(product * part).sum() for product, part in there]).sum()
        if not whole.requires_grad:
            return nothing
        (found,) = torch.autograd.grad(whole, [self._weights], retain_graph=True)
        forms = found.detach().double().cpu()
        self._sums.append((abs(float(forms.sum()) - float(whole.detach().double())), float(forms.abs().sum())))
        return forms

    @property
    def add_up(self) -> bool:
        """Whether all forms so far do: each relative to its size, and to rounding of the largest of them."""
        noise = NOISE * torch.finfo(self._weights.dtype).eps * max((size for _, size in self._sums), default=0.0)
        return all(off <= AGREEMENT * size + noise for off, size in self._sums)


def has_forms(objective: Objective) -> bool:
    """Whether the losses of single items come from one forward pass: a criterion of ``torch.nn``."""
    return isinstance(objective.evaluation, CriterionLoss) and objective.evaluation.criterion.known

"""Products of one batch with J' S J (Gauss-Newton, Fisher): J is the output's Jacobian, S a matrix on the output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from layerhess.curvature.batch_graph import one_by_one
from layerhess.curvature.counters import Counters
from layerhess.curvature.double_backward.mode import Rewritten
from layerhess.errors import InputError
from layerhess.objective.item_losses import item_losses
from layerhess.objective.objective import Objective


class OutputGraph:
    """One batch's output z, kept for products with J = dz/dtheta and J', and a symmetric S on z.

    J' u is a backward pass. J v is the derivative of J' u, which is linear in u, weighted with v: reverse mode twice,
    and no forward-mode kernels are needed. That linear graph is made once a batch. Cost: about 2.5 gradients to make,
    2 per full product.

    Args:
        output: z, any shape, with its graph to the parameters. names: the parameters that products will be asked for;
            with none, only the output is made. loss_sum, count: of the batch. sensitivity: d loss / d z.
        counters: counts the passes.

    Attributes:
        gradient: J' (d loss / d z) by parameter (None: no dependence). differentiable: the parts of J' u.
    """

    def __init__(
        self,
        objective: Objective,
        output: Tensor,
        names: Iterable[str],
        loss_sum: float,
        count: float,
        sensitivity: Tensor,
        counters: Counters,
    ) -> None:
        self._counters = counters
        self._parameters = {name: objective.parameters[name] for name in names}
        self.loss_sum, self.count = loss_sum, count
        self.output = output
        self.gradient: dict[str, Tensor | None] = dict.fromkeys(self._parameters)
        self.differentiable: list[Tensor] = []
        self._linear: dict[str, Tensor | None] = dict.fromkeys(self._parameters)
        if not self._parameters or not output.requires_grad or not output.numel():
            return
        self.gradient = self.pull_back(list(self._parameters), sensitivity.detach())
        self._direction = torch.zeros_like(output, requires_grad=True)
        parts = torch.autograd.grad(
            output, list(self._parameters.values()), self._direction, create_graph=True, allow_unused=True
        )
        counters.count("backwards")
        self._linear = dict(zip(self._parameters, parts, strict=True))
        self.differentiable = [part for part in parts if part is not None]

    @property
    def nbytes(self) -> int:
        """Bytes held in addition to what autograd saved: the gradient and the parts of J' u."""
        parts = [*self.gradient.values(), *self._linear.values()]
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def curve(self, direction: Tensor) -> Tensor | None:
        """S x for x of the output's shape; None where S is zero."""
        return direction

    def push_forward(self, vector: Mapping[str, Tensor]) -> Tensor | None:
        """J v, of the output's shape; None where the output does not depend on any of v's parameters."""
        outputs, weights = [], []
        for name, part in vector.items():
            linear = self._linear[name]
            if linear is not None and linear.requires_grad:
                outputs.append(linear)
                weights.append(part)
        if not outputs:
            return None
        (moved,) = torch.autograd.grad(outputs, [self._direction], weights, retain_graph=True, allow_unused=True)
        return moved

    def pull_back(self, names: Sequence[str], direction: Tensor) -> dict[str, Tensor | None]:
        """J' u for u of the output's shape, by parameter."""
        inputs = [self._parameters[name] for name in names]
        self._counters.count("backwards")
        parts = torch.autograd.grad(self.output, inputs, direction, retain_graph=True, allow_unused=True)
        return dict(zip(names, parts, strict=True))

    def product(
        self, names: Sequence[str], vector: dict[str, Tensor], rows: Sequence[str] | None = None
    ) -> list[Tensor | None]:
        """The batch's share of (J' S J)[rows, names] v, one tensor per row name (None: no dependence)."""
        rows = names if rows is None else rows
        self._counters.count("products")
        moved = self.push_forward({name: vector[name] for name in names})
        curved = None if moved is None else self.curve(moved)
        if curved is None:
            return [None] * len(rows)
        inputs = [self._parameters[name] for name in rows]
        return list(torch.autograd.grad(self.output, inputs, curved, retain_graph=True, allow_unused=True))

    def products(
        self, names: Sequence[str], vectors: dict[str, Tensor], rows: Sequence[str] | None = None
    ) -> list[Tensor | None]:
        """The same for s vectors, one after the other."""
        return one_by_one(self, names, vectors, rows)


class GaussNewtonGraph(OutputGraph):
    """S = d2 loss / d output2, applied by differentiating d loss / d output once more; no matrix of it is formed.

    (Schraudolph 2002; Martens 2020, section 8.) Exact for every criterion that can be differentiated twice.

    Raises:
        InputError: the loss was not computed from the output.
    """

    def __init__(self, objective: Objective, batch: Any, names: Iterable[str], counters: Counters) -> None:
        with Rewritten() as mode:
            judged = objective.evaluation.with_output(objective.model, batch)
        mode.refuse_wrong(judged.loss)
        counters.count("forwards")
        loss, output = judged.loss, judged.output
        self.loss = loss
        self.sensitivity = torch.zeros_like(output)
        if loss.requires_grad and output.requires_grad:
            found: Tensor | None = torch.autograd.grad(loss, [output], create_graph=True, allow_unused=True)[0]
            if found is None:
                raise InputError(
                    "the loss is not computed from the output, so Gauss-Newton is not defined here",
                    where=f"loss={objective.evaluation.name}",
                    what_to_do="compute the loss from the very tensor that is returned as the output; with "
                    "lh.batch_loss(loss, output=forward) you say which that is",
                )
            self.sensitivity = found
        loss_sum = float(loss.detach().double())
        super().__init__(objective, output, names, loss_sum, judged.count, self.sensitivity, counters)
        if self.sensitivity.requires_grad:
            self.differentiable.append(self.sensitivity)

    def curve(self, direction: Tensor) -> Tensor | None:
        """(d2 loss / d output2) x."""
        if not self.sensitivity.requires_grad:
            return None
        (curved,) = torch.autograd.grad(
            self.sensitivity, [self.output], direction, retain_graph=True, allow_unused=True
        )
        return curved


class FisherGraph(OutputGraph):
    """The output is the vector of the items' losses and S the identity: the sum of g g' over the items.

    Args:
        level: "item" or "token", see :func:`layerhess.objective.item_losses.item_losses`.
    """

    level = "item"

    def __init__(self, objective: Objective, batch: Any, names: Iterable[str], counters: Counters) -> None:
        with Rewritten() as mode:
            losses, count = item_losses(objective.evaluation, objective.model, batch, self.level)
        mode.refuse_wrong(losses)
        counters.count("forwards")
        total = float(losses.detach().double().sum())
        super().__init__(objective, losses, names, total, count, torch.ones_like(losses), counters)


class TokenFisherGraph(FisherGraph):
    """The same, with every counted term of a class criterion as an item."""

    level = "token"

"""Hessian-vector products of one batch by reverse over reverse: the gradient's graph, differentiated again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from layerhess.curvature.batch_graph import one_by_one
from layerhess.curvature.counters import Counters
from layerhess.curvature.double_backward.mode import Rewritten
from layerhess.objective.objective import Objective


class HessianGraph:
    """One batch's loss sum and its gradient, kept so that they can be differentiated again.

    H v = d/dtheta <g, v> (Pearlmutter 1994, in its reverse-over-reverse form). Only ``torch.autograd.grad`` is used:
    ``backward(create_graph=True)`` would leave reference cycles and touch ``.grad``. Cost: about 2.5 gradients to
    make, 2 per full product afterwards, less for the blocks nearer to the output, since autograd walks only what
    leads to them.

    Args:
        objective: in session. batch: a prepared batch. names: the parameters that products will be asked for.
        counters: counts the forward, the backward and each product.
    """

    def __init__(self, objective: Objective, batch: Any, names: Iterable[str], counters: Counters) -> None:
        self._counters = counters
        self._parameters = {name: objective.parameters[name] for name in names}
        with Rewritten() as mode:
            loss, self.count = objective.terms(batch)
        mode.refuse_wrong(loss)
        counters.count("forwards")
        self.loss_sum = float(loss.detach().double())
        self.loss = loss
        self.gradient: dict[str, Tensor | None] = dict.fromkeys(self._parameters)
        self.differentiable: list[Tensor] = []
        if not loss.requires_grad:
            return
        gradients = torch.autograd.grad(loss, list(self._parameters.values()), create_graph=True, allow_unused=True)
        counters.count("backwards")
        self.gradient = dict(zip(self._parameters, gradients, strict=True))
        self.differentiable = [gradient for gradient in gradients if gradient is not None]

    @property
    def nbytes(self) -> int:
        """Bytes held in addition to what autograd saved: the gradient."""
        return sum(part.numel() * part.element_size() for part in self.gradient.values() if part is not None)

    def product(
        self, names: Sequence[str], vector: dict[str, Tensor], rows: Sequence[str] | None = None
    ) -> list[Tensor | None]:
        """The batch's share of H[rows, names] v, one tensor per row name (None: no dependence).

        Args:
            names: the block's parameters. vector: parameter-shaped tensors in the parameters' dtypes.
            rows: the parameters whose components are returned; ``names`` by default.
        """
        rows = names if rows is None else rows
        outputs, weights = [], []
        for name in names:
            gradient = self.gradient[name]
            if gradient is not None and gradient.requires_grad:
                outputs.append(gradient)
                weights.append(vector[name])
        self._counters.count("products")
        if not outputs:
            return [None] * len(rows)
        inputs = [self._parameters[name] for name in rows]
        return list(torch.autograd.grad(outputs, inputs, weights, retain_graph=True, allow_unused=True))

    def products(
        self, names: Sequence[str], vectors: dict[str, Tensor], rows: Sequence[str] | None = None
    ) -> list[Tensor | None]:
        """The same for s vectors, one after the other."""
        return one_by_one(self, names, vectors, rows)

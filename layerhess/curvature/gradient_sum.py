"""Adds gradients up in place: at no time is there a second vector of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from layerhess.curvature.autograd_graph import walk

REENTRANT = "CheckpointFunction"  # torch.utils.checkpoint(use_reentrant=True), which knows backward() only


def add_gradient(
    loss: Tensor, parameters: Mapping[str, Tensor], into: dict[str, Tensor], weight: float = 1.0,
    others: Iterable[Tensor] = (),
) -> None:  # fmt: skip
    """Add ``weight`` times the gradient of ``loss`` to the tensors of ``into``, and free the loss's graph.

    Each parameter's part is taken when autograd has made it, and let go. ``.grad`` is not touched.

    Args:
        loss: 0-d, with a graph. parameters: by name. into: parameter -> sum; those that are missing are begun, but for
            those that the loss does not depend on. others: parameters of the model besides.
    """

    def taking(name: str) -> Callable[[Tensor], Tensor]:
        def take(part: Tensor) -> Tensor:
            dense = part.detach().to_dense() if part.is_sparse else part.detach()
            if name in into:
                into[name].add_(dense, alpha=weight)
            else:
                into[name] = dense * weight
            # Takes the part's place in what autograd collects.
            return part if part.is_sparse else dense.new_zeros(()).expand(dense.shape)

        return take

    without = [parameter for parameter in parameters.values() if parameter._backward_hooks is None]
    handles = [
        parameter.register_hook(taking(name))  # type: ignore[no-untyped-call]
        for name, parameter in parameters.items()
    ]
    try:
        differentiate(loss, list(parameters.values()), others)
    finally:
        for handle in handles:
            handle.remove()
        for parameter in without:
            parameter._backward_hooks = None  # torch leaves an empty dict


def differentiate(loss: Tensor, parameters: Sequence[Tensor], others: Iterable[Tensor] = ()) -> None:
    """Run one backward pass, whose gradients of the parameters nobody but their hooks sees."""
    if any(node.name().startswith(REENTRANT) for node in walk([loss.grad_fn])):
        _backward(loss, {*parameters, *others})
    else:
        torch.autograd.grad(loss, parameters, allow_unused=True)


def _backward(loss: Tensor, parameters: Iterable[Tensor]) -> None:
    """loss.backward(); ``.grad`` of the parameters stays what it was."""
    kept = [(parameter, parameter.grad) for parameter in parameters]
    try:
        for parameter, _ in kept:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
    finally:
        for parameter, own in kept:
            parameter.grad = own

"""Adds gradients up in place: at no time is there a second vector of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def add_gradient(loss: Tensor, parameters: Mapping[str, Tensor], into: dict[str, Tensor], weight: float = 1.0) -> None:
    """Add ``weight`` times the gradient of ``loss`` to the tensors of ``into``, and free the loss's graph.

    Each parameter's part is taken when autograd has made it, and let go. ``.grad`` is not touched.

    Args:
        loss: 0-d, with a graph. parameters: by name. into: parameter -> sum; those that are missing are begun, but for
            those that the loss does not depend on.
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

    handles = [
        parameter.register_hook(taking(name))  # type: ignore[no-untyped-call]
        for name, parameter in parameters.items()
    ]
    try:
        torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()

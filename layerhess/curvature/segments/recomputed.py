"""Functions that keep their arguments only, at any order: every backward pass runs them again.

torch's own activation checkpointing drops what a forward pass saves, and its backward pass, made with a graph to be
differentiated again, keeps everything it recomputed. Here the backward pass is again a function that keeps its
arguments only, so a Hessian-vector product holds no more than the arguments of all functions, and the graph of one.
(Checkpointing: Griewank & Walther 2000; applied to the reverse pass of the reverse pass.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from layerhess.curvature.autograd_graph import derivatives_wanted

Results = tuple[Tensor | None, ...]


class Function(Protocol):
    """A function of tensors that gives the same tensors each time it is called.

    Attributes:
        leaves: for each argument, whether the function reads that very tensor elsewhere (a parameter), so that no
            other one can be given in its place. held: arguments and results with their graph, where one is kept for
            first derivatives.
    """

    leaves: tuple[bool, ...]

    @property
    def held(self) -> tuple[list[Tensor], Results] | None:
        """See above."""

    def __call__(self, tensors: Sequence[Tensor]) -> Results:
        """The results; their graph leads to the tensors, where gradients are on."""


def recomputed(function: Function, tensors: Sequence[Tensor]) -> Results:
    """The function's results; in the graph is one node, which holds the tensors.

    Its derivatives cost one more evaluation of the function each, second ones two.
    """
    made: Results = _Recomputed.apply(*tensors, function)  # type: ignore[no-untyped-call]
    return made


def _owned(results: Results, tensors: Sequence[Tensor]) -> Results:
    """The results, none a view where it may be none: torch lets nobody change a custom function's views in place.

    A view that is all that remains of its memory, as that of a linear layer's result on (n, t, d) inputs, is as good as
    a tensor of its own. Those that share memory with an argument, or with another result, stay what they are.
    """
    places = [None if r is None else r.untyped_storage().data_ptr() for r in results]
    taken = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    return tuple(
        r.new_empty(0).set_(r.untyped_storage(), r.storage_offset(), r.shape, r.stride())
        if r is not None and r._is_view() and place not in taken and places.count(place) == 1
        else r
        for r, place in zip(results, places, strict=True)
    )


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Results:
        *tensors, function = arguments
        ctx.function = function
        ctx.save_for_backward(*tensors)  # parameters too: autograd then refuses those that were moved meanwhile
        ctx.set_materialize_grads(False)
        results = _owned(function(tensors), tensors)
        whole = [r for r in results if r is not None and not (r.is_floating_point() or r.is_complex())]
        ctx.mark_non_differentiable(*whole)
        return results

    @staticmethod
    def backward(ctx: Any, *sensitivities: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        asked = tuple(i for i, is_wanted in enumerate(derivatives_wanted(ctx)) if is_wanted)
        given = tuple(i for i, sensitivity in enumerate(sensitivities) if sensitivity is not None)
        derivatives: list[Tensor | None] = [None] * (len(tensors) + 1)
        if asked and given:
            pullback = _Pullback(ctx.function, asked, given)
            found = recomputed(pullback, [*tensors, *(s for s in sensitivities if s is not None)])
            for i, part in zip(asked, found, strict=True):
                derivatives[i] = part
        return tuple(derivatives)


class _Pullback:
    """J' u of a function, as a function of its arguments and of u.

    Args:
        asked: the arguments with respect to which J is taken. given: the results that u has parts for; the others are
            zero.
    """

    held = None

    def __init__(self, function: Function, asked: Sequence[int], given: Sequence[int]) -> None:
        self._function, self._asked, self._given = function, asked, given
        self.leaves = (*function.leaves, *[False] * len(given))

    def __call__(self, tensors: Sequence[Tensor]) -> Results:
        """One part for each argument asked for, None where nothing depends on it."""
        again = torch.is_grad_enabled()
        held = None if again else self._function.held
        number = len(self._function.leaves)
        arguments, sensitivity = list(tensors[:number]), tensors[number:]
        if not again:  # else they are cut off already, and what is made here leads to them
            kept = zip(arguments, self._function.leaves, strict=True)
            arguments = [t if leaf else t.detach().requires_grad_(t.requires_grad) for t, leaf in kept]
        with torch.enable_grad():
            arguments, results = held or (arguments, self._function(arguments))
            pairs = [(results[i], part) for i, part in zip(self._given, sensitivity, strict=True)]
            live = [(r, part) for r, part in pairs if r is not None and r.requires_grad]
            if not live:
                return (None,) * len(self._asked)
            outputs, weights = zip(*live, strict=True)
            inputs = [arguments[i] for i in self._asked]
            return torch.autograd.grad(
                outputs, inputs, weights, create_graph=again, retain_graph=again or held is not None, allow_unused=True
            )

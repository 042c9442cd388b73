"""Checks that the loss can be differentiated twice through every trainable parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from layerhess.checks.forward_trace import ONCE_DIFFERENTIABLE, Trace
from layerhess.curvature.autograd_graph import walk
from layerhess.curvature.batch_graph import BatchGraph, GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.device import is_out_of_memory
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.errors import InputError
from layerhess.objective.containers import tensors
from layerhess.objective.objective import Objective

ONCE = "Error"  # torch's autograd node for what may be differentiated only once
ADVICE = (
    "replace that operation by one that torch can differentiate twice (for example embedding and a sum for "
    "EmbeddingBag, plain tensor operations for cdist)"
)


def check_second_derivative(
    objective: Objective,
    sample: Any,
    names: Sequence[str],
    seen: Trace,
    counters: Counters,
    make_graph: GraphMaker = HessianGraph,
) -> float:
    """Make a graph of the sample and one product with it.

    Returns:
        Seconds it took to make the graph.

    Raises:
        InputError: the loss depends on no parameter, or only while gradients are off; no second derivative, or one that
            autograd would silently leave out. The modules are named.
    """
    start = counters.clock()
    try:
        graph = make_graph(objective, sample, names, counters)
        seconds = counters.clock() - start
        _refuse_cut_off(objective, graph, seen)
        graph.product(names, {name: torch.ones_like(objective.parameters[name]) for name in names})
    except InputError:
        raise
    except RuntimeError as error:
        refusal = (
            None if is_out_of_memory(error) else _of_the_batch(error, sample) or _no_second_derivative(error, seen)
        )
        if refusal is None:
            raise
        raise refusal from error
    return seconds


def _refuse_cut_off(objective: Objective, graph: BatchGraph, seen: Trace) -> None:
    missing = [name for name, gradient in graph.gradient.items() if gradient is None]
    hidden = [m for m in seen.without_grad if m and any(name.startswith(m + ".") for name in missing)]
    if hidden:
        raise InputError(
            "a module with trainable parameters runs with gradients switched off, so autograd takes them for constants",
            where=", ".join(hidden[:4]),
            what_to_do="freeze it with requires_grad_(False) if that is meant; otherwise take no_grad away, or use "
            "checkpoint(..., use_reentrant=False)",
        )
    if len(missing) == len(graph.gradient):
        raise InputError(
            "the loss does not depend on any trainable parameter",
            where="loss",
            what_to_do="check for detach(), no_grad or .item() between the parameters and the loss",
        )
    sparse = [name for name, gradient in graph.gradient.items() if gradient is not None and gradient.is_sparse]
    if sparse:
        raise InputError(
            "the gradient is sparse, and products with it are not supported",
            where=", ".join(sparse[:4]),
            what_to_do="use sparse=False in that embedding",
        )
    if any(node.name().rpartition("::")[2] == ONCE for node in walk(g.grad_fn for g in graph.differentiable)):
        raise InputError(
            "a custom autograd function of the model may be differentiated only once (once_differentiable)",
            where=", ".join(seen.custom[:4]) or "a custom autograd function",
            what_to_do="write its backward with differentiable torch operations, or replace the function by them",
        )


def _of_the_batch(error: RuntimeError, sample: Any) -> InputError | None:
    """The refusal for what torch cannot do with the tensors that the batches are made of."""
    said = str(error).splitlines()[0][:120]
    if any(tensor.is_nested for tensor in tensors(sample)):
        return InputError(
            f"torch cannot differentiate an operation of the model on nested tensors: it says '{said}'",
            where="the nested tensors of the batches",
            what_to_do="use padded tensors with a mask, a packed sequence, or lists of tensors",
        )
    if "Found dtype" in said:  # by the backward pass of a loss, from an output and a target of two dtypes
        return InputError(
            f"the loss mixes two dtypes, and its gradient cannot: torch says '{said}'",
            where="loss",
            what_to_do="give the target the dtype of the output, for example target.to(output.dtype)",
        )
    return None


def _no_second_derivative(error: RuntimeError, seen: Trace) -> InputError | None:
    text = str(error)
    if "heckpoint" in text:
        return InputError(
            "reentrant activation checkpointing has no second derivative",
            where=", ".join(seen.without_grad[:4]) or "torch.utils.checkpoint",
            what_to_do="use checkpoint(..., use_reentrant=False), or switch checkpointing off",
        )
    if "modified by an inplace operation" in text:
        return InputError(
            "the model overwrites, in place, a tensor that its gradient needs",
            where=text.split("inplace operation: ")[-1].split(" Hint:")[0].rstrip("."),
            what_to_do="use the operation that makes a new tensor (x = x + y instead of x += y, relu instead of relu_)",
        )
    signs = ("derivative for", "not implemented", "once_differentiable", "does not require grad", "double backward")
    if not any(sign in text for sign in signs):
        return None
    culprits = seen.modules_calling(ONCE_DIFFERENTIABLE) + seen.custom
    return InputError(
        f"the model has no second derivative: torch says '{text.splitlines()[0]}'",
        where=", ".join(culprits[:4]) or "an operation of the model",
        what_to_do=ADVICE,
    )

"""Checks that the loss can be differentiated twice through every trainable parameter."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from layerhess.checks.forward_trace import NO_GRAPH, ONCE_DIFFERENTIABLE, Trace, trace
from layerhess.curvature.autograd_graph import walk
from layerhess.curvature.batch_graph import BatchGraph, GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL, DataPass, Request
from layerhess.curvature.device import is_out_of_memory
from layerhess.curvature.totals import Totals, add_up
from layerhess.errors import InputError
from layerhess.objective.blocks import Block
from layerhess.objective.containers import tensors
from layerhess.objective.objective import Objective

ONCE = "Error"  # torch's autograd node for what may be differentiated only once
MISSING = re.compile(r"derivative for (?:aten::|')?_?(\w+?)(?:_backward\b|:)")  # as torch says it
BY_DIFFERENCES = "or use path='differences'"
ADVICE = "replace that operation by one that torch can differentiate twice"
MATH = "leave the choice of attention kernels to the analysis, which takes SDPBackend.MATH, or choose that one"
REPLACEMENTS = {
    "embedding_bag": "embedding and a sum",
    "cdist": "(x[:, None] - y).norm(dim=-1)",
    "pdist": "(x[:, None] - x).norm(dim=-1) above the diagonal",
    "multi_margin_loss": "clamp and a sum",
    "multilabel_margin_loss": "clamp and a sum",
    "segment_reduce": "index_add or scatter_reduce",
}


class ExaminedGraphs:
    """Makes graphs, and looks at the first one before any product is made with it.

    Args:
        make: makes them. seen: the trace of the first sample.

    Attributes:
        seconds: that all of them took.

    Raises:
        InputError: the loss depends on no parameter, or only while gradients are off; autograd would silently leave out
            what may be differentiated only once. The modules are named.
    """

    def __init__(self, make: GraphMaker, seen: Trace) -> None:
        self._make, self._seen = make, seen
        self._looked = False
        self.seconds = 0.0

    def __call__(self, objective: Objective, batch: Any, names: Iterable[str], counters: Counters) -> BatchGraph:
        """The graph of one batch."""
        start = counters.clock()
        graph = self._make(objective, batch, names, counters)
        self.seconds += counters.clock() - start
        if not self._looked:
            _refuse_cut_off(graph, self._seen)
            self._looked = True
        return graph


def check_second_derivative(
    data_pass: DataPass, full: Block, vector: Tensor, sample: Any, seen: Trace, make_graph: GraphMaker
) -> Tensor:
    """Make one product of all parameters on the sample: its graphs may be kept, and the product is of use later.

    Args:
        data_pass: over the sample. vector: (P,), to be multiplied. sample: its first batch. make_graph: as the pass's
            own, whose errors are looked at where there are any.

    Returns:
        (P,) float64, the product.

    Raises:
        InputError: the first batch has no second derivative; the modules are named.
    """
    try:
        return data_pass.run({FULL: Request(full, vector[None])})[FULL][0]
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        first_error = error
    _differentiate(data_pass.objective, sample, full, seen, make_graph, data_pass.counters)
    raise first_error  # of another batch


def _differentiate(
    objective: Objective, batch: Any, full: Block, seen: Trace, make_graph: GraphMaker, counters: Counters
) -> None:
    """One product with one batch's graph; what torch says is said in our words."""
    names = full.parameters
    try:
        graph = make_graph(objective, batch, names, counters)
        graph.product(names, {name: torch.ones_like(objective.parameters[name]) for name in names})
    except RuntimeError as error:
        refusal = None if is_out_of_memory(error) else _of_the_batch(error, batch) or _no_second_derivative(error, seen)
        if refusal is None:
            raise
        raise refusal from error


@contextmanager
def named_operations(objective: Objective) -> Iterator[None]:
    """Around everything that computes with an objective (in session).

    Raises:
        InputError: instead of torch's error where a batch beyond the self-check's sample has no second derivative, and
            where the model cannot be differentiated at all; batch and module are named.
    """
    try:
        yield
    except RuntimeError as error:
        if "selective activation checkpoint" in str(error):  # some torches notice it at the second product only
            refusal: InputError | None = _checkpointing(str(error))
        elif "FlexAttention" in str(error):
            refusal = _flex_attention(_running_in(error, objective) or "the model")
        else:
            refusal = _in_some_batch(error, objective)
        if refusal is None:
            raise
        raise refusal from error


def _flex_attention(where: str) -> InputError:
    return InputError(
        "FlexAttention has no second derivative, and on the CPU none at all",
        where=where,
        what_to_do="write it with torch.nn.functional.scaled_dot_product_attention(..., attn_mask=mask)",
    )


def _checkpointing(text: str, where: str = "") -> InputError:
    kind, way = "reentrant", "use checkpoint(..., use_reentrant=False)"
    if "selective" in text:
        kind, way = "selective", "leave out checkpoint's context_fn"
    return InputError(
        f"{kind} activation checkpointing has no second derivative",
        where=where or "torch.utils.checkpoint",
        what_to_do=f"{way}, switch checkpointing off, {BY_DIFFERENCES}",
    )


def _in_some_batch(error: RuntimeError, objective: Objective) -> InputError | None:
    if not MISSING.search(str(error)):
        return None

    def share(numbered: tuple[int, Any], totals: Totals) -> None:
        number, batch = numbered
        if places := trace(objective, batch).places_of(_missing(error)):
            totals.append("places", f"batch {objective.group.place(number)}, {', '.join(places[:3])}")

    places = add_up(enumerate(objective.batches()), share, group=objective.group).listed("places")
    return _without(error, places[:1]) if places else None


def _running_in(error: BaseException, objective: Objective) -> str:
    """The innermost module of the model whose forward raised the error, as "name (Type)"; or ""."""
    names = {id(module): name for name, module in objective.model.named_modules()}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if id(module) in names:
            found = f"{names[id(module)] or '(root)'} ({type(module).__name__})"
    return found


def _missing(error: RuntimeError) -> str:
    """The operation that torch has no derivative for, or ""."""
    missing = MISSING.search(str(error))
    return missing[1] if missing else ""


def _refuse_cut_off(graph: BatchGraph, seen: Trace) -> None:
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
    nodes = list(walk(g.grad_fn for g in graph.differentiable))
    if any(node.name().startswith("NativeGroupNorm") and _crashes(node) for node in nodes):
        raise InputError(
            "torch ends the process in the derivative of a GroupNorm whose channels are last in memory, on the CPU",
            where=", ".join(seen.places_of("native_group_norm")[:3]) or "a GroupNorm",
            what_to_do="use nn.GroupNorm or F.group_norm outside of TorchScript, or give it contiguous inputs",
        )
    if any(node.name().rpartition("::")[2] == ONCE for node in nodes):
        if flexible := [place for place in seen.custom if "FlexAttention" in place]:
            raise _flex_attention(", ".join(flexible[:3]))
        raise InputError(
            "a custom autograd function of the model may be differentiated only once (once_differentiable)",
            where=", ".join(seen.custom[:4]) or "a custom autograd function",
            what_to_do=f"write its backward with differentiable torch operations, {BY_DIFFERENCES}",
        )


def _crashes(node: Any) -> bool:
    """Whether a GroupNorm ran where our own form of it could not be put in its place."""
    saved = getattr(node, "_saved_input", None)
    return saved is not None and saved.device.type == "cpu" and not saved.is_contiguous()


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
        return _checkpointing(text, ", ".join(seen.without_grad[:4]))
    if "modified by an inplace operation" in text:
        return InputError(
            "the model overwrites, in place, a tensor that its gradient needs",
            where=text.split("inplace operation: ")[-1].split(" Hint:")[0].rstrip("."),
            what_to_do="use the operation that makes a new tensor (x = x + y instead of x += y, relu instead of relu_)",
        )
    if "graph a second time" in text:
        sources = [stop.removeprefix(f"{NO_GRAPH} in ") for stop in seen.stops if stop.startswith(NO_GRAPH)]
        return InputError(
            "the forward pass or the loss differentiates without create_graph=True, so the graph behind it is gone"
            if sources
            else "the model or the loss keeps a graph from an earlier pass, as with a hidden state from batch to batch",
            where=", ".join(sources[:3]) or "the model",
            what_to_do="call torch.autograd.grad(..., create_graph=True), in eval mode too"
            if sources
            else "detach() what is kept, or start every batch from a fresh state",
        )
    signs = ("derivative for", "not implemented", "once_differentiable", "does not require grad", "double backward")
    if not any(sign in text for sign in signs):
        return None
    if places := seen.places_of(_missing(error)):
        return _without(error, places)
    culprits = seen.modules_calling(ONCE_DIFFERENTIABLE) + seen.custom
    return InputError(
        f"the model has no second derivative: torch says '{text.splitlines()[0]}'",
        where=", ".join(culprits[:4]) or "an operation of the model",
        what_to_do=f"{ADVICE}, {BY_DIFFERENCES}",
    )


def _without(error: RuntimeError, places: Sequence[str]) -> InputError:
    """The refusal for an operation without a derivative, in these places."""
    operation = _missing(error)
    instead = f" (for example {REPLACEMENTS[operation]})" if operation in REPLACEMENTS else ""
    return InputError(
        f"torch has no {'second ' if '_backward' in str(error) else ''}derivative of {operation}",
        where=", ".join(places[:3]),
        what_to_do=f"{MATH if operation.startswith('scaled_dot_product') else ADVICE}{instead}, {BY_DIFFERENCES}",
    )

"""Checks that segments of a network can be computed anew by every product: the same results, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from layerhess.checks.second_derivative import ONCE
from layerhess.curvature.autograd_graph import coarsest_of, leaves, walk
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.device import is_out_of_memory
from layerhess.curvature.segments.call import Call, NotPure
from layerhess.curvature.segments.found import Segment
from layerhess.curvature.segments.segmented import Segmented, calls_in, run
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective.blocks import Block
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import preserved_random_state, version_of

OWN_HOOKS = "torch.nn.utils"  # weight_norm's and spectral_norm's hooks compute weights
_STRUCTURE = ("_parameters", "_modules", "_buffers")


@dataclass
class Soundness:
    """Which segments may be computed anew.

    Attributes:
        sound: in the order of the model. faults: of the others, why not.
    """

    sound: tuple[Segment, ...] = ()
    faults: dict[Segment, str] = field(default_factory=dict)


def soundness(objective: Objective, batch: Any, segments: Sequence[Segment]) -> Soundness:
    """Run a batch once, and look at every call of a segment (in session).

    A call must give the same results twice, with gradients on and off; change neither its arguments nor anything its
    modules hold; run no hooks of the user; depend on its arguments and parameters only; and have a second derivative.
    It takes the memory of one segment's graph beside what the segments keep.
    """
    faults: dict[Segment, str] = {}
    called: set[Segment] = set()

    def judge(segment: Segment, call: Call) -> Any:
        called.add(segment)
        if segment in faults:
            return call.plain()
        modules = _modules(objective.model, segment)
        if fault := _fault(call, modules):
            faults[segment] = fault
            return call.plain()
        return run(segment, call)

    with preserved_random_state(), calls_in(objective.model, segments, judge):
        objective.terms(batch)
    faults.update({segment: "it was not called" for segment in segments if segment not in called})
    return Soundness(tuple(segment for segment in segments if segment not in faults), faults)


def disagreement(
    objective: Objective, batch: Any, make: GraphMaker, segments: Sequence[Segment], full: Block, seed: int,
    *, products: bool,
) -> tuple[float, float]:  # fmt: skip
    """How far the gradient, or a product with a random vector, is from the one without segments, relative to it.

    Args:
        products: compare products, which takes the whole graph of the batch; else gradients.

    Returns:
        The difference, and the largest one that rounding may cause in the coarsest dtype behind the loss.
    """
    coarsest = objective.dtype
    names = list(full.parameters)
    vector = {n: part[0] for n, part in full.split(random_unit(full.numel, seed, "segments", 0)[None]).items()}
    parameters = objective.parameters
    vector = {n: v.reshape(parameters[n].shape).to(parameters[n]) for n, v in vector.items()}

    def numbers(own: tuple[Segment, ...]) -> list[Tensor | None]:
        nonlocal coarsest
        if products:
            graph = Segmented(make, own)(objective, batch, names, Counters())
            coarsest = coarsest_of(walk(slope.grad_fn for slope in graph.differentiable), coarsest)
            return graph.product(names, vector)
        with calls_in(objective.model, own, run):
            loss, _ = objective.terms(batch)
        coarsest = coarsest_of(walk([loss.grad_fn]), coarsest)
        return list(torch.autograd.grad(loss, [parameters[name] for name in names], allow_unused=True))

    with preserved_random_state():
        there, here = numbers(()), numbers(tuple(segments))
    size = math.sqrt(sum(_square(part) for part in there))
    pairs = zip(there, here, strict=True)
    off = math.sqrt(sum(_square(a if b is None else b if a is None else a - b) for a, b in pairs))
    relative = off / size if size > 0.0 else (math.inf if off > 0.0 else 0.0)
    return relative, torch.finfo(coarsest).eps ** 0.5


def _square(part: Tensor | None) -> float:
    return 0.0 if part is None else float(part.double().square().sum())


def _modules(model: nn.Module, segment: Segment) -> list[nn.Module]:
    """All modules inside; the segment's own, whose hooks run outside, is the first where it is one module."""
    owner = model.get_submodule(segment.owner)
    if not segment.layers:
        return list(owner.modules())
    return [owner, *(module for name in segment.layers for module in owner.get_submodule(name).modules())]


def _fault(call: Call, modules: Sequence[nn.Module]) -> str:
    """Why the call may not be repeated, or ""."""
    for module in modules[1:]:
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if any(not type(hook).__module__.startswith(OWN_HOOKS) for hook in hooks):
            return f"a hook runs in a {type(module).__name__}"
    before = _state(modules)
    try:
        with torch.no_grad():
            first = call(call.tensors)
        if _state(modules) != before:
            return "what its modules hold changes"
        return _fault_of_derivatives(call, first)
    except NotPure as error:
        return str(error)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return f"torch says '{str(error).splitlines()[0][:80]}'"


def _fault_of_derivatives(call: Call, first: Sequence[Tensor | None]) -> str:
    inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in call.inputs]
    with torch.enable_grad():
        again = call([*inputs, *call.parameters])
        if len(again) != len(first) or not all(map(_same, first, again)):
            return "it gives another result the second time"
        roots = [result for result in again if result is not None and result.requires_grad]
        known = {id(tensor) for tensor in (*inputs, *call.parameters)}
        if not leaves(walk(result.grad_fn for result in roots)) <= known:
            return "it depends on a tensor that is neither its argument nor its parameter"
        arguments = [tensor for tensor in (*inputs, *call.parameters) if tensor.requires_grad]
        if not roots or not arguments:
            return ""
        sensitivities = [torch.ones_like(result, requires_grad=True) for result in roots]
        slopes = torch.autograd.grad(roots, arguments, sensitivities, create_graph=True, allow_unused=True)
        live = [slope for slope in slopes if slope is not None and slope.requires_grad]
        if any(node.name().rpartition("::")[2] == ONCE for node in walk(slope.grad_fn for slope in live)):
            return "a function in it may be differentiated only once"
        if live:
            weights = [torch.ones_like(slope) for slope in live]
            torch.autograd.grad(live, [*arguments, *sensitivities], weights, allow_unused=True)
    return ""


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    a, b = a.detach(), b.detach()
    scale = float(torch.linalg.vector_norm(a.double())) if a.numel() else 0.0
    off = float(torch.linalg.vector_norm((a - b).double())) if a.numel() else 0.0
    return off <= 100.0 * torch.finfo(a.dtype).eps * scale or bool(torch.equal(a, b))  # the latter: infinities


def _state(modules: Sequence[nn.Module]) -> list[Hashable]:
    """What the modules hold, by identity, and how often their tensors were changed."""
    return [item for module in modules for item in _held(module)]


def _held(module: nn.Module) -> Iterator[Hashable]:
    for name, value in module.__dict__.items():
        if name in _STRUCTURE:
            for key, held in value.items():
                yield name, key, id(held), version_of(held) if isinstance(held, Tensor) else 0
        elif isinstance(value, Tensor):
            yield name, id(value), version_of(value)
        elif isinstance(value, (list, tuple, set, dict)):
            yield name, id(value), *(id(item) for item in (value.values() if isinstance(value, dict) else value))
        else:
            yield name, id(value) if not isinstance(value, (bool, int, float, str)) else value

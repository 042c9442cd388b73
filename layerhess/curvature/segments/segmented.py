"""Graphs of batches, made in segments: what a segment computes is not kept, but computed anew by every product."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layerhess.curvature.batch_graph import BatchGraph, GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.double_backward.transforms import is_transformed, saves_by_hooks
from layerhess.curvature.segments.call import Call, NotPure
from layerhess.curvature.segments.found import Segment
from layerhess.curvature.segments.recomputed import recomputed
from layerhess.objective.objective import Objective

Use = Callable[[Segment, Call], Any]  # what is done with a segment's call; returns what the call returns
MISSING = object()


@dataclass(frozen=True)
class Segmented:
    """Makes graphs in segments; a :data:`layerhess.curvature.batch_graph.GraphMaker`.

    A call that turns out not to be repeatable is made without segments, the whole batch with it.

    Args:
        make: makes the graphs. segments: of the model, by name. held: of so many of them, the last ones,
            the graphs of first derivatives are kept: of all, as much memory as a gradient takes, for a fifth less time.
    """

    make: GraphMaker
    segments: tuple[Segment, ...]
    held: int = 0

    def __call__(self, objective: Objective, batch: Any, names: Iterable[str], counters: Counters) -> BatchGraph:
        """The graph of one batch."""
        names = list(names)
        try:
            with calls_in(objective.model, self.segments, self._run):
                return self.make(objective, batch, names, counters)
        except NotPure:
            return self.make(objective, batch, names, counters)

    def _run(self, segment: Segment, call: Call) -> Any:
        call.hold = segment in self.segments[len(self.segments) - self.held :]
        return run(segment, call)


def run(segment: Segment, call: Call) -> Any:
    """What the call returns, as results of one node in the graph that keeps its arguments only."""
    return call.results(recomputed(call, call.tensors)) if _is_recorded(call) else call.plain()


def _is_recorded(call: Call) -> bool:
    """Whether a graph is made, and by nobody else's rules: transforms of torch.func, activation checkpointing."""
    return (
        torch.is_grad_enabled()
        and not is_transformed()
        and not saves_by_hooks()
        and all(parameter.is_leaf for parameter in call.parameters)
        and any(tensor.requires_grad for tensor in call.tensors)
    )


@contextmanager
def calls_in(model: nn.Module, segments: Sequence[Segment], use: Use) -> Iterator[None]:
    """Inside this context each segment's calls are handed to ``use``; calls in transforms of torch.func are not.

    A module's ``forward`` is replaced for that time as an attribute of its own, so the module's hooks run as always.
    """
    replaced: list[tuple[nn.Module, Any]] = []
    try:
        for module, forward in _forwards(model, segments, use):
            replaced.append((module, module.__dict__.get("forward", MISSING)))
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, own in reversed(replaced):
            if own is MISSING:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own


def _forwards(
    model: nn.Module, segments: Sequence[Segment], use: Use
) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """Each owner of segments, and what is to be its forward."""
    owners: dict[str, list[Segment]] = {}
    for segment in segments:
        owners.setdefault(segment.owner, []).append(segment)
    for name, own in owners.items():
        module = model.get_submodule(name)
        yield module, _in_runs(module, own, use) if own[0].layers else _as_a_whole(module, own[0], use)


def _as_a_whole(module: nn.Module, segment: Segment, use: Use) -> Callable[..., Any]:
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return use(segment, Call(plain, [module], args, kwargs))

    return forward


def _in_runs(module: nn.Module, segments: Sequence[Segment], use: Use) -> Callable[..., Any]:
    members = {name: member for name, member in module._modules.items() if member is not None}
    starts = {segment.layers[0]: segment for segment in segments}
    inside = {name for segment in segments for name in segment.layers}

    def forward(input: Any) -> Any:
        for name, layer in members.items():
            if name in starts:
                layers = [members[own] for own in starts[name].layers]
                input = use(starts[name], Call(_one_after_the_other(layers), layers, (input,), {}))
            elif name not in inside:
                input = layer(input)
        return input

    return forward


def _one_after_the_other(layers: Sequence[nn.Module]) -> Callable[[Any], Any]:
    def forward(input: Any) -> Any:
        for layer in layers:
            input = layer(input)
        return input

    return forward

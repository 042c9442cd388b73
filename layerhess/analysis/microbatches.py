"""Chooses the memory budget, and how many examples to process at a time so that their graphs fit it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from layerhess.checks.survey import Survey
from layerhess.curvature.batch_graph import BatchGraph, GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.device import KEPT_SHARE, PIECE_SHARE, Budget, is_out_of_memory, storages
from layerhess.curvature.factors.mixed_graph import MixedGraphs
from layerhess.curvature.live_bytes import LiveBytes
from layerhess.curvature.segments.segmented import Segmented
from layerhess.objective import batches
from layerhess.objective.blocks import Block
from layerhess.objective.objective import Objective

USUAL = 8 << 30  # bytes that an analysis may take by default, for any model
STEPS = 2.5  # or this many times a training step's memory, if that is more: a machine that trains the model has it
GRAPH = 4.0  # gradients' memory that a product takes: 3.3, and 5 where attention dominates
UNCUT_SHARE = 0.3  # of the default: up to here the graph of a batch is not cut


def default_budget(step: int, free: Budget) -> Budget:
    """The default budget for graphs and factors: a few training steps' memory, and never more than is free.

    Graphs of many batches could fill any machine. Solvers' vectors are not included.

    Args:
        step: bytes of a training step, see :func:`step_bytes`. free: the memory there is.
    """
    return Budget(free.free, min(free.free, max(USUAL, int(STEPS * step))), asked=False)


def surely_fits(step: int, directions: int, memory: Budget) -> bool:
    """Whether every batch's graph surely fits the default: factors hold each output once per direction."""
    return not memory.asked and memory.limit is not None and (directions + 4) * step <= UNCUT_SHARE * memory.limit


def advice(needed: float, kept: int, memory: Budget) -> str:
    """A sentence if more memory than the default would have been faster; else empty.

    Args:
        needed: bytes to keep every batch's graph between passes, 0 where they are kept. kept: graphs.
    """
    more = math.ceil(1.1 * needed / KEPT_SHARE / 2**30) if KEPT_SHARE else 0
    if memory.asked or not more or more << 30 > memory.free:
        return ""
    held = f"{kept} of the batches' graphs" if kept else "no batch's graph"
    return (
        f"memory: by default {held} fitted the budget, the others were made anew in every pass; "
        f"memory='{more}GiB' would keep them all"
    )


@dataclass(frozen=True)
class Microbatches:
    """How batches are processed in passes.

    Attributes:
        size: examples of a micro-batch, None where batches stay whole. kept: whether all graphs are expected to fit the
            budget together, so that passes after the first are cheap. per_example: bytes of a graph, 0.0 where they
            were not counted.
    """

    size: int | None = None
    kept: bool = True
    per_example: float = 0.0


def microbatches(
    objective: Objective, surveyed: Survey, make_graph: GraphMaker, blocks: Sequence[Block], memory: Budget,
    *, step: int, directions: int,
) -> Microbatches:  # fmt: skip
    """Choose the size of micro-batches by the budget (in session).

    The bytes of a graph are counted on the sample and taken as proportional to the number of examples.

    Args:
        blocks: those that products will be asked for. step: bytes of a training step. directions: output directions in
            the factors of every example.
    """
    size = batches.leading_size(surveyed.sample)
    if memory.limit is None or not size or not surveyed.examples:  # some batch cannot be cut
        return Microbatches()
    share = surveyed.examples / max(1, surveyed.largest)  # of the largest batch
    all_kept = (directions + 4) * step * share <= KEPT_SHARE * memory.limit
    if surely_fits(step, directions, memory) and (all_kept or not directions):
        return Microbatches()  # without factors, ``kept`` is not used
    try:
        per_example = graph_bytes(objective, surveyed.sample, make_graph, blocks) / size
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return Microbatches()  # transforms of torch.func in the model or the loss hide what is saved
    kept = per_example * surveyed.examples <= KEPT_SHARE * memory.limit
    whole = (PIECE_SHARE if memory.asked else UNCUT_SHARE) * memory.limit
    if per_example * surveyed.largest <= whole:
        return Microbatches(None, kept, per_example)
    fits = max(1, int(PIECE_SHARE * memory.limit / max(per_example, 1.0)))
    return Microbatches(fits if fits < surveyed.largest else None, kept, per_example)


def step_bytes(objective: Objective, surveyed: Survey) -> int:
    """Bytes of one training step on the largest batch: saved tensors, gradients, and as much for an optimiser.

    Counted on the sample and taken as proportional to the number of examples (in session). A sample that cannot be
    evaluated counts 0; the next step that evaluates it raises the error.
    """
    size = batches.leading_size(surveyed.sample)
    weights = sum(p.numel() * p.element_size() for p in objective.parameters.values())
    saved = saved_bytes(objective, surveyed.sample)
    return int(saved * (surveyed.largest / size if size else 1.0)) + 2 * weights


def saved_bytes(objective: Objective, batch: Any) -> int:
    """Bytes that a forward pass saves for its backward pass, without weights; 0 where it cannot be evaluated."""
    with _Saved(objective) as saved:
        try:
            objective.terms(batches.alone(batch))
        except (RuntimeError, MemoryError):
            return 0
    return saved.nbytes


def graph_bytes(objective: Objective, batch: Any, make_graph: GraphMaker, blocks: Sequence[Block]) -> int:
    """Bytes that one batch's graph and products of the blocks hold, without weights."""
    batch, names = batches.alone(batch), list(dict.fromkeys(name for block in blocks for name in block.parameters))
    exact = make_graph.exact if isinstance(make_graph, MixedGraphs) else make_graph
    if isinstance(exact, Segmented):  # what a segment saves lives for one product, so the most at a time is counted
        with LiveBytes() as live:
            multiply(make_graph(objective, batch, names, Counters()), objective, blocks)
        return int(live.peak)
    with _Saved(objective) as saved:
        graph = make_graph(objective, batch, names, Counters())
        multiply(graph, objective, blocks)
    return saved.nbytes + graph.nbytes


def multiply(graph: BatchGraph, objective: Objective, blocks: Sequence[Block]) -> None:
    """Make one product of each block, of which a graph may save something."""
    for block in blocks:
        graph.product(block.parameters, {name: objective.parameters[name].detach() for name in block.parameters})


class _Saved:
    """Counts what autograd saves inside this context, and drops it at the end: graphs made inside are then unusable.

    Attributes:
        nbytes: of everything saved, each storage once, without weights; known at the end.
    """

    def __init__(self, objective: Objective) -> None:
        # Without a box in between, a node that holds its own output would never be freed.
        self._hooks = saved_tensors_hooks(self._pack, lambda box: box[0])
        self._weights = storages(objective.model.parameters())
        self._boxes: list[list[Tensor]] = []  # all kept until the end, so that no address is used twice
        self.nbytes = 0

    def _pack(self, tensor: Tensor) -> list[Tensor]:
        self._boxes.append([tensor])
        return self._boxes[-1]

    def __enter__(self) -> _Saved:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
        saved = storages(box[0] for box in self._boxes)
        self.nbytes = sum(size for place, size in saved.items() if place not in self._weights)
        for box in self._boxes:
            box.clear()

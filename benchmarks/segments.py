"""What a product in segments costs: python -m benchmarks.segments [width] [context] [rounds].

A transformer of 12 layers, 2 sequences. For 0 to 12 segments that keep their first graph, prints the bytes of tensors
at the peak, in those of one gradient, and the CPU time over that of products without segments (median over rounds): of
the full product, and of the products of all layers, a graph included.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch starts its pool

import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import layerhess as lh
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.curvature.live_bytes import LiveBytes
from layerhess.curvature.segments.found import found_segments
from layerhess.curvature.segments.segmented import Segmented

from .models import GPT
from .workloads import TokenCrossEntropy

LAYERS, VOCABULARY = 12, 100
HELD = (None, 0, 3, 6, 9, 12)  # None: no segments


def problem(width: int, context: int) -> lh.Objective:
    """Random weights, random tokens."""
    torch.manual_seed(0)
    model = GPT(VOCABULARY, width, LAYERS, context=context)
    words = torch.randint(VOCABULARY, (2, context + 1))
    return lh.Objective(model, (words[:, :-1], words[:, 1:]), TokenCrossEntropy())


def products(objective: lh.Objective, batch: Any, make: GraphMaker, blocks: Sequence[Sequence[str]]) -> None:
    """A graph, and a product of each block with it."""
    graph = make(objective, batch, list(objective.parameters), Counters())
    for names in blocks:
        graph.product(names, {name: torch.ones_like(objective.parameters[name]) for name in names})


def peak(objective: lh.Objective, work: Callable[[], Any]) -> int:
    """Bytes of tensors at a time, without the parameters."""
    with LiveBytes(known=list(objective.parameters.values())) as live:
        work()
    return live.peak


def compare(title: str, objective: lh.Objective, batch: Any, blocks: Sequence[Sequence[str]], rounds: int) -> None:
    """One question, with every number of segments that keep their graphs."""
    segments = found_segments(objective.model)
    assert len(segments) == LAYERS and all(blocks)
    makers = [HessianGraph if held is None else Segmented(HessianGraph, segments, held) for held in HELD]

    def gradient() -> Any:
        return torch.autograd.grad(objective.terms(batch)[0], list(objective.parameters.values()))

    unit = peak(objective, gradient)
    taken = [peak(objective, functools.partial(products, objective, batch, make, blocks)) / unit for make in makers]
    seconds: list[list[float]] = [[] for _ in makers]
    for _ in range(rounds):
        for make, own in zip(makers, seconds, strict=True):
            before = time.process_time()
            products(objective, batch, make, blocks)
            own.append(time.process_time() - before)
    for held, memory, own in zip(HELD, taken, seconds, strict=True):
        slower = statistics.median(a / b for a, b in zip(own, seconds[0], strict=True))
        name = "without segments" if held is None else f"{held} of {LAYERS} keep their graphs"
        print(f"{title}, {name}: {memory:.2f} gradients' memory, {slower:.2f} times the time", flush=True)


def main(width: int = 128, context: int = 256, rounds: int = 5) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    objective = problem(width, context)
    names = list(objective.parameters)
    layers = [[name for name in names if name.startswith(f"blocks.{i}.")] for i in range(LAYERS)]
    print(f"{objective.numel:,} parameters, 2 x {context} tokens")
    with objective.session():
        batch = next(objective.batches())
        compare("full product", objective, batch, [names], rounds)
        compare("each layer's", objective, batch, layers, rounds)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""What products in segments hold at a time, in the memory that one plain gradient takes; bytes of tensors, not RSS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import layerhess as lh
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.curvature.live_bytes import LiveBytes
from layerhess.curvature.segments.found import found_segments
from layerhess.curvature.segments.segmented import Segmented
from repeated_blocks import Tied

LAYERS, WIDTH, TOKENS = 12, 16, 48


@pytest.fixture(scope="module")
def objective() -> lh.Objective:
    torch.manual_seed(0)
    words = torch.randint(0, 7, (4, TOKENS))
    return lh.Objective(Tied(LAYERS, WIDTH), (words, words), nn.CrossEntropyLoss())


def peak(work: Callable[[], Any]) -> int:
    with LiveBytes() as live:
        made = work()
    del made
    return live.peak


def gradients(objective: lh.Objective, make: GraphMaker) -> tuple[float, float]:
    """Of a full product, and of those of all layers, over what one plain gradient takes at its peak."""
    parameters, batch = objective.parameters, next(objective.batches())
    vector = {name: torch.ones_like(p) for name, p in parameters.items()}
    layers = [[name for name in parameters if name.startswith(f"layers.{i}.")] for i in range(LAYERS)]

    def gradient() -> Any:
        return torch.autograd.grad(objective.terms(batch)[0], list(parameters.values()))

    def products(blocks: list[list[str]]) -> None:
        graph = make(objective, batch, list(parameters), Counters())
        for names in blocks:
            graph.product(names, {name: vector[name] for name in names})

    unit = peak(gradient)
    return peak(lambda: products([list(parameters)])) / unit, peak(lambda: products(layers)) / unit


def test_a_product_takes_about_one_gradient_s_memory_instead_of_three(objective: lh.Objective) -> None:
    with objective.session():
        segments = found_segments(objective.model)
        whole = gradients(objective, HessianGraph)
        half, none = (gradients(objective, Segmented(HessianGraph, segments, held)) for held in (LAYERS // 2, 0))
    assert min(whole) >= 2.9, "torch keeps everything"
    assert max(half) <= 1.3 and max(none) <= 0.8


def test_live_bytes_are_those_of_the_tensors_that_are_held() -> None:
    first = torch.zeros(1000)
    with LiveBytes(known=[first]) as live:
        second = first + 1.0
        view = second[10:]
        del second
        assert live.now == 4000
        view.add_(1.0)
        third = view.double() * 2.0
        assert live.now == 4000 + 8 * 990 and live.peak == 4000 + 2 * 8 * 990
        del view, third
        first += 1.0
    assert live.now == 0


def test_live_bytes_see_what_autograd_holds() -> None:
    x = torch.zeros(1000, requires_grad=True)
    with LiveBytes() as live:
        y = x.exp().sum()
        assert live.now >= 4000
        del y
        assert live.now == 0

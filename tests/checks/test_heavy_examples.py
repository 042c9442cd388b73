"""The examples that carry a candidate's eigenvalue, against shares in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from layerhess.checks import heavy_examples, sample
from layerhess.checks.heavy_examples import HEAVY, HeavyExamples, precision
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import Request
from layerhess.curvature.factors.mixed_graph import MixedGraphs
from layerhess.curvature.matrices import GAUSS_NEWTON, HESSIAN, ITEM_FISHER
from layerhess.objective.blocks import make_block

OUTLIER = 77


def problem(dtype: torch.dtype) -> lh.Objective:
    """z = w2 tanh(w1 x), squared error; one of 90 examples, in the second of three batches, is far out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False)).double()
    x, y = torch.randn(90, 1, dtype=torch.float64), torch.randn(90, 1, dtype=torch.float64)
    x[OUTLIER], y[OUTLIER] = 1.5, 400.0
    with torch.no_grad():
        model[0].weight.fill_(0.7)  # type: ignore[operator]
        model[2].weight.fill_(3.0)  # type: ignore[operator]
    x, y = x.to(dtype), y.to(dtype)
    return lh.Objective(model.to(dtype), list(zip(x.split(40), y.split(40), strict=True)), nn.MSELoss())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shares_are_those_of_the_outputs_two_derivatives(dtype: torch.dtype) -> None:
    objective = problem(dtype)
    before = {name: p.detach().clone() for name, p in objective.model.named_parameters()}
    x, y = (torch.cat(parts).double()[:, 0].numpy() for parts in zip(*objective.data, strict=True))
    w1, w2 = (float(p.detach()) for p in objective.model.parameters())
    t = np.tanh(w1 * x)
    bend = 1.0 - t**2
    shares = {  # 2 J^2 + |2 (z - y) z''| of z = w2 tanh(w1 x), in w1 and in w2
        "0.weight": 2.0 * (w2 * bend * x) ** 2 + np.abs(2.0 * (w2 * t - y) * w2 * -2.0 * t * bend * x**2),
        "2.weight": 2.0 * t**2,
    }
    with objective.session():
        for name, expected in shares.items():
            block = make_block(name, {name: objective.parameters[name]})
            vector = torch.ones((1, 1), dtype=torch.float64)
            found = HeavyExamples(objective, Counters()).find({name: Request(block, vector)}, {name: 2.0})
            order = np.argsort(-expected)
            least = expected.sum() * max(4.0 / 90.0, 0.1)
            assert [40 * batch + i for _, batch, i in (one.place for one in found)] == [
                int(i) for i in order[:HEAVY] if expected[i] > least
            ]
            assert bool(found) == (name == "0.weight")
            scale = {one.share / expected[40 * one.place[1] + one.place[2]] for one in found}
            assert not scale or max(scale) == pytest.approx(min(scale), rel=1e-3)
            for one in found:
                place = 40 * one.place[1] + one.place[2]
                assert one.batch[0].dtype == dtype and float(one.batch[0]) == x[place]
    after = dict(objective.model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_only_the_first_derivative_of_the_outputs_counts_where_the_matrix_knows_no_other() -> None:
    objective = problem(torch.float32)
    x = torch.cat([batch[0] for batch in objective.data]).double()[:, 0].numpy()
    w1, w2 = (float(p.detach()) for p in objective.model.parameters())
    expected = 2.0 * (w2 * (1.0 - np.tanh(w1 * x) ** 2) * x) ** 2  # 2 J^2: the slope of the outlier does not count
    name, vector = "0.weight", torch.ones((1, 1), dtype=torch.float64)
    block = make_block(name, {name: objective.parameters[name]})
    licensed = {name: (name,)}
    with objective.session():
        for graphs, passes in (
            (GAUSS_NEWTON.make_graph, 2),
            (MixedGraphs({}, GAUSS_NEWTON.make_graph, linear=False), 2),
            (MixedGraphs(licensed, HESSIAN.make_graph, linear=True), 2),
            (MixedGraphs({}, HESSIAN.make_graph, linear=True), 3),
            (MixedGraphs(licensed, ITEM_FISHER.make_graph, linear=False), 3),
        ):
            counters = Counters()
            found = HeavyExamples(objective, counters, graphs).find({name: Request(block, vector)}, {name: 2.0})
            assert counters.total("forwards") == passes * len(objective.data)
            assert any(one.place == (0, 1, OUTLIER - 40) for one in found) == (passes == 3)
            assert passes == 3 or len(found) == int((expected > expected.sum() * 0.1).sum())


def test_an_example_that_a_small_sample_would_miss_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "WHOLE", 0)
    places: list[tuple[int, int, int]] = []
    find = HeavyExamples.find

    def noted(self: HeavyExamples, requests: dict[str, Request], norms: dict[str, float]) -> object:
        found = find(self, requests, norms)
        places.extend(one.place for one in found)
        return found

    monkeypatch.setattr(HeavyExamples, "find", noted)
    found = lh.analyze(problem(torch.float32))
    assert found.converged and places == [(0, 1, OUTLIER - 40)]  # looked for once


def test_a_gpu_is_spared_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, dtype, expected in (
        ("cpu", torch.float32, torch.float64), ("cuda", torch.float32, torch.float32),
        ("cuda", torch.bfloat16, torch.float32), ("cuda", torch.float64, torch.float64),
    ):  # fmt: skip
        assert precision(torch.device(kind), dtype) == expected
    monkeypatch.setattr(heavy_examples, "precision", lambda device, dtype: torch.float32)
    objective = problem(torch.float32)
    with objective.session():
        block = make_block("0.weight", {"0.weight": objective.parameters["0.weight"]})
        vector = torch.ones((1, 1), dtype=torch.float64)
        found = HeavyExamples(objective, Counters()).find({"w": Request(block, vector)}, {"w": 2.0})
    assert [one.place for one in found] == [(0, 1, OUTLIER - 40)]


def test_without_outputs_the_sample_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "WHOLE", 0)
    objective = problem(torch.float32)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        return ((model(batch[0]) - batch[1]) ** 2).sum(), len(batch[0])

    found = lh.analyze(lh.Objective(objective.model, objective.data, lh.batch_loss(loss)))
    assert found.full is not None and found.full.rounding_source == "measured"

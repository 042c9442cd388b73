"""Graphs that answer for some blocks with factors and for others exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import DataPass, Request
from layerhess.curvature.factors.mixed_graph import MixedGraphs
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.objective.blocks import make_block
from layerhess.objective.objective import Objective
from three_batches import batches


@pytest.mark.parametrize("asked", ["(full)", "0.weight", "4.weight"])
def test_graphs_that_are_thrown_away_factor_only_what_is_asked_for(asked: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3)).double()
    objective = Objective(model, batches(), nn.CrossEntropyLoss())
    names = [name for name in objective.parameters if name.endswith("weight")]
    operators = {name: make_block(name, {name: objective.parameters[name]}) for name in names}
    operators["(full)"] = make_block("(full)", objective.parameters)
    seen: list[set[str]] = []

    class Watched(MixedGraphs):
        def factors(self, *arguments: Any) -> Any:
            seen.append(set(self.blocks))
            return super().factors(*arguments)

    counters = Counters()
    with objective.session():
        make = Watched({name: (name,) for name in names}, HessianGraph, linear=True)
        data_pass = DataPass(objective, list(objective.parameters), counters, keep=0.0, make_graph=make)
        vectors = {key: torch.ones(1, block.numel, dtype=torch.float64) for key, block in operators.items()}
        everything = data_pass.run({key: Request(operators[key], vectors[key]) for key in operators})
        assert seen == [set(names)] * 3
        seen.clear()
        before = counters.total("forwards")
        alone = data_pass.run({asked: Request(operators[asked], vectors[asked])})
    assert torch.allclose(alone[asked], everything[asked], rtol=1e-12, atol=1e-15)
    assert seen == ([] if asked == "(full)" else [{asked}] * 3)
    assert counters.total("forwards") - before == 3

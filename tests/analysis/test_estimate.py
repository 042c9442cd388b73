"""What an analysis will cost, said beforehand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import layerhess as lh


def network(width: int = 40) -> lh.Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))
    data = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(4)]
    return lh.Objective(model, data, nn.CrossEntropyLoss())


def test_blocks_that_are_read_whole_take_as_many_products_as_they_have_parameters() -> None:
    objective = network(width=3)  # 21 and 12 parameters
    found = lh.estimate(objective, blocks="module", full=False)
    assert (found.products, found.passes, found.world, found.examples) == (33, 21, 1, 64)
    assert lh.analyze(objective, blocks="module", full=False).counts.passes <= 21
    assert found.seconds > 0.0 and found.gradient_seconds > 0.0 and found.peak_bytes > 0 and found.sent_bytes == 0


def test_the_passes_are_near_those_of_a_run() -> None:
    objective = network()
    found, made = lh.estimate(objective, blocks="module", top=2), lh.analyze(objective, blocks="module", top=2)
    assert 0.5 < found.passes / made.counts.passes < 2.0


def test_processes_share_the_gradient_and_send_sums() -> None:
    alone, four = (lh.estimate(network(), world=world) for world in (1, 4))
    assert four.gradient_seconds < alone.gradient_seconds and four.world == 4
    assert four.sent_bytes > 8 * 403 * four.passes


def test_what_analyze_refuses_is_refused_and_the_model_stays() -> None:
    objective = network()
    before = [parameter.clone() for parameter in objective.model.parameters()]
    state = torch.get_rng_state()
    for wrong in ({"top": -1}, {"blocks": "nothing"}, {"world": 0}, {"device_memory": "much"}):
        with pytest.raises(lh.InputError):
            lh.estimate(objective, **wrong)
    with pytest.raises(TypeError, match="nonsense"):
        lh.estimate(objective, nonsense=1)
    lh.estimate(objective)
    assert all(torch.equal(a, b) for a, b in zip(before, objective.model.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())

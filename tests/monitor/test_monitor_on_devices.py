"""The monitor of a model on another device, and on two: the numbers of one in main memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import layerhess as lh
from layerhess.objective import parameters
from monitored import data, tanh_network
from second_device import TwoDevices, moved_there


class Parts(nn.Sequential):
    """Takes its input to where each layer's weights are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = layer(x.to(layer.weight.device) if isinstance(layer, nn.Linear) else x)
        return x


def readings(*far: int) -> list[dict[str, Any]]:
    model = Parts(*tanh_network().double())
    x, y = data()
    for place in far:
        moved_there(model[place])
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.01}]
    objective = lh.Objective(model, [(x.double(), y)], nn.CrossEntropyLoss())
    monitor = lh.Monitor(objective, every=1, overhead=None, optimizer=torch.optim.SGD(groups))
    made = []
    for _ in range(2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
        point = monitor.step()
        assert point is not None, monitor.failure
        made.append(dict(point.readings))
    return made


@pytest.mark.parametrize("far", [(0,), (2,)])
def test_the_numbers_are_those_of_one_device(far: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "_has_no_values", lambda parameter: False)
    here = readings()
    with TwoDevices():
        there = readings(*far)
    for one, other in zip(here, there, strict=True):
        assert list(one) == list(other)
        for name, reading in one.items():
            assert other[name].lambda_max == pytest.approx(reading.lambda_max, rel=1e-10)
            assert other[name].bound == pytest.approx(reading.bound, rel=1e-3)
        assert other["(full)"].ratio == pytest.approx(one["(full)"].ratio, rel=1e-10)

"""A monitor that fails warns once and is silent; what it looks at is checked now and then."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from monitored import (
    bounds_hold,
    data,
    nesterov,
    seed_all,
    state,
    tanh_network,
    train,
)

LOSS = nn.CrossEntropyLoss()


def failing(model: nn.Module, after: int, error: BaseException) -> Any:
    calls = [0]

    def loss(net: nn.Module, batch: Any) -> tuple[Tensor, float]:
        calls[0] += 1
        if calls[0] > after:
            raise error
        return nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="sum"), float(len(batch[1]))

    return lh.Objective(model, data(), lh.batch_loss(loss))


@pytest.mark.parametrize("after", [0, 3, 25])
@pytest.mark.parametrize("error", [RuntimeError("boom\nmore"), ZeroDivisionError("boom")])
def test_a_failure_warns_once_and_is_silent_from_then_on(after: int, error: Exception) -> None:
    def run(monitored: bool) -> Any:
        seed_all()
        model = tanh_network()
        optimizer = nesterov(model)
        monitor = lh.Monitor(failing(model, after, error), every=2, overhead=None) if monitored else None
        train(model, optimizer, 20, lambda step: monitor.step() if monitor else None)
        return state(model, optimizer), monitor

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours, monitor = run(True)
    said = [str(w.message) for w in caught if issubclass(w.category, lh.LayerhessWarning)]
    assert len(said) == 1 and "boom" in said[0] and "\n" not in said[0] and "training is not changed" in said[0]
    assert monitor.step() is None and "boom" in monitor.failure
    assert ours == run(False)[0]


def test_ctrl_c_reaches_the_caller_with_the_model_as_it_was() -> None:
    model = tanh_network()
    optimizer = nesterov(model)
    monitor = lh.Monitor(failing(model, 30, KeyboardInterrupt()), every=1, overhead=None)
    train(model, optimizer, 1)
    before = state(model, optimizer)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(40):
            monitor.step()
    assert state(model, optimizer) == before and not monitor.failure


def test_products_that_are_wrong_are_never_shown() -> None:
    """Old weight_norm under reverse over reverse is 10 to 45 % off, without an error."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = torch.nn.utils.weight_norm(nn.Linear(6, 5))
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(5, 3))
    monitor = lh.Monitor(lh.Objective(model, data(), LOSS), every=1, overhead=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lh.LayerhessWarning)
        point = monitor.step()
    if point is None:
        assert "CheckError" in monitor.failure
    else:  # a torch that does it right
        assert monitor.points[0].readings


def test_a_model_that_is_changed_during_training_is_seen() -> None:
    model = tanh_network()
    monitor = lh.Monitor(lh.Objective(model, data(), LOSS), every=1, overhead=None)
    assert monitor.step() is not None
    model[0].weight.requires_grad_(False)
    with pytest.warns(lh.LayerhessWarning, match="stopped at step 2"):
        assert monitor.step() is None


class Careless(torch.autograd.Function):
    """tanh, whose backward cannot be differentiated in what it remembers: its gradient is right, its Hessian wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.slope = 1.0 - torch.tanh(x).square().detach()
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.slope


class Turning(nn.Module):
    """Right at first."""

    careless = False

    def forward(self, x: Tensor) -> Tensor:
        return Careless.apply(x) if self.careless else torch.tanh(x)


def test_operators_are_looked_at_again_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerhess.monitor.soundness.EVERY", 3)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), Turning(), nn.Linear(5, 3)).double()
    x, y = data()
    monitor = lh.Monitor(lh.Objective(model, (x.double(), y), LOSS), every=1, overhead=None)

    def step() -> Any:
        with torch.no_grad():
            model[0].weight.mul_(1.01)
        return monitor.step()

    assert all(step() is not None for _ in range(5))
    assert [point.checked for point in monitor.points] == [True, False, False, True, False]
    model[1].careless = True
    with pytest.warns(lh.LayerhessWarning, match="CheckError") as caught:
        after = [step() for _ in range(4)]
    assert after[1:] == [None] * 3 and len(caught) == 1


def test_rounding_is_measured_again_where_a_norm_has_changed_much() -> None:
    model = tanh_network()
    monitor = lh.Monitor(lh.Objective(model, data(), LOSS), every=1, overhead=None, blocks="parameter")
    for factor in (1.0, 1.0, 30.0, 1.0):
        with torch.no_grad():
            model[2].weight.mul_(factor)
        bounds_hold(model, monitor.step())
    assert [point.checked for point in monitor.points] == [True, False, False, True]

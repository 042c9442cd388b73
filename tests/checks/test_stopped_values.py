"""Staircases that differences do not see: what is taken away from autograd is let through, and leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from layerhess.checks.stopped_values import left_out
from layerhess.curvature.counters import Counters
from witness import refused, untouched
from wrong_gradients import CE, Net, X, Y, function, unseen


class Rounds(nn.Module):
    """Straight-through rounding to so many levels; ``narrow`` works in float32 only."""

    def __init__(self, levels: int, narrow: bool, own: bool = False) -> None:
        super().__init__()
        self.step, self.narrow, self.own = 4.0 / levels, narrow, own

    def forward(self, z: Tensor) -> Tensor:
        assert z.dtype == torch.float32 or not self.narrow
        if self.own:
            return function(lambda a: (a / self.step).round() * self.step, lambda g, a: g)(z)  # type: ignore[no-any-return]
        return z + ((z / self.step).round() * self.step - z).detach()


@pytest.mark.parametrize(
    ("levels", "narrow", "own"),
    [(2**15, False, False), (2**12, False, True), (2**7, True, False), (2**12, True, False), (2**3, True, True)],
)
def test_a_fine_staircase_is_refused_whatever_slope_large_steps_show(levels: int, narrow: bool, own: bool) -> None:
    """Of 16 bits any small step crosses one of many jumps; float32 resolves no step between those of 8 bits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 8), Rounds(levels, narrow, own), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(300, 20), torch.arange(300) % 3
    cause = "custom autograd function" if own else "detach() in 1 (Rounds)"
    with refused(model, "0.weight", cause, "instead of" if own and not narrow else "--stop-gradients constant"):
        lh.analyze(lh.Objective(model, (x, y), CE), full=False)


class Shifted(nn.Module):
    """A constant is subtracted from all logits, which changes nothing: an honest detach."""

    def forward(self, z: Tensor) -> Tensor:
        assert z.dtype == torch.float32
        return z - z.max(1, keepdim=True).values.detach()


def test_a_detach_that_changes_nothing_passes_in_float32_too() -> None:
    model = nn.Sequential(nn.Linear(6, 3), Shifted())
    assert lh.analyze(lh.Objective(model, (X, Y), CE), full=False, max_passes=1).blocks


@pytest.mark.parametrize("kind", ["detached", "no_grad", "data", "nothing"])
def test_what_is_left_out_is_the_gradient_of_the_stopped_part(kind: str) -> None:
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "detached": lambda z: z * z.detach(), "no_grad": unseen, "data": lambda z: z * z.data,
        "nothing": torch.sigmoid,
    }  # fmt: skip
    model = Net(changes[kind], torch.tanh).double()
    objective = lh.Objective(model, [(X.double(), Y)], CE)
    with objective.session(), untouched(model):
        off = left_out(objective, list(objective.parameters), Counters())
    assert set(off) == (set() if kind == "nothing" else {"first.weight", "first.bias"})
    if kind == "detached":  # half of the derivative of z**2
        np.testing.assert_allclose(list(off.values()), 0.5, rtol=1e-12)


class Averages(nn.Module):
    """Keeps running means, and logs a number: works in float32 only."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.logged, self.level = kind, 0.0, 0.02
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        h = torch.tanh(self.first(x))
        now = h.mean(0)
        if self.kind == "with its graph":
            self.mean.add_(0.1 * now)
        with torch.no_grad():
            if self.kind == "mul_":
                self.mean.mul_(0.9).add_(0.1 * now)
            elif self.kind == "+=":
                self.mean += 0.1 * now
            elif self.kind == "copy_":
                self.mean.copy_(now)
            elif self.kind == "[:]":
                self.mean[:] = now
            elif self.kind == "new":
                self.mean = 0.9 * self.mean + 0.1 * now
        self.logged = float(h.detach().cpu().numpy().mean()) + h.sum().item()
        if self.kind == "rounds":
            h = h + ((h / self.level).round() * self.level - h).detach()
        return self.last(h)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["mul_", "+=", "copy_", "[:]", "new", "with its graph"])
def test_what_a_model_keeps_is_no_part_of_a_graph_afterwards(kind: str) -> None:
    model = Averages(kind)
    objective = lh.Objective(model, [(X[:6], Y[:6]), (X[6:], Y[6:])], CE)
    with untouched(model):
        lh.analyze(objective, full=False, max_passes=1)
    assert model.mean.grad_fn is None and not model.mean.requires_grad
    copy.deepcopy(model)


def test_a_number_for_a_log_hides_no_staircase() -> None:
    model = Averages("rounds")
    with refused(model, "first.weight", "detach()", "--stop-gradients constant"):
        lh.analyze(lh.Objective(model, (X, Y), CE), full=False)


def test_a_right_function_in_float32_passes_near_a_minimum_too() -> None:
    """There the slope has no digits in float32; at other weights it has."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Narrow(), nn.Linear(8, 3))
    x, y = torch.randn(64, 6), torch.arange(64) % 3
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        CE(model(x), y).backward()
        optimizer.step()
    assert lh.analyze(lh.Objective(model, (x, y), CE), full=False, max_passes=1).blocks


class Narrow(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        assert z.dtype == torch.float32
        return function(torch.sin, lambda g, a: g * a.cos())(z)  # type: ignore[no-any-return]

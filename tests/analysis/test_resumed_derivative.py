"""A run is resumed only with the derivative that it had: a loss of the same value may have another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from commands import quick_report
from killed import in_pass, killed
from layerhess.results import store
from resumed import analyze, data, network, objective


class Squared(torch.autograd.Function):
    """x^2, with a factor in its derivative."""

    factor = 1.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2.0 * Squared.factor * x * given[0]


class Changeable(nn.Module):
    """A layer whose value is the same whatever its derivative is."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.changed = kind, False
        self.register_buffer("one", torch.ones((), dtype=torch.float64))
        if kind == "hook of the module":
            self.register_full_backward_hook(lambda _, given, __: (self.scaled(given[0]),))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "custom":
            Squared.factor = 0.5 if self.changed else 1.5
            return Squared.apply(x)
        if self.kind == "detach":
            return x * torch.tanh(x).detach() if self.changed else x.detach() * torch.tanh(x)
        y = x * self.one
        if self.kind == "hook":
            y.register_hook(self.scaled)
        return y

    def scaled(self, gradient: Tensor) -> Tensor:
        return gradient * (3.0 if self.changed else 1.5)


def made(kind: str, changed: bool) -> lh.Objective:
    layer = Changeable(kind)
    layer.changed = changed
    model = nn.Sequential(*list(network())[:2], layer, *list(network())[2:])
    return objective(model=model, stop_gradients="constant")


ASKED: Any = {"operator": "gauss_newton", "full": False, "path": "exact", "skip_failed": True}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_report(monkeypatch)


@pytest.fixture
def other_threads() -> Iterator[Callable[[], None]]:
    before = torch.get_num_threads()
    yield lambda: torch.set_num_threads(before + 1)
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["detach", "hook", "custom"])
def test_a_changed_derivative_is_refused(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def run(changed: bool) -> lh.Analysis:
        return analyze(made(kind, changed), out=out, resume=True, **ASKED)

    killed(lambda: run(False), in_pass(2))
    before = store.journal_path(out).read_bytes()
    with pytest.raises(lh.InputError, match="the loss is the same, and its derivative .* is another"):
        run(True)
    assert store.journal_path(out).read_bytes() == before
    assert len(run(False).blocks)


def test_a_hook_of_a_module_is_set_aside_and_no_difference(tmp_path: Path) -> None:
    def run(changed: bool) -> lh.Analysis:
        return analyze(made("hook of the module", changed), out=tmp_path / "run", resume=True, **ASKED)

    killed(lambda: run(False), in_pass(2))
    assert run(True).converged


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_other_threads_are_no_other_derivative(
    dtype: torch.dtype, tmp_path: Path, other_threads: Callable[[], None]
) -> None:
    def run() -> lh.Analysis:
        made = objective(model=network(nn.ReLU, dtype), data=data(dtype))
        return analyze(made, out=tmp_path / "run", resume=True)

    killed(run, in_pass(2))
    other_threads()
    assert run().converged

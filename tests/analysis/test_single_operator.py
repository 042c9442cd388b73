"""Calls on a single operator: what the self-check doubts is a warning; too large or small a curvature is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh

ENTRIES: dict[str, Callable[[Any], Any]] = {
    "trace": lh.trace,
    "diagonal": lh.diagonal,
    "density": lh.density,
    "coupling": lh.coupling,
    "eigsh": lh.eigsh,
}
every_entry = pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)


def objective(loss: Any, *norm: nn.Module) -> lh.Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), *norm, nn.Tanh(), nn.Linear(5, 3)).double()
    return lh.Objective(model, (torch.randn(20, 4).double(), torch.arange(20) % 3), loss)


def concave(output: Tensor, target: Tensor) -> Tensor:
    """One minus the probability of the right class: not convex in the logits."""
    return (1 - torch.softmax(output, 1).gather(1, target[:, None])).mean()


@every_entry
def test_gauss_newton_of_a_loss_that_is_not_convex(entry: Callable[[Any], Any]) -> None:
    with pytest.warns(lh.LayerhessWarning, match="may be indefinite") as caught:
        entry(lh.GaussNewton(objective(concave)))
    assert caught[0].filename == __file__  # it points at the call


@every_entry
def test_a_loss_that_ties_its_batch_together(entry: Callable[[Any], Any]) -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    with pytest.warns(lh.LayerhessWarning, match="not the sum over its examples"):
        entry(lh.Hessian(objective(nn.CrossEntropyLoss(), Centred())))


@every_entry
def test_nothing_is_said_where_nothing_is_in_doubt(entry: Callable[[Any], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        entry(lh.GaussNewton(objective(nn.CrossEntropyLoss())))
        entry(lh.Hessian(objective(nn.CrossEntropyLoss())))


SPECTRUM = np.linspace(-1.0, 2.0, 60)
sampled = pytest.mark.parametrize("entry", [lh.trace, lh.diagonal, lh.density], ids=["trace", "diagonal", "density"])


@sampled
@pytest.mark.parametrize("scale", [1e80, 1e150, 1e300])
def test_estimates_refuse_a_matrix_whose_fourth_powers_are_infinite(entry: Callable[[Any], Any], scale: float) -> None:
    with pytest.raises(lh.InputError, match=r"fourth powers, is infinite.*entries up to .*e\+"):
        entry(np.diag(SPECTRUM * scale))
    found = lh.eigsh(np.diag(SPECTRUM * scale), 1)
    assert abs(found.values[0] / scale - 2.0) <= found.error_bounds[0] / scale
    if scale < 1e154:
        assert found.error_bounds[0] < 1e-2 * scale and found.converged.all()
    else:
        assert found.error_bounds[0] == np.inf and not found.converged.any(), "squares are infinite"


@every_entry
def test_estimates_refuse_a_loss_whose_fourth_powers_are_infinite(entry: Callable[[Any], Any]) -> None:
    def huge(output: Tensor, target: Tensor) -> Tensor:
        return 1e90 * nn.functional.cross_entropy(output, target)

    if entry is lh.eigsh:
        assert lh.eigsh(lh.Hessian(objective(huge)), 1).converged
        return
    with pytest.raises(lh.InputError, match=r"fourth powers, is infinite.*entries up to .*e\+"):
        entry(lh.Hessian(objective(huge)))
    with pytest.raises(lh.InputError, match="scale the loss or the matrix down, or ask for eigenvalues alone"):
        lh.analyze(objective(huge), trace=lh.Trace(), density=lh.Density(), diagonal=lh.Diagonal())


@pytest.mark.parametrize("entry", [ENTRIES[name] for name in ENTRIES if name != "coupling"])
def test_a_matrix_whose_squares_vanish_is_refused_and_zero_is_not(entry: Callable[[Any], Any]) -> None:
    for scale in (1e-160, 1e-200, 1e-300):
        with pytest.raises(lh.InputError, match="so small that squares of its products vanish"):
            entry(np.diag(SPECTRUM * scale))
    entry(np.zeros((60, 60)))


@pytest.mark.parametrize("scale", [1e-140, 1e-60, 1e60])
def test_estimates_scale_with_the_matrix(scale: float) -> None:
    small, plain = (lh.density(np.diag(SPECTRUM * factor), probes=4) for factor in (scale, 1.0))
    assert small.mean / scale == pytest.approx(plain.mean, rel=1e-9)
    assert small.count(above=scale).value == pytest.approx(plain.count(above=1.0).value, abs=1e-6)
    assert lh.trace(np.diag(SPECTRUM * scale)).value / scale == pytest.approx(SPECTRUM.sum(), rel=1e-9)

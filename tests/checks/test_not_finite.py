"""Losses that are finite with derivatives that are not: every entry says which batch, which parameters, what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from witness import refused

Entry = Callable[[lh.Objective], Any]
SINGLE: dict[str, Entry] = {
    "trace": lambda o: lh.trace(lh.Hessian(o)),
    "trace of a block": lambda o: lh.trace(lh.Hessian(o).block("w")),
    "diagonal": lambda o: lh.diagonal(lh.Hessian(o)),
    "density": lambda o: lh.density(lh.Hessian(o)),
    "coupling": lambda o: lh.coupling(lh.Hessian(o)),
    "eigsh": lambda o: lh.eigsh(lh.Hessian(o)),
}
ENTRIES: dict[str, Entry] = {"analyze": lh.analyze, **SINGLE}

every_entry = pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
single_entry = pytest.mark.parametrize("entry", SINGLE.values(), ids=SINGLE)


class Power(nn.Module):
    """sum |w x|^p + b: at x = 0 the second derivative is infinite for p < 2, the first for p < 1; times x, NaN."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power
        self.b = nn.Parameter(torch.zeros(2).double())
        self.w = nn.Parameter(torch.ones(3).double())

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.w).abs().pow(self.power).sum(dim=1, keepdim=True) + self.b.sum()


def objective(power: float, number: int, zeros: tuple[int, slice | int]) -> lh.Objective:
    """Batches of 40 examples, in one of which (index, rows) are zero."""
    rng = torch.Generator().manual_seed(0)
    batches = [(torch.rand(40, 3, generator=rng).double() + 0.5, torch.zeros(40, 1).double()) for _ in range(number)]
    batches[zeros[0]][0][zeros[1]] = 0.0
    return lh.Objective(Power(power), batches, nn.MSELoss())


@every_entry
def test_one_example_in_one_batch(entry: Entry) -> None:
    """Nothing on the sample shows it, so it is the products over all data that do."""
    made = objective(1.5, 30, (17, 3))
    with refused(made.model, "batch 17, w", "NaN or infinite", "though the loss is finite", "sqrt"):
        entry(made)


@every_entry
def test_a_whole_batch(entry: Entry) -> None:
    """The self-check sees it on the sample, and names the batch that the piece is of."""
    made = objective(1.5, 2, (1, slice(None)))
    with refused(made.model, "NaN or infinite in batch 1", "(root) (Power)", "sqrt"):
        entry(made)


@single_entry
def test_what_takes_no_such_argument_does_not_advise_it(entry: Entry) -> None:
    made = objective(1.5, 2, (1, slice(None)))
    with refused(made.model, "self-check failed") as caught:
        entry(made)
    assert "skip_failed" not in str(caught.value) and "eigenvalues" not in str(caught.value)
    with refused(made.model, "skip_failed=True"):
        lh.analyze(made)


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("entry", [lh.trace, lh.coupling], ids=["trace", "coupling"])
def test_a_gradient_that_is_not_finite_under_the_other_operators(entry: Callable[[Any], Any], bad: int) -> None:
    made = objective(0.5, 2, (bad, slice(None)))
    with refused(made.model, f"batch {bad}", "NaN or infinite") as caught:
        entry(lh.GaussNewton(made))
    assert "auxiliary" not in str(caught.value)
    with refused(made.model, f"NaN or infinite in batch {bad}"):
        entry(lh.EmpiricalFisher(made))


def test_an_operator_that_is_no_network_is_named_as_such() -> None:
    with refused(None, "product of the operator is NaN or infinite", "repair the operator"):
        lh.trace(np.full((3, 3), np.nan))

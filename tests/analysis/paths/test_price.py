"""No block costs more products than its dimension, and the cheaper way is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import layerhess as lh
from driven_solver import draw, run
from layerhess.analysis.paths.exact import LARGEST_WHOLE, goes_dense, is_dear, make_process
from layerhess.analysis.paths.gram import GramOrSearch
from layerhess.analysis.waves import WHOLE_SHARE, whole_rows
from layerhess.curvature.device import Budget
from layerhess.linalg.eigen.dense import Dense
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.power import Power
from layerhess.linalg.eigen.process import Process, Wanted
from layerhess.linalg.eigen.row_sum import RowSum
from layerhess.objective.blocks import make_block
from references.spectra import FAMILIES, rotated


@pytest.mark.parametrize("wanted", [Wanted(bottom=3), Wanted(top=3, bottom=2), Wanted(top=1), Wanted(magnitude=4)])
@pytest.mark.parametrize("family", ["multiple", "gaussian", "low rank", "clusters"])
def test_a_search_takes_no_more_products_than_the_dimension(family: str, wanted: Wanted) -> None:
    n = 96
    values = FAMILIES[family](n, np.random.default_rng(5))
    process = Lanczos(n, wanted, 1e-6, draw(n), basis_limit=n, width=2, exclude=0.05)
    run(process, rotated(values, 0))
    assert process.steps <= n
    keep = wanted.indices(np.sort(values))
    np.testing.assert_allclose(process.candidates().values, np.sort(values)[keep], atol=1e-5)


def test_a_hard_bottom_is_read_whole_after_half_of_the_dimension() -> None:
    """256 parameters with bottom=3 and tol=1e-6 once took 6,400 products without an end."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16, bias=False), torch.nn.Tanh(), torch.nn.Linear(16, 3)).double()
    data = (torch.randn(40, 16).double(), torch.randint(0, 3, (40,)))
    objective = lh.Objective(model, data, torch.nn.CrossEntropyLoss())
    found = lh.analyze(objective, top=0, bottom=3, tol=1e-6, full=False, path="exact").blocks["0.weight"]
    assert found.converged.all() and found.steps <= 256, found.status
    dense = lh.Hessian(objective).block("0.weight").to_dense()
    truth = np.linalg.eigvalsh(np.asarray(dense))
    np.testing.assert_allclose(found.eigenvalues[::-1], truth[:3], atol=1e-9)


def test_small_blocks_are_read_whole_unless_products_are_dear() -> None:
    one = Wanted(top=1)
    assert goes_dense(32, one) and not goes_dense(33, one)
    assert not goes_dense(16, one, dear=True) and goes_dense(8, one, dear=True)
    assert goes_dense(3, Wanted(top=3), dear=True), "fewer than are asked for: the whole spectrum"
    assert is_dear(10**6, 1000.0) and not is_dear(1000, 1000.0)


def test_rows_for_a_whole_matrix_fit_the_budget() -> None:
    rows = whole_rows(10, Budget(2**40, limit=2**20))
    assert 10 * 16 * rows**2 <= WHOLE_SHARE * 2**20 < 10 * 16 * (rows + 1) ** 2
    assert whole_rows(0, Budget(2**40)) == LARGEST_WHOLE


@pytest.mark.parametrize(("exclude", "read"), [(0.05, 200), (None, 32)])
def test_power_iteration_is_left_to_blocks_that_cost_more_whole(exclude: float | None, read: int) -> None:
    """It takes some 200 products to exclude what is 5 % larger, whatever the block's size."""
    for n, whole in ((read, True), (read + 1, False)):
        torch.manual_seed(0)
        block = make_block("b", {"b": torch.nn.Parameter(torch.zeros(n))})
        process = make_process(
            block, Wanted(top=1), tol=1e-3, seed=0, method="power", device=torch.device("cpu"), basis_limit=n,
            exclude=exclude,
        )  # fmt: skip
        assert isinstance(process, Dense if whole else Power)


def _close_values() -> lh.Objective:
    """A block of 300 with eigenvalues from 0.9 to 1 times 2 / 300."""
    data = (torch.linspace(0.9, 1.0, 300, dtype=torch.float64).sqrt().diag(), torch.zeros(300, 1).double())
    return lh.Objective(torch.nn.Linear(300, 1, bias=False).double(), data, torch.nn.MSELoss())


SHORT = {"path": "exact", "top": 3, "tol": 1e-9, "memory": 1_000_000}  # room for 52 rows


@pytest.mark.parametrize(
    ("options", "status"),
    [({"method": "power", "tol": 1e-9, "exclude": None}, "not converged"), (SHORT | {"exclude": 1e-6}, "not excluded")],
    ids=["power iteration", "short memory"],
)
def test_a_search_that_cannot_read_all_of_the_block_ends_at_its_dimension(options: dict[str, Any], status: str) -> None:
    found = lh.analyze(_close_values(), full=False, max_passes=2000, **options).blocks["weight"]
    assert 290 < found.steps <= found.numel == 300 and not found.converged.all() and not found.complete
    assert found.status.startswith(status) and "the products of a whole reading are spent" in found.status
    truth = np.linspace(0.9, 1.0, 300) * 2.0 / 300.0
    for value, bound in zip(found.eigenvalues, found.error_bounds, strict=True):
        assert np.abs(truth - value).min() <= bound


def test_what_is_proved_when_the_products_are_spent_has_converged() -> None:
    """The search for copies was not over, but what it may still find is excluded above 5 %."""
    found = lh.analyze(_close_values(), full=False, max_passes=2000, **SHORT).blocks["weight"]
    assert 290 < found.steps <= found.numel and found.converged.all() and found.status == "converged"
    truth = np.array([1.0, 1.0 - 0.1 / 299, 1.0 - 0.2 / 299]) * 2.0 / 300.0
    assert (np.abs(found.eigenvalues - truth) <= found.error_bounds).all()


def test_a_block_whose_whole_spectrum_comes_from_rows_takes_no_product_more() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).double()
    objective = lh.Objective(model, (torch.randn(30, 5).double(), torch.randn(30, 2).double()), torch.nn.MSELoss())
    for block in lh.analyze(objective, top=20, path="gram", full=False).blocks.values():
        assert block.path.startswith("gram") and block.complete
        assert block.steps == block.numel


@pytest.mark.parametrize(("n", "top"), [(12, 2), (12, 12), (60, 2)])
def test_rows_that_are_not_the_operators_cost_no_product_more_than_the_dimension(n: int, top: int) -> None:
    """The pairs from them, and the random vector, are part of what is read then."""
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((8, n)))
    total = RowSum(n, torch.device("cpu"))
    total.add(rows, torch.ones(8))
    wanted = Wanted(top=top)
    found = total.decompose(wanted, 1.0, draw(n))
    matrix = (rows.T @ rows).numpy() + np.diag(np.linspace(-3.0, 1.0, n))
    assert found is not None

    def otherwise() -> Process:
        small = Dense(n, wanted)
        return small if goes_dense(n, wanted) else Lanczos(n, wanted, 1e-6, draw(n), basis_limit=n)

    process = GramOrSearch(found, wanted, True, otherwise)
    run(process, matrix)
    assert process.candidates().steps <= n and (n == 60 or process.candidates().steps == n)
    np.testing.assert_allclose(process.candidates().values, np.linalg.eigvalsh(matrix)[::-1][:top], atol=1e-5)

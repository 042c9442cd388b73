"""Gauss-Newton against dense J' S J, and where it is refused or qualified."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import layerhess as lh
from commands import working_in
from layerhess.cli import main
from layerhess.curvature.counters import Counters
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.curvature.output_graph import GaussNewtonGraph
from products_compared import FLOOR, distance, random_vector
from references import curvature, dense
from two_batches import batches, net, summed
from witness import refused
from zoo import BY_NAME, CASES, Case, dtypes_in_turn, twins

SMALL = [case for case in CASES if "large" not in case.tags]

every_case = pytest.mark.parametrize("case", CASES, ids=str)


def objective_of(case: Case, dtype: torch.dtype = torch.float64) -> lh.Objective:
    return curvature.with_output(case, case.build(dtype, 0)).objective()


# -- products ----------------------------------------------------------------------------------------------------------


@every_case
def test_products_are_those_of_the_dense_matrix(case: Case) -> None:
    reference = curvature.of_case(case.name, "gauss_newton")
    operator = lh.GaussNewton(objective_of(case), check=False)  # the analyses below have the checks
    vector = random_vector(len(reference.matrix), seed=1)
    expected = reference.matrix @ vector.numpy()
    assert distance(operator.matvec(vector), expected) <= case.tolerance * np.linalg.norm(expected)
    assert np.linalg.norm(operator.to_scipy() @ vector.numpy() - expected) <= case.tolerance * np.linalg.norm(expected)
    if len(reference.matrix) <= 50:
        assert distance(operator.to_dense(), reference.matrix) <= case.tolerance * np.linalg.norm(reference.matrix)


@pytest.mark.parametrize(
    ("case", "scheme"),
    [
        pytest.param(case, scheme, id=f"{case}-{scheme}", marks=() if number % 2 == place else pytest.mark.slow)
        for number, case in enumerate(CASES)
        for place, scheme in enumerate(("parameter", "module"))
    ],
)
def test_one_call_gives_every_diagonal_block(case: Case, scheme: str) -> None:
    reference = curvature.of_case(case.name, "gauss_newton")
    objective = objective_of(case)
    groups = dense.groups_of(objective.model, scheme)
    vectors = {
        name: random_vector(len(reference.index(members)), seed) for seed, (name, members) in enumerate(groups.items())
    }
    operator = lh.GaussNewton(objective, scheme, check=False)
    products = operator.block_matvec(vectors)
    assert list(products) == list(groups) == list(operator.block_names)
    floor = FLOOR * np.linalg.norm(reference.matrix)
    with operator.session():
        alone = {name: operator.block(name).matvec(vectors[name]) for name in groups}
    for name, members in groups.items():
        expected = reference.block(members) @ vectors[name].numpy()
        allowed = case.tolerance * np.linalg.norm(expected) + floor * np.linalg.norm(vectors[name])
        assert distance(products[name], expected) <= allowed, name
        assert distance(alone[name], expected) <= allowed, name


@pytest.mark.parametrize("name", ["mlp-tanh-mse", "transformer-tied-ignore", "cnn-residual-eval"])
@pytest.mark.parametrize("graph", [HessianGraph, GaussNewtonGraph])
def test_the_components_of_other_parameters_can_be_asked_for(name: str, graph: Any) -> None:
    """A[rows, names] v: the coupling between blocks, summed over batches by hand."""
    case = BY_NAME[name]
    reference = dense.of_case(name) if graph is HessianGraph else curvature.of_case(name, "gauss_newton")
    objective = objective_of(case)
    first, *_, last = objective.parameters
    vector = random_vector(objective.parameters[first].numel(), seed=2)
    total, count = torch.zeros(objective.parameters[last].numel(), dtype=torch.float64), 0.0
    with objective.session():
        for batch in objective.batches():
            made = graph(objective, batch, [first, last], Counters())
            (part,) = made.product([first], {first: vector.view(objective.parameters[first].shape)}, rows=[last])
            total += part.reshape(-1)
            count += made.count
    expected = reference.matrix[np.ix_(reference.index([last]), reference.index([first]))] @ vector.numpy()
    assert distance(total / count, expected) <= 1e-12 * reference.norm


@pytest.mark.parametrize("name", ["mlp-relu-ce", "cnn-batchnorm-eval", "cnn-residual-eval"])
def test_a_piecewise_linear_net_has_equal_blocks_of_weights_and_an_unequal_whole(name: str) -> None:
    """H_bb = G_bb for every weight of such a net (Botev, Ritter & Barber 2017); the couplings differ."""
    objective = objective_of(BY_NAME[name])
    full = random_vector(objective.numel, seed=3)
    hessian, gauss_newton = lh.Hessian(objective, "weight"), lh.GaussNewton(objective, "weight")
    for block in hessian.block_names:
        vector = random_vector(hessian.block(block).shape[0], seed=4)
        found = gauss_newton.block(block).matvec(vector)
        torch.testing.assert_close(found, hessian.block(block).matvec(vector), rtol=1e-10, atol=1e-13)
    assert (hessian.matvec(full) - gauss_newton.matvec(full)).norm() > 0.01 * gauss_newton.matvec(full).norm()


def test_the_worked_example_has_a_hundred_and_twenty_at_the_top() -> None:
    """The 2-2-1 linear net, x = (1, 1), y = 14: tops of the blocks 20 and 100, of the whole their sum."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[2.0, 3.0], [4.0, 1.0]]))
        net[1].weight.copy_(torch.tensor([[2.0, 1.0]]))
    data = (torch.ones(1, 2).double(), torch.full((1, 1), 14.0).double())
    result = lh.analyze(lh.Objective(net, data, nn.MSELoss()), operator="gauss_newton")
    assert [round(float(s.eigenvalues[0]), 9) for s in result.spectra()] == [20.0, 100.0, 120.0]
    assert {s.operator for s in result.spectra()} == {"gauss_newton"}


# -- eigenvalues -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "dtype"), dtypes_in_turn(SMALL, leave=twins(1)))
def test_the_bounds_of_an_analysis_hold_the_dense_eigenvalues(case: Case, dtype: torch.dtype) -> None:
    reference = curvature.of_case(case.name, "gauss_newton")
    objective = objective_of(case, dtype)
    result = lh.analyze(objective, blocks="module", operator="gauss_newton", bottom=1)
    groups = dense.groups_of(objective.model, "module")
    # A float32 model is not the float64 model: its weights are rounded, which moves eigenvalues by about that much.
    slack = (case.inherent + 1e-14 + (1e-6 if dtype == torch.float32 else 0.0)) * reference.norm
    for spectrum in result.spectra():
        members = list(reference.places) if spectrum is result.full else groups[spectrum.name]
        truth = np.linalg.eigvalsh(reference.block(members))[::-1]
        expected = truth if len(truth) <= 2 else truth[[0, -1]]
        if spectrum.status.startswith("zero"):
            expected = truth[: len(spectrum.eigenvalues)]
        assert spectrum.ok, (spectrum.name, spectrum.status)
        assert (np.abs(spectrum.eigenvalues - expected) <= spectrum.error_bounds + slack).all(), spectrum.name
        assert (spectrum.eigenvalues >= -spectrum.error_bounds - slack).all()  # every loss of the zoo is convex


def test_eigsh_takes_it_and_its_blocks() -> None:
    case = BY_NAME["mlp-tanh-wide"]
    reference = curvature.of_case(case.name, "gauss_newton")
    operator = lh.GaussNewton(objective_of(case), "module")
    truth = np.linalg.eigvalsh(reference.matrix)[::-1][:3]
    pairs = lh.eigsh(operator, k=3, tol=1e-6)
    assert pairs.converged.all() and (np.abs(pairs.values - truth) <= pairs.error_bounds + 1e-14).all()
    block = lh.eigsh(operator.block("2"), k=1)
    top = np.linalg.eigvalsh(reference.block(["2.weight", "2.bias"]))[-1]
    assert abs(block.values[0] - top) <= block.error_bounds[0] + 1e-14


# -- refusals and notes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [lh.GaussNewton, lambda o: lh.analyze(o, operator="gauss_newton")])
def test_a_batch_loss_without_an_output_is_refused(call: Any) -> None:
    model = net()
    with refused(model, "one step", "lh.batch_loss(loss, output=forward)"):
        call(lh.Objective(model, batches(), lh.batch_loss(summed)))


def test_a_batch_loss_with_an_output_is_the_criterion() -> None:
    loss = lh.batch_loss(
        lambda output, batch: (nn.functional.cross_entropy(output, batch[1], reduction="sum"), len(batch[1])),
        output=lambda model, batch: model(batch[0]),
    )
    model = net()
    found = lh.GaussNewton(lh.Objective(model, batches(), loss)).to_dense()
    expected = lh.GaussNewton(lh.Objective(model, batches(), nn.CrossEntropyLoss())).to_dense()
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("output", [5, lambda model, batch: (model(batch[0]), 1), lambda model, batch: batch[1]])
def test_an_output_that_is_none_is_refused(output: Any) -> None:
    with pytest.raises(lh.InputError, match="output"):
        loss = lh.batch_loss(lambda z, batch: (model(batch[0]).sum(), 1), output=output)
        model = net()
        lh.GaussNewton(lh.Objective(model, batches(), loss)).to_dense()


# -- the command line --------------------------------------------------------------------------------------------------

FACTORY = """
import torch, layerhess as lh
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
x, y = torch.randn(9, 3), torch.arange(9) % 2
def summed(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])
def good(): return lh.Objective(model, (x, y), nn.CrossEntropyLoss())
def bare(): return lh.Objective(model, (x, y), lh.batch_loss(summed))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "factory.py").write_text(FACTORY)
    with working_in(tmp_path, monkeypatch):
        yield tmp_path


def test_the_command_line_takes_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "factory.py:good", "--operator", "gauss_newton", "--out", "run", "-q"]) == 0
    saved = lh.load("run")
    assert {s.operator for s in saved.spectra()} == {"gauss_newton"} == {saved.settings["operator"]}
    text = str(saved) + (folder / "run" / "report.html").read_text()
    assert "G_bb" in text and "Gauss-Newton" in text


def test_the_command_line_refuses_what_python_refuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "factory.py:bare", "--operator", "gauss_newton", "--out", "run"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "one step" in said and "output=forward" in said and "Traceback" not in said
    assert not (folder / "run").exists()

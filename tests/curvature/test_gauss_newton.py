"""Gauss-Newton against dense J' S J, and where it is refused or qualified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import layerhess as lh
from layerhess.cli import main
from layerhess.curvature.counters import Counters
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.curvature.output_graph import GaussNewtonGraph
from references import curvature, dense
from witness import refused
from zoo import BY_NAME, CASES, Case

FLOOR = 1e-14  # of the norm of the whole matrix: what rounding leaves of a block that cancels
SMALL = [case for case in CASES if "large" not in case.tags]

every_case = pytest.mark.parametrize("case", CASES, ids=str)


def objective_of(case: Case, dtype: torch.dtype = torch.float64) -> lh.Objective:
    return curvature.with_output(case, case.build(dtype, 0)).objective()


def distance(found: Tensor, expected: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found.detach().double().numpy().ravel() - expected.ravel()))


def random_vector(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- products ----------------------------------------------------------------------------------------------------------


@every_case
def test_products_are_those_of_the_dense_matrix(case: Case) -> None:
    reference = curvature.of_case(case.name, "gauss_newton")
    operator = lh.GaussNewton(objective_of(case))
    vector = random_vector(len(reference.matrix), seed=1)
    expected = reference.matrix @ vector.numpy()
    assert distance(operator.matvec(vector), expected) <= case.tolerance * np.linalg.norm(expected)
    assert np.linalg.norm(operator.to_scipy() @ vector.numpy() - expected) <= case.tolerance * np.linalg.norm(expected)
    if len(reference.matrix) <= 100:
        assert distance(operator.to_dense(), reference.matrix) <= case.tolerance * np.linalg.norm(reference.matrix)


@pytest.mark.parametrize("scheme", ["parameter", "module"])
@every_case
def test_one_call_gives_every_diagonal_block(case: Case, scheme: str) -> None:
    reference = curvature.of_case(case.name, "gauss_newton")
    objective = objective_of(case)
    groups = dense.groups_of(objective.model, scheme)
    vectors = {
        name: random_vector(len(reference.index(members)), seed) for seed, (name, members) in enumerate(groups.items())
    }
    operator = lh.GaussNewton(objective, scheme)
    products = operator.block_matvec(vectors)
    assert list(products) == list(groups) == list(operator.block_names)
    floor = FLOOR * np.linalg.norm(reference.matrix)
    for name, members in groups.items():
        expected = reference.block(members) @ vectors[name].numpy()
        allowed = case.tolerance * np.linalg.norm(expected) + floor * np.linalg.norm(vectors[name])
        assert distance(products[name], expected) <= allowed, name
        assert distance(operator.block(name).matvec(vectors[name]), expected) <= allowed, name


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", SMALL, ids=str)
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


def net(*tail: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), *tail).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 4, generator=generator).double()
    return [(x[:7], torch.arange(7) % 3), (x[7:], torch.arange(5) % 3)]


def summed(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])


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


def test_a_loss_that_is_not_made_from_the_output_is_refused() -> None:
    model = net()
    loss = lh.batch_loss(lambda z, batch: summed(model, batch), output=lambda model, batch: model(batch[0]))
    with refused(model, "not computed from the output", "very tensor"):
        lh.analyze(lh.Objective(model, batches(), loss), operator="gauss_newton")


@pytest.mark.parametrize("weight", [1.0, 1e-2])
def test_a_loss_that_reaches_the_parameters_beside_the_output_is_refused(weight: float) -> None:
    model = net()

    def penalised(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target) + weight * model[0].weight.square().sum()

    objective = lh.Objective(model, batches(), penalised)
    lh.analyze(objective)  # nothing is wrong with its Hessian
    with pytest.raises(lh.CheckError, match="beside the model's output") as caught:
        lh.analyze(objective, operator="gauss_newton")
    assert "0.weight" in caught.value.where and "hessian" in caught.value.what_to_do
    with pytest.raises(lh.CheckError, match="beside the model's output"):
        lh.eigsh(lh.GaussNewton(objective))


@pytest.mark.parametrize("loss", [nn.NLLLoss(), lambda z, y: (z - y[:, None]).abs().mean(1).mean()])
def test_a_loss_that_is_linear_in_the_output_gives_zero_with_a_note(loss: Any) -> None:
    model = net(nn.LogSoftmax(dim=1))
    result = lh.analyze(lh.Objective(model, batches(), loss), operator="gauss_newton")
    assert any("linear in the model's output" in note and "log_softmax" in note for note in result.notes)
    assert all(s.ok and not s.eigenvalues.any() for s in result.spectra())
    assert all(s.status.startswith("zero") for s in result.blocks.values())


@pytest.mark.parametrize("convex", [True, False])
def test_a_loss_that_is_not_convex_in_the_output_gets_a_note(convex: bool) -> None:
    model = net()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if convex:
            return nn.functional.cross_entropy(output, target)
        return (1 - torch.softmax(output, 1).gather(1, target[:, None])).mean()

    result = lh.analyze(lh.Objective(model, batches(), loss), operator="gauss_newton", bottom=1)
    assert any("may be indefinite" in note for note in result.notes) is not convex
    assert result.full is not None
    assert (result.full.eigenvalues[-1] < -result.full.error_bounds[-1]) is not convex


class TwiceWrong(torch.autograd.Function):
    """The identity; its gradient is right, and the derivative of that is 10 % too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return Inner.apply(g)


class Inner(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor) -> Tensor:
        return g.clone()

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> Any:
        return 1.1 * h


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return TwiceWrong.apply(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_a_wrong_second_derivative_is_found_with_and_without_kinks(dtype: torch.dtype, activation: Any) -> None:
    """Only what lies before the faulty step is wrong: symmetric alone, seen by the transpose and in the whole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), Wrong(), activation(), nn.Linear(5, 3)).to(dtype)
    data = [(x.to(dtype), y) for x, y in batches()]
    objective = lh.Objective(model, data, nn.CrossEntropyLoss())
    with pytest.raises(lh.CheckError, match="0.weight"):
        lh.analyze(objective, operator="gauss_newton")
    result = lh.analyze(objective, operator="gauss_newton", full=False, skip_failed=True)
    refused_ones = [name for name, s in result.blocks.items() if s.status.startswith("refused")]
    assert refused_ones == ["0.weight", "0.bias"]


class FirstWrong(torch.autograd.Function):
    """x squared with the gradient 3 x: wrong, and consistently so in every further derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return 3.0 * ctx.saved_tensors[0] * g


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return FirstWrong.apply(x)  # type: ignore[no-any-return]


def test_a_wrong_first_derivative_is_found_by_differences_of_the_output() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), Squares(), nn.Linear(5, 3)).double()
    with pytest.raises(lh.CheckError, match="finite differences") as caught:
        lh.analyze(lh.Objective(model, batches(), nn.CrossEntropyLoss()), operator="gauss_newton")
    assert "0.weight" in str(caught.value) and "2.weight" not in caught.value.where


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
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "factory.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


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

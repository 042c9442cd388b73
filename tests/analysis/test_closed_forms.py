"""Spectra known in closed form come out, with their multiplicities, through the public calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

import layerhess as lh
import zoo_losses
from references import closed_form as closed
from references import dense

Matrix = NDArray[np.float64]


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(found: Any, expected: Matrix) -> float:
    return float(np.linalg.norm(torch.as_tensor(found).numpy() - expected) / np.linalg.norm(expected))


def full_matrix(objective: lh.Objective) -> Tensor:
    return torch.as_tensor(lh.Hessian(objective, "parameter").to_dense())


def array(tensor: Tensor) -> Matrix:
    return tensor.detach().numpy().astype(float)


def assert_spectrum(result: Any, truth: Matrix, top: int, bottom: int, rounding: float = 1e-13) -> None:
    """The ends of a spectrum given in descending order, within the stated bounds."""
    expected = np.concatenate([truth[:top], truth[len(truth) - bottom :]])
    assert result.eigenvalues.shape == expected.shape
    assert all(result.converged), result.status
    allowed = result.error_bounds + rounding * np.abs(truth).max()
    assert (np.abs(result.eigenvalues - expected) <= allowed).all()


def assert_multiplicity(result: Any, value: float, times: int) -> None:
    """``times`` eigenvalues are ``value``, and their vectors span as many dimensions."""
    hits = np.abs(result.eigenvalues - value) <= result.error_bounds + 1e-12 * abs(value)
    assert hits.sum() == times, result.eigenvalues
    vectors = [v for v, hit in zip(result.eigenvectors, hits, strict=True) if hit]
    flat = torch.stack([torch.cat([part.reshape(-1) for part in v.values()]) for v in vectors]).double()
    assert (flat @ flat.T - torch.eye(times, dtype=torch.float64)).abs().max() <= 1e-4


def softmax_model(width: int, classes: int, seed: int) -> nn.Linear:
    model = nn.Linear(width, classes).double()
    with torch.no_grad():
        model.weight.copy_(numbers(seed, classes, width))
        model.bias.copy_(numbers(seed + 1, classes))
    return model


# --- regressions -----------------------------------------------------------------------------------------------------


def test_softmax_regression_has_boehnings_hessian() -> None:
    model, x = softmax_model(4, 3, seed=0), numbers(2, 11, 4)
    target = torch.arange(11) % 3
    data = [(x[:6], target[:6]), (x[6:], target[6:])]
    truth = closed.softmax_regression(array(x), array(model.weight), array(model.bias))
    reference = dense.reference_for(model, data, zoo_losses.cross_entropy_totals)
    assert relative(reference.matrix, truth) <= 1e-14
    objective = lh.Objective(model, data, nn.CrossEntropyLoss())
    assert relative(full_matrix(objective), truth) <= 1e-13
    analysis = lh.analyze(objective, blocks="parameter", top=3, bottom=2)
    assert_spectrum(analysis.full, closed.descending(truth), 3, 2)
    assert_spectrum(analysis.blocks["weight"], closed.descending(truth[:12, :12]), 3, 2)
    assert_spectrum(analysis.blocks["bias"], closed.descending(truth[12:, 12:]), 3, 0)


def test_logistic_regression_weighs_examples_by_their_variance() -> None:
    model, x = nn.Linear(4, 1).double(), numbers(3, 9, 4)
    target = (numbers(4, 9, 1) > 0).double()
    truth = closed.logistic_regression(array(x), array(model.weight)[0], model.bias.item())
    objective = lh.Objective(model, [(x[:7], target[:7]), (x[7:], target[7:])], nn.BCEWithLogitsLoss())
    assert relative(full_matrix(objective), truth) <= 1e-13
    assert_spectrum(lh.analyze(objective, top=2, bottom=2).full, closed.descending(truth), 2, 2)


def test_linear_regression_has_the_gram_matrix_once_for_each_output() -> None:
    model, x, y = nn.Linear(4, 3).double(), numbers(5, 10, 4), numbers(6, 10, 3)
    truth = closed.linear_regression(array(x), outputs=3)
    reference = dense.reference_for(model, [(x, y)], zoo_losses.squared_totals)
    assert relative(reference.matrix, truth) <= 1e-14
    objective = lh.Objective(model, [(x[:4], y[:4]), (x[4:], y[4:])], nn.MSELoss())
    assert relative(full_matrix(objective), truth) <= 1e-13
    analysis = lh.analyze(objective, top=4, bottom=1)
    assert_spectrum(analysis.full, closed.descending(truth), 4, 1)
    assert_multiplicity(analysis.full, closed.descending(truth)[0], times=3)


def digits_at_zero() -> tuple[lh.Objective, Matrix]:
    """Softmax regression on scikit-learn's digits at zero weights, and the eigenvalues of its X^T X / N."""
    images, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(images / 16.0)
    model = nn.Linear(64, 10).double()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    data = [(x[i : i + 500], torch.as_tensor(labels[i : i + 500]).long()) for i in range(0, len(x), 500)]
    gram = closed.descending(array(x).T @ array(x) / len(x))
    return lh.Objective(model, data, nn.CrossEntropyLoss()), gram


def test_digits_at_zero_weights_have_their_top_eigenvalue_nine_times() -> None:
    """H = (X^T X / N) kron (I / C - 1 1^T / C^2): each eigenvalue of the Gram matrix over C, C - 1 times."""
    objective, gram = digits_at_zero()
    analysis = lh.analyze(objective, blocks="parameter", top=10, full=False)
    result = analysis.blocks["weight"]
    truth = np.concatenate([np.full(9, gram[0] / 10), [gram[1] / 10]])
    assert all(result.converged), result.status
    assert (np.abs(result.eigenvalues - truth) <= result.error_bounds + 1e-14 * gram[0]).all()
    assert_multiplicity(result, gram[0] / 10, times=9)
    # The biases alone: I / C - 1 1^T / C^2 is a projection over C.
    assert np.abs(analysis.blocks["bias"].eigenvalues - np.array([0.1] * 9 + [0.0])).max() <= 1e-14


def test_digits_have_the_tenth_eigenvalue_in_the_same_multiplicity() -> None:
    """The eigensolver on a single operator, deeper: nine times the first, nine times the second."""
    objective, gram = digits_at_zero()
    block = lh.Hessian(objective, "parameter").block("weight")
    pairs = lh.eigsh(block, 18, which="LA", tol=1e-6, max_passes=2000, seed=1)
    truth = np.repeat(gram[:2] / 10, 9)
    values, bounds = np.asarray(pairs.values), np.asarray(pairs.error_bounds)
    assert all(pairs.converged)
    assert (np.abs(values - truth) <= bounds + 1e-14 * gram[0]).all()


# --- products of parameters -------------------------------------------------------------------------------------------


def two_layer_linear_at_zero(hidden: int) -> tuple[lh.Objective, Matrix, Matrix]:
    model = nn.Sequential(nn.Linear(4, hidden, bias=False), nn.Linear(hidden, 2, bias=False)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    x, y = numbers(7, 9, 4), numbers(8, 9, 2)
    truth, positive = closed.two_layer_linear_at_zero(array(x), array(y), hidden)
    return lh.Objective(model, [(x[:6], y[:6]), (x[6:], y[6:])], nn.MSELoss()), truth, positive


def test_a_two_layer_linear_net_at_zero_has_only_coupling() -> None:
    """Every diagonal block is zero; the full spectrum is plus and minus the singular values, ``hidden`` times each."""
    objective, truth, positive = two_layer_linear_at_zero(hidden=3)
    assert relative(full_matrix(objective), truth) <= 1e-13
    analysis = lh.analyze(objective, blocks="parameter", top=6, bottom=6)
    assert np.abs(analysis.full.eigenvalues - np.concatenate([positive, -positive[::-1]])).max() <= (
        analysis.full.error_bounds.max() + 1e-13
    )
    for sigma in np.unique(positive):
        assert_multiplicity(analysis.full, sigma, times=3)
        assert_multiplicity(analysis.full, -sigma, times=3)
    for result in analysis.blocks.values():
        assert (result.eigenvalues == 0).all()
        assert "zero" in result.status.lower()


def test_both_ends_of_a_wide_two_layer_linear_net_at_zero_are_found() -> None:
    """Too many parameters for a whole spectrum to be free: multiplicities at both ends must come from the solver."""
    objective, _, positive = two_layer_linear_at_zero(hidden=150)
    analysis = lh.analyze(objective, blocks="parameter", top=3, bottom=3, full=True)
    sigma = positive.max()
    assert (np.abs(analysis.full.eigenvalues[:3] - sigma) <= analysis.full.error_bounds[:3] + 1e-13).all()
    assert (np.abs(analysis.full.eigenvalues[3:] + sigma) <= analysis.full.error_bounds[3:] + 1e-13).all()
    assert all("zero" in result.status.lower() for result in analysis.blocks.values())


class Factors(nn.Module):
    """The product U V^T, whatever the input."""

    def __init__(self, u: Tensor, v: Tensor) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(u), nn.Parameter(v)

    def forward(self, ignored: Tensor) -> Tensor:
        return self.u @ self.v.T


def test_matrix_factorisation_has_gram_matrices_as_blocks() -> None:
    u, v, target = numbers(9, 5, 2), numbers(10, 4, 2), numbers(11, 5, 4)
    truth = closed.matrix_factorisation(array(u), array(v), array(target))
    objective = lh.Objective(Factors(u, v), (target, target), nn.MSELoss())
    assert relative(full_matrix(objective), truth) <= 1e-13
    analysis = lh.analyze(objective, blocks="parameter", top=5, bottom=2)
    assert_spectrum(analysis.full, closed.descending(truth), 5, 2)
    gram = closed.descending(2 * array(v).T @ array(v) / target.numel())
    assert_spectrum(analysis.blocks["u"], np.repeat(gram, 5), 5, 2)
    assert_multiplicity(analysis.blocks["u"], gram[0], times=5)


def test_the_exact_factorisation_is_flat_along_its_symmetry() -> None:
    """At zero error, U R and V R^-T give the same product: rank^2 flat directions, and no negative eigenvalue."""
    u, v = numbers(12, 5, 2), numbers(13, 4, 2)
    analysis = lh.analyze(lh.Objective(Factors(u, v), (u @ v.T, u @ v.T), nn.MSELoss()), top=1, bottom=5)
    scale = analysis.full.eigenvalues[0]
    assert (np.abs(analysis.full.eigenvalues[-4:]) <= analysis.full.error_bounds[-4:] + 1e-14 * scale).all()
    assert analysis.full.eigenvalues[-5] > 1e-3 * scale


class WorkedExample(nn.Module):
    """The 2-2-1 linear net with W = [[2, 3], [4, 1]] and V = [2, 1] of shape (2,), for one unbatched x."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.tensor([[2.0, 3.0], [4.0, 1.0]], dtype=torch.float64))
        self.V = nn.Parameter(torch.tensor([2.0, 1.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.V @ (self.W @ x)


def test_the_worked_example_has_20_100_and_122() -> None:
    data = (torch.ones(2, dtype=torch.float64), torch.tensor([14.0], dtype=torch.float64))
    objective = lh.Objective(WorkedExample(), data, nn.MSELoss())
    assert relative(full_matrix(objective), closed.worked_example()) <= 1e-15
    analysis = lh.analyze(objective, blocks="parameter", top=6)
    truth = np.sort(closed.WORKED_EXAMPLE_SPECTRUM)[::-1]
    assert np.abs(analysis.full.eigenvalues - truth).max() <= 1e-12
    one = lh.analyze(objective, blocks="parameter", top=1)
    assert one.blocks["W"].eigenvalues == pytest.approx([20], rel=1e-13)
    assert one.blocks["V"].eigenvalues == pytest.approx([100], rel=1e-13)
    assert one.full.eigenvalues == pytest.approx([60 + 2 * 962**0.5], rel=1e-13)
    w, v = one.blocks["W"].eigenvectors[0]["W"], one.blocks["V"].eigenvectors[0]["V"]
    assert np.allclose(array(w), np.array([[2, 2], [1, 1]]) / 10**0.5, atol=1e-9)
    assert np.allclose(array(v), np.array([1, 1]) / 2**0.5, atol=1e-9)


# --- surfaces of optimisation, through batch_loss ---------------------------------------------------------------------


class Point(nn.Module):
    """A point in the plane or beyond: there is nothing to predict, only a loss of the parameters."""

    def __init__(self, at: tuple[float, ...]) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(at, dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.x


SURFACE_POINTS = [(surface, point) for surface in closed.SURFACES for point in surface.points]


@pytest.mark.parametrize(("surface", "point"), SURFACE_POINTS, ids=lambda part: getattr(part, "name", None))
def test_surfaces_of_optimisation_have_the_hessian_of_the_textbook(
    surface: closed.Surface, point: tuple[float, ...]
) -> None:
    truth = surface.hessian(np.array(point))
    assert relative(dense.rows_of_hessian(surface.value, torch.tensor(point, dtype=torch.float64)), truth) <= 1e-14
    loss = lh.batch_loss(lambda model, batch: (surface.value(model()) * batch[0].sum(), batch[0].sum()))
    weights = torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64)  # three examples that all see the same surface
    objective = lh.Objective(Point(point), [(weights[:1],), (weights[1:],)], loss)
    assert relative(full_matrix(objective), truth) <= 1e-13
    result = lh.analyze(objective, top=len(point)).full
    assert result.complete
    assert np.abs(result.eigenvalues - closed.descending(truth)).max() <= 1e-13 * np.linalg.norm(truth)


class TwoQuadratics(nn.Module):
    """Parameters of two quadratic forms that do not touch each other."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.strong = nn.Parameter(torch.ones(size, dtype=dtype))
        self.weak = nn.Parameter(torch.ones(size, dtype=dtype))

    def forward(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        return self.strong.square().sum() / 2, (self.weak @ direction).square() / 2


@pytest.mark.parametrize("share", [1.0, 30.0, 300.0, 3000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_weak_block_beside_a_strong_one_is_covered_by_its_bound(dtype: torch.dtype, share: float) -> None:
    """A single direction of curvature c beside the identity: a random vector sees only c / sqrt(n) of it.

    Whether the block is called zero or not, the interval contains c.
    """
    size = 400
    direction = numbers(14, size).to(dtype)
    direction /= direction.norm()
    curvature = share * torch.finfo(dtype).eps
    loss = lh.batch_loss(
        lambda model, batch: (sum(p * w for p, w in zip(model(batch[0]), (1.0, curvature), strict=True)), 1)
    )
    objective = lh.Objective(TwoQuadratics(size, dtype), [(direction,)], loss)
    result = lh.analyze(objective, blocks="parameter", full=False).blocks["weak"]
    assert abs(result.eigenvalues[0] - curvature) <= result.error_bounds[0]

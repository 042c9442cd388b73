"""Published standard errors of classical regressions are square roots of the diagonal of our inverse Hessians."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import layerhess as lh
from references import statsmodels_truth as published

Matrix = NDArray[np.float64]

FITS = {
    "spector-logit": published.spector_logit,
    "spector-probit": published.spector_probit,
    "randhie-poisson": published.randhie_poisson,
    "anes96-mnlogit": published.anes96_mnlogit,
}


class LinearPredictor(nn.Module):
    """x beta without a bias (the design has its own constant): (N,) for beta (d,), (N, C) for beta (C, d)."""

    def __init__(self, beta: Matrix) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(beta))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.beta)


class AgainstBase(LinearPredictor):
    """Logits of several classes against class 0, whose logit is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.new_zeros(len(x), 1), super().forward(x)], dim=1)


def probit_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
    x, y = batch
    return -torch.special.log_ndtr((2 * y - 1) * model(x)).sum(), len(y)


def in_batches(fit: published.Regression, kind: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    """Three unequal batches."""
    x, y = torch.tensor(fit.design), torch.tensor(fit.response).to(kind)
    third = len(x) // 3 + 1
    return [(x[i : i + third], y[i : i + third]) for i in range(0, len(x), third)]


def objective_of(name: str, fit: published.Regression) -> lh.Objective:
    if name == "anes96-mnlogit":
        return lh.Objective(AgainstBase(fit.optimum), in_batches(fit, torch.int64), nn.CrossEntropyLoss())
    loss = {
        "spector-logit": nn.BCEWithLogitsLoss(),
        "spector-probit": lh.batch_loss(probit_loss),
        "randhie-poisson": nn.PoissonNLLLoss(full=True),
    }[name]
    return lh.Objective(LinearPredictor(fit.optimum), in_batches(fit), loss)


def inverse(matrix: Matrix) -> Matrix:
    """The inverse of a positive definite matrix, scaled to a unit diagonal first: the designs are in all units."""
    scale = np.sqrt(np.diag(matrix))
    return np.linalg.inv(matrix / np.outer(scale, scale)) / np.outer(scale, scale)


@pytest.mark.parametrize("name", list(FITS))
def test_standard_errors_are_the_published_ones(name: str) -> None:
    fit = FITS[name]()
    hessian = np.asarray(lh.Hessian(objective_of(name, fit), "parameter").to_dense())
    errors = np.sqrt(np.diag(inverse(hessian)) / len(fit.response))
    assert np.abs(errors / fit.published.ravel() - 1).max() <= 2e-7


@pytest.mark.parametrize("name", list(FITS))
def test_the_spectrum_of_the_fit_gives_the_sum_of_squared_errors(name: str) -> None:
    """The trace of the inverse is the sum of 1 / eigenvalue: a whole spectrum against published numbers only."""
    fit = FITS[name]()
    objective = objective_of(name, fit)
    result = lh.analyze(objective, top=fit.optimum.size).full
    assert result.complete
    total = float((fit.published**2).sum())
    assert abs((1 / result.eigenvalues).sum() / len(fit.response) / total - 1) <= 4e-7


def test_longleys_slopes_have_nists_standard_errors() -> None:
    """Least squares: the covariance is sigma^2 (X^T X)^-1, and the Hessian of the mean squared error is 2 X^T X / N."""
    fit, scale = published.longley()
    data = in_batches(fit)
    hessian = np.asarray(
        lh.Hessian(lh.Objective(LinearPredictor(fit.optimum), data, nn.MSELoss()), "parameter").to_dense()
    )
    count, width = fit.design.shape
    residual = fit.response - fit.design @ fit.optimum
    sigma_squared = residual @ residual / (count - width)
    errors = np.sqrt(2 * sigma_squared / count * np.diag(inverse(hessian)))[:-1] / scale
    assert np.abs(errors / fit.published - 1).max() <= 1e-10

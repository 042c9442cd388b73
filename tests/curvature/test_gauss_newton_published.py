"""Standard errors from Gauss-Newton matrices: observed and expected information of probit, NIST's deviations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import layerhess as lh
from references import nist
from references import statsmodels_truth as published


class Predictor(nn.Module):
    """x beta, or what a link makes of it."""

    def __init__(self, beta: NDArray[np.float64], link: Any = lambda z: z) -> None:
        super().__init__()
        self.beta, self.link = nn.Parameter(torch.tensor(beta)), link

    def forward(self, x: Tensor) -> Tensor:
        return self.link(x @ self.beta)  # type: ignore[no-any-return]


def probit_data() -> tuple[published.Regression, list[tuple[Tensor, Tensor]]]:
    fit = published.spector_probit()
    x, y = torch.tensor(fit.design), torch.tensor(fit.response)
    return fit, [(x[:7], y[:7]), (x[7:20], y[7:20]), (x[20:], y[20:])]


def standard_errors(objective: lh.Objective, count: int) -> NDArray[np.float64]:
    """Square roots of the diagonal of the inverse of the summed matrix."""
    matrix = lh.GaussNewton(objective).to_dense().numpy() * count
    scale = np.sqrt(np.diag(matrix))
    return np.sqrt(np.diag(np.linalg.inv(matrix / np.outer(scale, scale)))) / scale


def test_a_linear_predictor_gives_the_observed_information_of_probit() -> None:
    """The network is linear in its parameters there, so nothing of the Hessian is left out."""
    fit, data = probit_data()

    def likelihood(output: Tensor, target: Tensor) -> Tensor:
        return -torch.special.log_ndtr((2 * target - 1) * output).mean()

    errors = standard_errors(lh.Objective(Predictor(fit.optimum), data, likelihood), len(fit.response))
    assert np.abs(errors / np.array(published.SPECTOR_PROBIT_ERRORS) - 1).max() <= 2e-7
    assert abs(errors[0] - 0.693882) <= 1e-6


def test_the_natural_parameter_gives_the_expected_information_of_probit() -> None:
    """Logits of the probabilities under binary cross entropy: Fisher scoring, whose errors are others."""
    fit, data = probit_data()
    natural = Predictor(fit.optimum, lambda z: torch.special.log_ndtr(z) - torch.special.log_ndtr(-z))
    errors = standard_errors(lh.Objective(natural, data, nn.BCEWithLogitsLoss()), len(fit.response))
    z = fit.design @ fit.optimum
    weight = published.norm.pdf(z) ** 2 / (published.norm.cdf(z) * published.norm.cdf(-z))
    information = fit.design.T @ (weight[:, None] * fit.design)
    assert np.abs(errors / np.sqrt(np.diag(np.linalg.inv(information))) - 1).max() <= 1e-9
    assert abs(errors[0] - 0.689731) <= 1e-6


@pytest.mark.parametrize("dataset", list(nist.MODELS))
def test_nists_certified_deviations_of_the_estimates(dataset: str) -> None:
    """sd^2 = RSS / (n - p) times the diagonal of (J' J)^-1, and G = 2 J' J / n for the mean squared error."""
    truth = nist.load(dataset, "polished_optimum")
    count, width = len(truth.x), len(truth.certified_deviations)
    parts = [(truth.x[i], truth.y[i]) for i in map(torch.as_tensor, np.array_split(np.arange(count), 3))]
    matrix = lh.GaussNewton(lh.Objective(truth.curve, parts, nn.MSELoss())).to_dense().numpy() * count / 2
    scale = np.sqrt(np.diag(matrix))
    scaled = matrix / np.outer(scale, scale)
    with torch.no_grad():
        rss = float((truth.y - truth.curve(truth.x)).square().sum())
    found = np.sqrt(rss / (count - width) * np.diag(np.linalg.inv(scaled))) / scale
    # Inverting J' J in float64 costs cond(J' J) eps. Lanczos1's residual is 1e-13 in thirteen-digit data.
    tolerance = 2e-3 if dataset == "Lanczos1" else 1e-7 + 10 * np.linalg.cond(scaled) * np.finfo(float).eps
    assert tolerance <= 1e-2
    assert np.abs(found / truth.certified_deviations - 1).max() <= tolerance

"""No interval fails to contain its eigenvalue; no bound is a licence; stated misses hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import layerhess as lh
from layerhess.linalg.bounds import ROUNDING_SAFETY, certify, in_order, total_rounding
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.process import Candidates, Wanted
from layerhess.linalg.random_vectors import random_unit
from references import misses
from references.spectra import FAMILIES, Matrix, rotated

WANTED = (Wanted(top=1), Wanted(top=3), Wanted(bottom=2), Wanted(top=2, bottom=2), Wanted(magnitude=2))
DTYPES = (np.float64, np.float32)


def certified(matrix: Matrix, dtype: type, wanted: Wanted, tol: float, seed: int) -> tuple[Candidates, Matrix, float]:
    """Candidates, error bounds and rounding of a matrix whose products are made in ``dtype``."""
    n = len(matrix)
    rounded = matrix.astype(dtype)

    def product(rows: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy((rows.numpy().astype(dtype) @ rounded).astype(np.float64))

    process = Lanczos(n, wanted, tol, lambda number: random_unit(n, seed, "certificate", number))
    rounding = None
    for _ in range(1500):
        process.tell(product(process.ask()))
        if rounding is None and (process.proposes or process.relative_residual <= 2000 * np.finfo(dtype).eps):
            vectors = process.candidates().vectors
            exact = torch.from_numpy(vectors.numpy() @ matrix.astype(dtype).astype(np.float64))
            worst = float(torch.linalg.vector_norm(product(vectors) - exact, dim=1).max())
            norm = process.candidates().norm
            rounding = process.rounding = total_rounding(ROUNDING_SAFETY * worst, float(np.finfo(dtype).eps), norm, 1)
        if process.proposes:
            break
    assert rounding is not None and process.proposes
    candidates = process.candidates()
    return candidates, certify(candidates, tol=tol, rounding=rounding).error_bounds, rounding


@pytest.mark.parametrize(
    "seeds", [range(10), pytest.param(range(10, 60), marks=pytest.mark.slow)], ids=["10", "50 more"]
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_over_a_thousand_random_problems_every_interval_contains_an_eigenvalue(
    family: str, dtype: type, seeds: range
) -> None:
    """9 families x 2 dtypes x 60 = 1,080 problems, a sixth of them in the fast part."""
    for seed in seeds:
        n = (40, 90)[seed % 2]
        matrix = rotated(FAMILIES[family](n, np.random.default_rng([seed, 7])), seed)
        wanted, tol = WANTED[seed % len(WANTED)], (1e-3, 1e-6)[seed // 5 % 2]
        candidates, bounds, rounding = certified(matrix, dtype, wanted, tol, seed)
        represented = matrix.astype(dtype).astype(np.float64)  # the operator is the rounded matrix
        spectrum = np.linalg.eigvalsh(represented)
        nearest = np.abs(spectrum[None, :] - candidates.values[:, None]).min(axis=1)
        assert (nearest <= bounds).all(), (seed, nearest, bounds)
        explicit = np.linalg.norm(
            candidates.vectors.numpy() @ represented - candidates.values[:, None] * candidates.vectors.numpy(), axis=1
        )
        own, theta = 3.0 * (explicit + rounding), candidates.values
        upper, lower = np.sort(theta + own)[::-1], np.sort(theta - own)[::-1]  # of overlapping ones in order
        assert (bounds <= np.maximum(upper - theta, theta - lower) + 1e-15).all(), (seed, bounds, explicit, rounding)


def test_bounds_hold_in_order_where_a_smaller_one_of_close_eigenvalues_is_known_better() -> None:
    np.testing.assert_allclose(in_order(np.array([5.0, 4.9, 2.0]), np.array([1e-5, 0.3, 0.1])), [0.2, 0.3, 0.1])
    apart = np.array([3.0, 1.0, -1.0]), np.array([0.1, 0.2, 1e-9])
    np.testing.assert_array_equal(in_order(*apart), apart[1])
    rng = np.random.default_rng(0)
    for _ in range(200):
        bounds = 10.0 ** rng.uniform(-4, 0, 6)
        true = rng.uniform(-1.0, 1.0, 6)
        found = true + bounds * rng.uniform(-1.0, 1.0, 6)
        order = np.argsort(-found)
        covering = in_order(found[order], bounds[order])
        assert (np.abs(found[order] - np.sort(true)[::-1]) <= covering + 1e-15).all()
        assert (covering >= bounds[order]).all() and covering.max() <= 2.0 * bounds.max()


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 12))])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_on_small_nets_every_eigenvalue_asked_for_lies_within_its_bound(dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    activation = (nn.ReLU(), nn.Tanh(), nn.GELU())[seed % 3]
    model = nn.Sequential(nn.Linear(7, 9), activation, nn.Linear(9, 6), activation, nn.Linear(6, 4)).to(dtype)
    x, y = torch.randn(50, 7, dtype=dtype), torch.randint(0, 4, (50,))
    result = lh.analyze(lh.Objective(model, (x, y), nn.CrossEntropyLoss()), top=3, bottom=2, seed=seed)
    # The reference is autograd's own Hessian of the same numbers in float64.
    names = list(dict(model.named_parameters()))
    shapes = [p.shape for p in model.parameters()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = torch.split(flat, [s.numel() for s in shapes])
        values = {name: part.reshape(s) for name, part, s in zip(names, parts, shapes, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model.double(), values, (x.double(),)), y)

    theta = torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])
    hessian = torch.autograd.functional.hessian(loss, theta).numpy()
    offsets = np.cumsum([0, *[s.numel() for s in shapes]])
    for name, start, stop in zip(names, offsets[:-1], offsets[1:], strict=True):
        check(result.blocks[name], hessian[start:stop, start:stop])
    assert result.full is not None
    check(result.full, hessian)


def check(found: lh.Spectrum, matrix: Matrix) -> None:
    """Every reported eigenvalue is the one its place says, to its bound."""
    truth = np.linalg.eigvalsh(matrix)[::-1]
    k = len(found.eigenvalues)
    want = truth if k == len(truth) else np.concatenate([truth[:3], truth[-2:]])
    assert found.converged.all(), found.status
    assert (np.abs(found.eigenvalues - want) <= found.error_bounds).all(), found.name
    flat = [torch.cat([v[name].double().reshape(-1) for name in found.parameters]).numpy() for v in found.eigenvectors]
    explicit = [np.linalg.norm(matrix @ v - theta * v) for v, theta in zip(flat, found.eigenvalues, strict=True)]
    assert (found.error_bounds <= 3.0 * (np.array(explicit) + found.rounding)).all(), found.name


@pytest.mark.parametrize("seed", range(5))
def test_what_is_excluded_remembers_the_extremes_that_restarts_forget(seed: int) -> None:
    """Wanting the top only, a restart drops the bottom; the spread that the theorem speaks of must not shrink."""
    values = np.concatenate([[-5.0], np.linspace(-0.2, 0.9, 300), [1.0]])
    diagonal = torch.from_numpy(values)
    n = len(values)
    process = Lanczos(n, Wanted(top=1), 1e-7, lambda i: random_unit(n, seed, "restart", i), basis_limit=14)
    while not process.proposes:
        process.tell(process.ask() * diagonal)
    assert process.reach.restarted
    certificate = certify(process.candidates(), tol=1e-7, rounding=1e-13)
    assert certificate.missed_above >= 1.0 and certificate.missed_below <= -5.0
    search = process.candidates().searches["top"][0]
    assert search.smallest == pytest.approx(-5.0, abs=1e-3)


def test_convergence_is_the_residual_plus_rounding_and_never_the_gap() -> None:
    def candidate(residual: float) -> Candidates:
        return Candidates(
            values=np.array([1.0]), vectors=torch.eye(1, 5, dtype=torch.float64), residuals=np.array([residual]),
            gaps=np.array([0.5]), ends=("top",), norm=1.0, spectrum=None, searches={}, steps=5,
        )  # fmt: skip

    quadratic = certify(candidate(2e-3), tol=1e-3, rounding=0.0)
    assert quadratic.conditional_bounds[0] == pytest.approx(8e-6)
    assert not quadratic.converged[0], "r^2/gap is far below the tolerance, and must not stop"
    assert certify(candidate(9e-4), tol=1e-3, rounding=5e-5).converged[0]
    assert not certify(candidate(9e-4), tol=1e-3, rounding=2e-4).converged[0]
    limited = certify(candidate(1e-3), tol=1e-3, rounding=2e-3)
    assert limited.converged[0] and limited.limited_by_dtype


@pytest.mark.parametrize(("runs", "allowed"), [(12, 1), pytest.param(60, 2, marks=pytest.mark.slow)])
def test_the_observed_rate_of_misses_is_at_most_the_stated_one(runs: int, allowed: int) -> None:
    """At 1 % each, more misses than allowed would have a probability of 2 % in 60 runs, of 0.6 % in 12."""
    for family in misses.ADVERSARIAL:
        for top, width in ((1, 1), (1, 8), (3, 1), (3, 2)):
            found = misses.misses(family, n=150, runs=runs, tol=1e-3, top=top, width=width)
            print(found)  # pytest -s shows stated and observed side by side
            assert found.beyond <= allowed, found

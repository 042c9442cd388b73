"""Figures that follow from eigenvalues, trace and density, against the same worked out from dense spectra."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import fabricated
from layerhess.linalg.estimates import DensityEstimate, TraceEstimate
from layerhess.results.derived import compare_learning_rate, derive


def effective_rank(values: np.ndarray) -> float:
    p = np.abs(values) / np.abs(values).sum()
    return float(np.prod(p ** (-p)))


def test_a_complete_spectrum_gives_everything_exactly() -> None:
    block = fabricated.complete("fc.weight", (10,))
    values = block.spectrum
    assert values is not None
    found = derive(block)
    assert found.mean_curvature.value == pytest.approx(values.mean(), rel=1e-14)
    assert found.frobenius_squared.value == pytest.approx(np.linalg.norm(values) ** 2, rel=1e-14)
    assert found.stable_rank.value == pytest.approx((np.linalg.norm(values) / np.abs(values).max()) ** 2, rel=1e-14)
    assert found.effective_rank.value == pytest.approx(effective_rank(values), rel=1e-12)
    assert found.top_sum.value == pytest.approx(values[:2].sum(), rel=1e-14)
    assert found.top_share.value == pytest.approx(values[:2].sum() / values.sum(), rel=1e-12)
    assert found.damping.value == pytest.approx(-values[-1], rel=1e-9)


def test_bounds_carry_over_to_what_is_derived_from_them() -> None:
    block = fabricated.spectrum()
    (top, second, bottom), (e_top, e_second, e_bottom) = block.eigenvalues, block.error_bounds
    found = derive(block)
    lowest, highest = 2 / (top + e_top), 2 / (top - e_top)
    rate = found.critical_learning_rate
    assert rate.value == pytest.approx(2 / top)
    assert rate.value - rate.error <= lowest and rate.value + rate.error >= highest * (1 - 1e-12)
    condition = found.top_condition
    assert condition.value == pytest.approx(top / second)
    assert condition.value + condition.error >= (top + e_top) / (second - e_second) - 1e-6 * condition.value
    assert found.damping.value == pytest.approx(-bottom + e_bottom)
    assert not found.stable_rank.known and not found.top_share.known


def test_no_figure_from_what_has_not_converged() -> None:
    found = derive(fabricated.unconverged(fabricated.spectrum()))
    assert not found.critical_learning_rate.known and not found.top_condition.known
    assert found.damping.known  # of the smallest eigenvalue, which has converged
    made = fabricated.spectrum()
    assert not derive(dataclasses.replace(made, converged=np.zeros(len(made.converged), dtype=bool))).damping.known


def test_a_refused_block_has_no_figures() -> None:
    found = derive(fabricated.refused("fc.weight"))
    assert not any(getattr(found, item.name).known for item in dataclasses.fields(found))


def density(values: np.ndarray, probes: int, seed: int = 0) -> DensityEstimate:
    """Quadratures that hit every eigenvalue, with the weights that random unit vectors give them."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((probes, len(values))) ** 2
    weights /= weights.sum(axis=1, keepdims=True)
    nodes = np.tile(values, (probes, 1))
    second = (weights * nodes**2).sum(axis=1)
    grid = np.linspace(values.min() - 1, values.max() + 1, 50)
    return DensityEstimate(
        grid=grid, value=grid * 0, low=grid * 0, high=grid * 0, bandwidth=0.1, probes=probes, steps=len(values),
        nodes=nodes, weights=weights, mean=float((weights * nodes).sum(axis=1).mean()), mean_error=0.1,
        second=float(second.mean()), second_error=float(second.std(ddof=1) / math.sqrt(probes)), status="",
    )  # fmt: skip


def test_ranks_from_a_density_agree_with_those_of_the_spectrum() -> None:
    values = np.sort(np.concatenate([[50.0, 20.0, 9.0], np.linspace(-0.3, 1.0, 197)]))[::-1]
    block = fabricated.spectrum(
        shape=(200,), eigenvalues=values[[0, 1, -1]], error_bounds=np.full(3, 1e-6), density=density(values, 400)
    )
    found = derive(block)
    assert abs(found.frobenius_squared.value - (values**2).sum()) <= 4 * found.frobenius_squared.error
    assert abs(found.stable_rank.value - (values**2).sum() / 2500) <= 4 * found.stable_rank.error
    assert abs(found.effective_rank.value - effective_rank(values)) <= 4 * found.effective_rank.error
    assert found.effective_rank.error < 0.05 * found.effective_rank.value


def test_a_density_that_was_stopped_early_gives_no_effective_rank() -> None:
    """Its spread over the probes knows nothing of the steps that are missing; its two moments are exact."""
    values = np.sort(np.concatenate([[50.0, 20.0, 9.0], np.linspace(-0.3, 1.0, 197)]))[::-1]
    stopped = dataclasses.replace(density(values, 400), finished=False)
    block = fabricated.spectrum(
        shape=(200,), eigenvalues=values[[0, 1, -1]], error_bounds=np.full(3, 1e-6), density=stopped
    )
    assert not block.derived.effective_rank.known and not block.ok and block.solved
    assert block.derived.frobenius_squared.known and block.derived.stable_rank.known
    first = dataclasses.replace(stopped, second=math.nan, second_error=math.nan)
    after_one_step = dataclasses.replace(block, density=first).derived
    assert not after_one_step.frobenius_squared.known and not after_one_step.stable_rank.known


def test_a_norm_is_never_less_than_the_eigenvalues_found() -> None:
    """Probes that miss the one large eigenvalue would make a stable rank below 1."""
    values = np.array([10.0, *np.zeros(99)])
    unlucky = density(values, 2)
    unlucky.weights[:] = 0.0
    unlucky.weights[:, 1:] = 1 / 99
    unlucky = dataclasses.replace(unlucky, second=0.0, second_error=0.0)
    block = fabricated.spectrum(
        shape=(100,), eigenvalues=values[[0, 1, -1]], error_bounds=np.full(3, 1e-6), density=unlucky
    )
    found = derive(block)
    assert found.frobenius_squared.value == pytest.approx(100.0) and found.stable_rank.value >= 1.0


def test_the_share_of_the_top_needs_the_trace_and_has_its_error() -> None:
    trace = TraceEstimate(10.0, 0.5, 9.0, 11.0, 32, "hutchinson", True, "")
    block = fabricated.spectrum(eigenvalues=np.array([4.0, 2.0, -1.0]), error_bounds=np.full(3, 1e-3), trace=trace)
    found = derive(block)
    assert found.top_share.value == pytest.approx(0.6)
    assert found.top_share.error == pytest.approx(0.6 * (0.05 + 0.002 / 6), rel=1e-6)
    assert found.mean_curvature.value == pytest.approx(10 / 12)
    assert found.mean_curvature.error == pytest.approx(0.5 / 12)


@pytest.mark.parametrize(("rate", "words"), [(0.1, "below"), (0.5, "at the edge"), (0.9, "above")])
def test_a_learning_rate_is_placed_against_the_edge(rate: float, words: str) -> None:
    block = fabricated.spectrum(eigenvalues=np.array([4.0, 2.0, -1.0]), error_bounds=np.full(3, 1e-3))
    assert words in compare_learning_rate(block, rate)


def test_a_learning_rate_without_a_top_eigenvalue_says_so() -> None:
    assert "not known" in compare_learning_rate(fabricated.refused("x"), 0.1)

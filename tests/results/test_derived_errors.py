"""Errors of derived figures, worked out by leaving out, by intervals and by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import fabricated
from layerhess.linalg.estimates import DensityEstimate, TraceEstimate
from layerhess.results.derived import compare_learning_rate, derive


def quadratures(nodes: list[list[float]], weights: list[list[float]], **changes: object) -> DensityEstimate:
    """A density whose rows may have any number of nodes."""
    most = max(map(len, nodes))
    x, w = (np.array([row + [0.0] * (most - len(row)) for row in rows]) for rows in (nodes, weights))
    first, second = (w * x).sum(axis=1), (w * x**2).sum(axis=1)
    probes = len(x)
    made = DensityEstimate(
        grid=np.arange(3.0), value=np.zeros(3), low=np.zeros(3), high=np.zeros(3), bandwidth=0.1, probes=probes,
        steps=most, nodes=x, weights=w, mean=float(first.mean()), mean_error=0.0, second=float(second.mean()),
        second_error=float(second.std(ddof=1) / math.sqrt(probes)) if probes > 1 else math.nan, status="",
    )  # fmt: skip
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def rank(n: int, rows: list[tuple[list[float], list[float]]]) -> float:
    """exp of the entropy of |x| / sum |x| when a node x stands for n w eigenvalues, over the mean of all rows."""
    sizes = [sum(n * v * abs(x) for x, v in zip(xs, ws, strict=True)) for xs, ws in rows]
    whole = sum(sizes) / len(rows)
    entropy = 0.0
    for xs, ws in rows:
        for x, v in zip(xs, ws, strict=True):
            if x != 0.0:
                share = abs(x) / whole
                entropy -= n * v / len(rows) * share * math.log(share)
    return math.exp(entropy)


NODES = [[5.0, 1.0, -0.5], [4.0, 0.5, 0.0], [6.0, 2.0, -1.0], [5.5, 0.1, 0.2]]
WEIGHTS = [[0.1, 0.5, 0.4], [0.15, 0.45, 0.4], [0.05, 0.55, 0.4], [0.12, 0.48, 0.4]]


@pytest.mark.parametrize("probes", [2, 3, 4])
def test_the_error_of_the_effective_rank_is_the_jackknifes(probes: int) -> None:
    """sqrt((m - 1) / m sum (rank without i - their mean)^2), Efron and Tibshirani 1993, eq. 11.5."""
    rows = list(zip(NODES, WEIGHTS, strict=True))[:probes]
    block = fabricated.spectrum(shape=(40,), density=quadratures(NODES[:probes], WEIGHTS[:probes]))
    found = derive(block).effective_rank
    without = [rank(40, rows[:i] + rows[i + 1 :]) for i in range(probes)]
    mean = sum(without) / probes
    error = math.sqrt((probes - 1) / probes * sum((r - mean) ** 2 for r in without))
    assert found.value == pytest.approx(rank(40, rows), rel=1e-12)
    assert found.error == pytest.approx(error, rel=1e-9) and found.kind == "standard error" and error > 0.0


def test_a_rank_needs_two_finished_probes_and_is_zero_of_nothing() -> None:
    assert not derive(fabricated.spectrum(density=quadratures(NODES[:1], WEIGHTS[:1]))).effective_rank.known
    zero = quadratures([[0.0], [0.0]], [[1.0], [1.0]])
    found = derive(fabricated.spectrum(density=zero)).effective_rank
    assert (found.value, found.error) == (0.0, 0.0)
    assert not derive(fabricated.spectrum(density=quadratures(NODES, WEIGHTS, finished=False))).effective_rank.known


def test_norms_are_scaled_by_the_dimension_with_their_errors() -> None:
    values = np.array([5.0, 2.0, -7.0])
    density = quadratures(NODES, WEIGHTS)
    block = fabricated.spectrum(shape=(50,), eigenvalues=values, error_bounds=np.full(3, 1e-3), density=density)
    found = derive(block)
    assert found.frobenius_squared.value == pytest.approx(50 * density.second) and 50 * density.second > 78.0
    assert found.frobenius_squared.error == pytest.approx(50 * density.second_error)
    assert found.stable_rank.value == pytest.approx(50 * density.second / 49.0)  # the norm is at the other end
    assert found.stable_rank.error == pytest.approx(50 * density.second_error / 49.0)
    small = derive(dataclasses.replace(block, numel=1))
    assert small.frobenius_squared.value == pytest.approx((values**2).sum())
    top = dataclasses.replace(block, eigenvalues=values[:2], error_bounds=np.full(2, 1e-3), converged=np.full(2, True),
                              end=("top", "top"))  # fmt: skip
    assert not derive(top).stable_rank.known
    assert derive(dataclasses.replace(top, operator="empirical_fisher")).stable_rank.value == pytest.approx(
        50 * density.second / 25.0
    )


def test_only_the_leading_converged_values_count_at_the_top() -> None:
    values = np.array([8.0, 4.0, 2.0, -1.0])
    block = fabricated.spectrum(
        eigenvalues=values, error_bounds=np.array([0.1, 0.2, 0.4, 0.3]), converged=np.array([True, True, False, True]),
        end=("top", "top", "top", "bottom"),
    )  # fmt: skip
    found = derive(block)
    assert (found.top_sum.value, found.top_sum.error) == (pytest.approx(12.0), pytest.approx(0.3))
    condition = found.top_condition
    assert condition.value == 2.0 and condition.error == pytest.approx(2.0 * (0.1 / 8.0 + 0.2 / 3.8))
    assert found.damping.value == pytest.approx(1.3)  # of the smallest, which has converged
    assert not derive(dataclasses.replace(block, converged=np.array([True, True, True, False]))).damping.known
    one = derive(dataclasses.replace(block, converged=np.array([True, False, True, True])))
    assert one.top_sum.value == 8.0 and not one.top_condition.known
    rate = one.critical_learning_rate
    assert rate.value == 0.25 and rate.error == pytest.approx(0.25 * 0.1 / 7.9)
    touching = derive(dataclasses.replace(block, error_bounds=np.array([8.0, 4.0, 0.4, 0.3])))
    assert not touching.critical_learning_rate.known and not touching.top_condition.known


@pytest.mark.parametrize(
    ("bottom", "bound", "damping"), [(-2.0, 0.5, 2.5), (0.25, 0.5, 0.25), (0.5, 0.25, 0.0), (0.5, 0.5, 0.0)]
)
def test_damping_lifts_the_most_negative_eigenvalue_with_its_bound(bottom: float, bound: float, damping: float) -> None:
    block = fabricated.spectrum(eigenvalues=np.array([4.0, 2.0, bottom]), error_bounds=np.array([0.1, 0.1, bound]))
    found = derive(block).damping
    assert (found.value, found.error) == (pytest.approx(damping), bound)


@pytest.mark.parametrize("value", [10.0, -10.0])
def test_a_trace_has_the_error_of_its_kind(value: float) -> None:
    probed = TraceEstimate(value, 0.3, 9.0, 11.0, 32, "hutchinson", True, "", rounding=0.4)
    block = fabricated.spectrum(
        eigenvalues=np.array([4.0, 2.0, -1.0]), error_bounds=np.array([0.1, 0.2, 0.3]), trace=probed
    )
    found = derive(block)
    assert (found.trace.value, found.trace.error, found.trace.kind) == (value, pytest.approx(0.5), "standard error")
    assert found.top_share.value == pytest.approx(6.0 / value)
    assert found.top_share.error == pytest.approx(0.6 * (0.3 / 6.0 + 0.5 / 10.0))
    assert found.mean_curvature.error == pytest.approx(0.5 / 12)
    exact = dataclasses.replace(probed, method="exact", standard_error=0.0)
    assert (derive(dataclasses.replace(block, trace=exact)).trace.error,) == (0.4,)
    assert derive(dataclasses.replace(block, trace=exact)).trace.kind == "bound"
    bare = dataclasses.replace(exact, rounding=0.0)
    assert derive(dataclasses.replace(block, trace=bare)).trace.kind == "exact"
    none = dataclasses.replace(probed, value=0.0)
    assert not derive(dataclasses.replace(block, trace=none)).top_share.known


def test_a_whole_spectrum_bounds_its_trace_by_as_many_bounds_as_eigenvalues() -> None:
    block = fabricated.complete("fc.weight", (10,))
    found = derive(block)
    assert found.trace.error == pytest.approx(10 * np.max(block.error_bounds)) and found.trace.kind == "bound"
    assert found.effective_rank.error == 0.0 and found.effective_rank.kind == "exact"
    assert found.mean_curvature.error == pytest.approx(np.max(block.error_bounds))


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0.44, "below"), (0.46, "at the edge"), (0.5, "at the edge"), (0.54, "at the edge"), (0.56, "above")],
)
def test_the_edge_is_ten_per_cent_wide_or_as_wide_as_the_bound(rate: float, words: str) -> None:
    block = fabricated.spectrum(eigenvalues=np.array([4.0, 2.0, -1.0]), error_bounds=np.full(3, 1e-3))
    sentence = compare_learning_rate(block, rate)
    assert words in sentence and f"{rate / 0.5:.2g} times 2 / lambda_max = 0.5" in sentence
    wide = fabricated.spectrum(eigenvalues=np.array([4.0, 2.0, -1.0]), error_bounds=np.full(3, 1.0))
    assert "at the edge" in compare_learning_rate(wide, 0.65) and "above" in compare_learning_rate(wide, 0.68)

"""What traces and diagonals say of themselves, and the small formulas beneath: by hand with NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from layerhess.linalg.stochastic.diagonal import Diagonal
from layerhess.linalg.stochastic.probe_statistics import Running
from layerhess.linalg.stochastic.rounding import RELATIVE, coarser, entry_scales
from layerhess.linalg.stochastic.stopping import excess_of, next_target, probes_needed, rows_at_a_time
from layerhess.linalg.stochastic.trace import Trace, rounded
from layerhess.linalg.stochastic.unit_vectors import UnitVectors
from references.probe_stages import FLAT, N, stages


def test_stopping_formulas() -> None:
    assert [probes_needed(16, e) for e in (0.5, 1.0, 1.01, 3.0)] == [16, 16, 18, 152]
    assert probes_needed(16, 2e6) == 1 << 62 and probes_needed(16, 1e6) < 1 << 62
    assert next_target(16, 1.2, 1000) == 25 and next_target(16, 1.2, 20) == 20
    assert next_target(16, 1.0, 1000) == 17 and next_target(16, math.inf, 1000) == 64
    assert rows_at_a_time(1) == 64 and rows_at_a_time((1 << 28) // 8 // 5) == 5 and rows_at_a_time(1 << 40) == 1
    assert excess_of(0.0, 0.0) == 0.0 and excess_of(1.0, 0.0) == math.inf and excess_of(1.0, 4.0) == 0.25


def test_unit_vectors_read_the_diagonal_and_the_lengths_of_the_columns() -> None:
    process = UnitVectors(N)
    sizes = [len(rows) for rows in stages(process, FLAT)]
    assert sizes == [64, 64, 22]
    np.testing.assert_allclose(process.diagonal, np.diag(FLAT), rtol=0, atol=0)
    np.testing.assert_allclose(process.lengths, np.linalg.norm(FLAT, axis=0), rtol=1e-13)


def test_rounding_is_three_times_that_of_a_product() -> None:
    assert pytest.approx(6 * np.finfo(np.float64).eps, rel=1e-9, abs=0) == RELATIVE
    assert coarser(1e-7) == pytest.approx(3e-7 / RELATIVE) and coarser(0.0) == 1.0
    diagonal, lengths = torch.tensor([1.0, -5.0, 0.0, 2.0]).double(), torch.tensor([8.0, 6.0, 2.0, 4.0]).double()
    assert entry_scales(diagonal, lengths).tolist() == [4.0, 5.0, 1.0, 2.0]
    assert entry_scales(diagonal, None).tolist() == [1.0, 5.0, 0.0, 2.0]


def test_running_moments_of_one_sample_and_of_tensors() -> None:
    one = Running(0.0)
    assert one.variance == math.inf and one.standard_error == math.inf
    one.add(3.0)
    assert (one.mean, one.count) == (3.0, 1) and one.variance == math.inf and one.standard_error == math.inf
    samples = np.random.default_rng(0).standard_normal((5, 4))
    many = Running(torch.zeros(4).double())
    for row in samples:
        many.add(torch.from_numpy(row))
    np.testing.assert_allclose(many.variance, samples.var(axis=0, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(many.standard_error, samples.std(axis=0, ddof=1) / math.sqrt(5), rtol=1e-12)


def test_a_trace_says_how_far_it_is_from_what_was_asked() -> None:
    goal = Trace(rel=0.1)
    reached = goal.estimate(-50.0, 4.0, probes=16, method="hutchinson", nuclear=60.0)
    assert reached.converged and "8 % of the value from 16 random vectors" in reached.status
    assert "small against" not in reached.status and "above" not in reached.status
    missed = goal.estimate(-50.0, 5.1, probes=16, method="hutchinson", nuclear=60.0)
    assert not missed.converged and "above the 5 asked for" in missed.status
    cancelling = goal.estimate(1.0, 4.0, probes=16, method="hutchinson", nuclear=500.0)
    assert cancelling.converged and "small against the absolute error" in cancelling.status
    assert goal.estimate(0.0, 0.3, probes=4, method="x", nuclear=100.0).status.startswith("standard error 0.3 from 4")
    for given, scale in (
        (cancelling, 500.0), (reached, 60.0),
        (goal.estimate(3.0, 0.0, probes=4, method="x", nuclear=1.0, scale=9.0), 9.0),
        (goal.estimate(-7.0, 0.0, probes=4, method="x", nuclear=1.0, scale=2.0), 7.0),
    ):  # fmt: skip
        assert given.rounding == pytest.approx(RELATIVE * scale, rel=1e-9, abs=0)
    assert Trace(rel=0.1, absolute=7.0).tolerance(-50.0, 1e9) == 7.0 and Trace(rel=0.2).tolerance(-50.0, 1.0) == 10.0


def test_rounding_widens_an_interval_where_nothing_else_does() -> None:
    found = Trace().estimate(1.0, 0.0, probes=4, method="hutchinson", nuclear=1e15)
    assert found.rounding == pytest.approx(RELATIVE * 1e15) and found.rounding > 1.0
    assert (found.high, found.low) == (pytest.approx(1.0 + found.rounding), pytest.approx(1.0 - found.rounding))


def test_coarser_products_widen_an_interval_by_their_rounding_alone() -> None:
    found = Trace().estimate(10.0, 1.0, probes=16, method="hutchinson", nuclear=20.0)
    wide = rounded(found, 1e-6)
    assert wide.rounding == pytest.approx(3e-6 * 20.0) and wide.standard_error == 1.0 and wide.value == 10.0
    assert found.low - wide.low == pytest.approx(wide.rounding - found.rounding) == wide.high - found.high


def test_a_known_trace_is_rounded_by_what_was_added_up() -> None:
    found = Trace().exact(torch.tensor([1.0, -3.0]).double(), torch.tensor([5.0, 2.0]).double())
    scale = 5.0 / math.sqrt(2) + 3.0
    assert (found.value, found.probes, found.standard_error) == (-2.0, 0, 0.0) and found.converged
    assert found.rounding == pytest.approx(RELATIVE * scale, rel=1e-9, abs=0)
    assert found.high - found.value == pytest.approx(found.rounding, rel=0.1, abs=0)
    assert found.value - found.low == pytest.approx(found.rounding, rel=0.1, abs=0)
    assert "all 2 diagonal" in found.status and "only" in Trace().exact(torch.ones(1).double()).status


def test_a_diagonal_says_how_far_it_is_from_what_was_asked() -> None:
    value, error = torch.tensor([3.0, -4.0]).double(), torch.tensor([0.3, 0.4]).double()
    goal = Diagonal(rel=0.1)
    found = goal.estimate(value, error, probes=9, method="hutchinson")
    assert goal.excess(value, error) == pytest.approx(1.0) and "10 % of the diagonal's norm from 9" in found.status
    lengths = np.sqrt(np.array([9.0, 16.0]) + 9 * np.array([0.09, 0.16]))
    assert found.rounding == pytest.approx(RELATIVE * lengths.max(), rel=1e-6, abs=0)
    wide = goal.estimate(value, 2.0 * error, probes=9, method="hutchinson")
    assert not wide.converged and wide.required and "above the 10 % asked for" in wide.status
    for relaxed in (Diagonal(rel=0.1, required=False), Diagonal(rel=0.1, probes=9)):
        free = relaxed.estimate(value, 2.0 * error, probes=9, method="hutchinson")
        assert not free.converged and not free.required and "asked for" not in free.status
    assert goal.estimate(value, error, probes=1, method="x").rounding == math.inf
    assert "all of" in goal.estimate(0.0 * value, error, probes=9, method="x").status
    assert "0 % of" in goal.estimate(0.0 * value, 0.0 * error, probes=9, method="x").status
    exact = goal.exact(value, torch.tensor([8.0, 4.0]).double())
    assert (
        exact.rounding == pytest.approx(RELATIVE * 8.0 / math.sqrt(2), rel=1e-9, abs=0)
        and exact.converged
        and exact.probes == 0
    )
    assert not exact.standard_error.any() and "all 2 entries" in exact.status

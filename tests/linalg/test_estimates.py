"""What an estimate is taken for where nothing else is said."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from layerhess.linalg.estimates import CouplingEstimate, DensityEstimate, DiagonalEstimate, TraceEstimate


def diagonal(**given: bool) -> DiagonalEstimate:
    parts = {"w": torch.zeros(2)}
    return DiagonalEstimate(parts, parts, 0, "exact", "", **given)


@pytest.mark.parametrize(
    ("converged", "required", "ok"),
    [(True, True, True), (True, False, True), (False, False, True), (False, True, False)],
)
def test_a_diagonal_is_fine_unless_an_error_that_was_asked_for_was_not_reached(
    converged: bool, required: bool, ok: bool
) -> None:
    assert diagonal(converged=converged, required=required).ok is ok
    assert diagonal(required=required).ok and diagonal(converged=converged).ok  # converged, and nothing asked for
    assert diagonal().converged and not diagonal().required and diagonal().rounding == 0.0


def test_what_was_not_measured_is_not_there() -> None:
    trace = TraceEstimate(1.0, 0.1, 0.8, 1.2, 16, "hutchinson", True, "")
    assert math.isnan(trace.sampling_error) and trace.rounding == 0.0
    grid = np.zeros(1)
    density = DensityEstimate(grid, grid, grid, grid, 1.0, 2, 3, grid[None], grid[None], 0.0, 0.0, 0.0, 0.0, "")
    assert density.finished
    coupling = CouplingEstimate(("a",), np.zeros((1, 1)), np.zeros((1, 1)), 0.0, 0.0, 0, "")
    assert coupling.divergence is None and coupling.divergence_error is None

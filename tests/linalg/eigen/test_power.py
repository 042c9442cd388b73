"""Power iteration with a shift."""

from __future__ import annotations

import numpy as np
import pytest

from driven_solver import run
from layerhess.linalg.eigen.power import Power
from layerhess.linalg.random_vectors import random_unit
from references.spectra import rotated


@pytest.mark.parametrize("values", [[4.0, 1.0, 0.5], [-4.0, 3.0, 0.5], [-1.0, -2.0, -3.0]])
def test_power_iteration_finds_the_largest_even_where_a_negative_one_dominates(values: list[float]) -> None:
    matrix = rotated(np.array(values), seed=1)
    process = Power(3, 1e-8, lambda number: random_unit(3, 0, "power", number))
    run(process, matrix)
    assert process.candidates().values[0] == pytest.approx(max(values), abs=1e-6)
    assert process.candidates().residuals[0] <= 1e-8 * 4.0

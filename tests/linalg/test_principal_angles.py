"""Principal angles against SciPy's, and against planes whose angles are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import subspace_angles

from layerhess.linalg.principal_angles import principal_angles


@pytest.mark.parametrize("k", [1, 3, 6])
def test_angles_are_those_of_scipy_and_do_not_depend_on_the_parts(k: int) -> None:
    rng = np.random.default_rng(k)
    a, b = rng.standard_normal((2, k, 9))
    b = a + 0.5 * b
    truth = np.sort(subspace_angles(a.T, b.T))
    assert principal_angles(lambda: [(a, b)]) == pytest.approx(truth, abs=1e-13)
    pieces = [(a[:, :4], b[:, :4]), (a[:, 4:5], b[:, 4:5]), (a[:, 5:], b[:, 5:])]
    assert principal_angles(lambda: pieces) == pytest.approx(truth, abs=1e-13)


@pytest.mark.parametrize("angle", [1e-11, 1e-6, 0.3, 1.2, np.pi / 2 - 1e-9])
def test_an_angle_keeps_its_digits_whatever_its_size(angle: float) -> None:
    a = np.eye(2, 5)
    b = np.zeros((2, 5))
    b[0, 0], b[1, 1], b[1, 3] = 1.0, np.cos(angle), np.sin(angle)
    mixed = np.array([[2.0, 1.0], [0.5, -3.0]]) @ b  # other rows of the same plane
    assert principal_angles(lambda: [(a, mixed)]) == pytest.approx([0.0, angle], rel=1e-9, abs=1e-15)


def test_dependent_rows_span_no_such_space() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        principal_angles(lambda: [(np.zeros((1, 3)), np.ones((1, 3)))])

"""The picture of all pairs: its cells against the table of norms."""

from __future__ import annotations

import re

import numpy as np

from layerhess.linalg.estimates import CouplingEstimate
from layerhess.show.page.coefficients import LEVELS, coefficients, triangle


def coupled(value: np.ndarray) -> CouplingEstimate:
    names = tuple(f"b{i}" for i in range(len(value)))
    return CouplingEstimate(names, value, np.zeros_like(value), 0.5, 0.0, 0, "exact")


def some(size: int, seed: int = 0) -> np.ndarray:
    parts = np.random.default_rng(seed).standard_normal((size, 3 * size))
    gram = np.abs(parts @ parts.T)
    return np.asarray(gram)


def test_every_pair_has_one_cell_whose_shade_is_its_coefficient() -> None:
    found = coupled(some(9))
    made, values = triangle(found), coefficients(found)
    assert made is not None
    shown = {}
    for opacity, path in made.shades:
        for column, row in re.findall(r"M(\d+) (\d+)h1v1h-1z", path):
            assert (int(row), int(column)) not in shown
            shown[int(row), int(column)] = opacity
    for row in range(9):
        for column in range(row + 1):
            value = min(1.0, values[row, column])
            assert value - 1e-9 <= shown.get((row, column), 0.0) < value + 1.0 / LEVELS + 1e-9
    assert len(shown) == 45 and made.values[9 * 10 // 2 - 1] == 100


def test_a_layer_without_curvature_has_no_cell() -> None:
    value = some(4)
    value[2] = value[:, 2] = 0.0
    made = triangle(coupled(value))
    assert made is not None and made.values.count(-1) == 4
    assert sum(path.count("M") for _, path in made.shades) == 6


def test_of_one_block_there_is_no_picture() -> None:
    assert triangle(coupled(some(1))) is None


def test_shades_reach_to_the_largest_coefficient_where_that_is_above_one() -> None:
    value = np.array([[1.0, 2.0, 9.0], [2.0, 1.0, 0.5], [9.0, 0.5, 1.0]])  # of an indefinite matrix
    made = triangle(coupled(value))
    assert made is not None and made.most == 9.0
    shade = {cell: opacity for opacity, path in made.shades for cell in re.findall(r"M(\d+ \d+)h", path)}
    assert shade["0 2"] == 1.0 and shade["0 1"] == 0.25 and shade["1 2"] == 0.1

"""Matrices that are small enough to be read whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from driven_solver import run
from layerhess.linalg.eigen.dense import Completed, Dense
from layerhess.linalg.eigen.process import Wanted
from references.spectra import rotated


def test_dense_reads_the_whole_spectrum_and_sees_asymmetry_in_its_residuals() -> None:
    matrix = rotated(np.linspace(-2.0, 3.0, 30), seed=0)
    process = Dense(30, Wanted(top=2, bottom=1))
    run(process, matrix)
    spectrum = process.candidates().spectrum
    assert spectrum is not None
    np.testing.assert_allclose(spectrum, np.linspace(3.0, -2.0, 30), atol=1e-12)
    assert process.candidates().residuals.max() < 1e-13
    skewed = Dense(30, Wanted(top=1))
    run(skewed, matrix + 0.1 * np.triu(np.ones((30, 30)), 1))
    assert skewed.candidates().residuals.max() > 1e-3


def test_dense_in_chunks_reads_every_column_once() -> None:
    matrix = rotated(np.linspace(0.0, 1.0, 150), seed=0)
    process = Dense(150, Wanted(top=1))
    assert run(process, matrix) == 3  # chunks of columns
    assert process.candidates().steps == 150


@pytest.mark.parametrize("known", [1, 4, 30])
def test_known_products_are_not_made_again(known: int) -> None:
    values = np.linspace(-2.0, 3.0, 30)
    matrix, rows = rotated(values, seed=0), np.random.default_rng(0).standard_normal((known, 30))
    process = Completed(30, Wanted(top=2, bottom=1), torch.from_numpy(rows), torch.from_numpy(rows @ matrix))
    while not process.proposes:
        process.tell(torch.from_numpy(process.ask().numpy() @ matrix))
    found = process.candidates()
    assert found.steps == 30 - known and found.spectrum is not None
    np.testing.assert_allclose(found.spectrum, values[::-1], atol=1e-11)
    np.testing.assert_allclose(
        found.vectors.numpy() @ matrix, found.values[:, None] * found.vectors.numpy(), atol=1e-11
    )

"""Krylov bases of which every rank holds a slice: the pairs of NumPy, and the steps of whole rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sliced_bases
from ranks import run_ranks
from references.spectra import rotated
from sliced_bases import ASKED, SPECTRA, N


def returned(ranks: int, function: str, folder: Path) -> list[Any]:
    every = run_ranks(ranks, "sliced_bases", function, folder)
    assert [one.code for one in every] == [0] * ranks, [one.stderr[-1500:] for one in every]
    return [one.returned for one in every]


@pytest.mark.parametrize("ranks", [2, 3])
def test_slices_find_what_whole_rows_find(ranks: int, tmp_path: Path) -> None:
    every, whole = returned(ranks, "solved", tmp_path), sliced_bases.solved()
    for name, values in SPECTRA.items():
        exact, matrix = np.sort(values)[::-1], rotated(values, seed=1)
        for question, (wanted, options) in ASKED.items():
            found, same = every[0][f"{name}, {question}"], whole[f"{name}, {question}"]
            tol = 1e-6 if "dtype" in options else 1e-12
            expected = np.concatenate([exact[: wanted.top], exact[N - wanted.bottom :]])
            np.testing.assert_allclose(found["values"], expected, atol=1e-6 if "dtype" in options else 1e-8)
            np.testing.assert_allclose(found["values"], same["values"], atol=tol)
            off = found["vectors"] @ matrix - found["values"][:, None] * found["vectors"]
            assert (np.linalg.norm(off, axis=1) <= found["residuals"] + found["stored"] + 1e-12).all()
            assert abs(found["steps"] - same["steps"]) <= 2
            for rank, other in enumerate(every):
                here = other[f"{name}, {question}"]
                assert here["columns"] == N * (rank + 1) // ranks - N * rank // ranks
                for key in ("values", "vectors", "residuals", "stored", "steps"):
                    assert np.array_equal(found[key], here[key]), (name, question, key)


@pytest.mark.parametrize("devices", ["analysed", "analysed_on_two_devices"])
def test_an_analysis_slices_its_bases_where_they_do_not_fit(devices: str, tmp_path: Path) -> None:
    every, whole = returned(2, devices, tmp_path), sliced_bases.analysed()
    assert whole.pop("columns") == {n: n for n in (40, 400, 800, 1250)}
    for one in every:
        assert one["converged"] and one.pop("columns") == {40: 40, 400: 200, 800: 400, 1250: 625}  # 40 fit in any case
    for name, numbers in whole.items():
        least = 1e-10 * np.abs(numbers).max()
        np.testing.assert_allclose(every[0][name], numbers, rtol=1e-10, atol=least, err_msg=name)
        assert np.array_equal(every[0][name], every[1][name])

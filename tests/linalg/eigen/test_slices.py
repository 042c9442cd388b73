"""Krylov bases of which every rank holds a slice: the pairs of NumPy, and the steps of whole rows."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sliced_bases
from layerhess.errors import InputError
from layerhess.results import store
from ranks import run_ranks
from references.spectra import rotated
from sliced_bases import ASKED, SPECTRA, N


def returned(ranks: int, function: str, folder: Path) -> list[Any]:
    every = run_ranks(ranks, "sliced_bases", function, folder)
    assert [one.code for one in every] == [0] * ranks, [one.stderr[-1500:] for one in every]
    return [one.returned for one in every]


@pytest.mark.slow
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


def assert_same_numbers(every: list[Any], whole: dict[str, Any]) -> None:
    """As those of one process, bit by bit the same on all ranks."""
    for name, numbers in whole.items():
        if name in ("columns", "told"):
            continue
        least = 1e-10 * np.abs(numbers).max()
        np.testing.assert_allclose(every[0][name], numbers, rtol=1e-10, atol=least, err_msg=name)
        assert all(np.array_equal(every[0][name], other[name]) for other in every)


@pytest.mark.parametrize("devices", ["analysed", pytest.param("analysed_on_two_devices", marks=pytest.mark.slow)])
def test_an_analysis_slices_its_bases_where_they_do_not_fit(devices: str, tmp_path: Path) -> None:
    every, whole = returned(2, devices, tmp_path), sliced_bases.analysed()
    assert whole.pop("columns") == {n: n for n in (40, 400, 800, 1250)}
    for one in every:
        assert one["converged"] and one.pop("columns") == {40: 40, 400: 200, 800: 400, 1250: 625}  # 40 fit in any case
    assert_same_numbers(every, whole)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(sliced_bases.FOLDER, str(tmp_path / "runs"))
    return tmp_path / "runs"


def begin(ranks: int, function: str, folder: Path) -> None:
    """Kill all processes of a run."""
    for one in run_ranks(ranks, "sliced_bases", function, folder):
        assert one.code == -signal.SIGKILL, one.stderr[-1500:]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (2, 3)])
def test_slices_of_a_run_that_was_killed_go_on_elsewhere(first: int, then: int, runs: Path, tmp_path: Path) -> None:
    begin(first, "dies_where_it_fits", tmp_path / "first")
    every = returned(then, "goes_on", tmp_path / "then")
    for one in every:
        # A process alone has room for fewer rows, and asks in other waves: its passes are made anew.
        assert one["told"] == (5 if min(first, then) > 1 else 0)
        assert one["columns"] == {n: n for n in (40, 400, 800, 1250)} if then == 1 else one["columns"][1250] < 1250
    assert_same_numbers(every, sliced_bases.analysed())
    assert [path.name for path in runs.iterdir()] == ["fits"]


@pytest.mark.slow
def test_where_one_process_has_no_room_for_what_two_had_it_is_refused_and_two_go_on(runs: Path, tmp_path: Path) -> None:
    begin(2, "dies_where_it_fits_in_two", tmp_path / "first")
    journal = store.journal_path(runs / "fits in two")
    before = journal.read_bytes()
    with pytest.raises(InputError, match="vectors do not fit into memory"):
        sliced_bases.goes_on_in_two()
    assert journal.read_bytes() == before
    for one in returned(2, "goes_on_in_two", tmp_path / "then"):
        assert one["converged"] and one["columns"] == {2800: 1400}
    assert not journal.exists()

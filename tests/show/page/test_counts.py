"""Counts of eigenvalues above a threshold, against the spectrum itself."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

import fabricated
import layerhess as lh
from layerhess.linalg.stochastic.density import Density, exact_density
from layerhess.show.page.counts import SCALE, chart, counted


def test_of_a_whole_spectrum_counts_are_exact() -> None:
    made = fabricated.complete("w", (50,))
    found = counted(made)
    assert found is not None and made.spectrum is not None
    for threshold in (0.01, 0.3, 1.0, 9.0):
        assert (
            found.above(threshold)
            == (made.spectrum > threshold).sum()
            == found.band(threshold)[0]
            == found.band(threshold)[1]
        )


def test_from_probes_the_count_is_their_mean_and_its_band_holds_their_spread_and_their_quadratures_error() -> None:
    base = exact_density(np.array([1.0, 2.0]), Density())
    nodes = np.array([[4.0, 2.0, 0.5], [4.0, 1.5, 0.2], [3.0, 2.5, 0.1]])
    weights = np.array([[0.2, 0.3, 0.5], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
    density = dataclasses.replace(base, probes=3, resolution=0.01, nodes=nodes, weights=weights)
    found = counted(fabricated.spectrum("w", (10,), density=density))
    assert found is not None and found.least == 0.02
    each = 10 * np.array([0.5, 0.1, 0.6])  # above 1.8
    assert np.isclose(found.above(1.8), each.mean())
    low, high = found.band(1.8)
    least, most = 10 * np.array([0.2, 0.0, 0.3]), 10 * np.array([1.0, 0.3, 1.0])  # a node more, a node less
    assert low <= least.mean() and high >= most.mean()
    unfinished = dataclasses.replace(density, finished=False)
    assert counted(fabricated.spectrum("w", (10,), density=unfinished)) is None
    single = dataclasses.replace(density, probes=1, nodes=nodes[:1], weights=weights[:1])
    assert np.isnan(counted(fabricated.spectrum("w", (10,), density=single)).band(1.8)).all()  # type: ignore[union-attr]


def test_the_band_holds_the_true_number_of_random_matrices() -> None:
    inside = total = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        values = np.concatenate([rng.lognormal(0.0, 1.5, 30), 0.01 * rng.standard_normal(270)])
        found = lh.density(np.diag(values), probes=6, steps=20, seed=seed)
        made = counted(fabricated.spectrum("w", (300,), density=found, eigenvalues=np.sort(values)[[-1, -2, 0]]))
        assert made is not None
        for threshold in np.geomspace(max(made.least, 0.05), 0.9 * values.max(), 6):
            low, high = made.band(threshold)
            inside += low <= (values > threshold).sum() <= high
            total += 1
    assert inside >= 0.95 * total, (inside, total)


def test_lines_fall_from_left_to_right_and_end_where_the_count_does() -> None:
    made = fabricated.estimated(fabricated.analysis())
    drawn = chart(made)
    assert drawn is not None and drawn.lines[-1].whole, "the whole model is drawn last"
    for line in drawn.lines:
        steps = re.findall(r"V(\d+)", line.path)
        heights = list(map(int, steps))
        assert heights == sorted(heights) and heights[-1] == SCALE
        places = list(map(int, re.findall(r"H(\d+)", line.path)))
        assert places == sorted(places)


def test_the_sentence_has_the_band_of_the_count() -> None:
    made = fabricated.estimated(fabricated.analysis())
    assert made.full is not None
    found, sentence = counted(made.full), chart(made).sentence  # type: ignore[union-attr]
    told = re.search(r"whole model ([\d,]+) to ([\d,]+) \(95 %\) bend more than ([\d.e+-]+),", sentence)
    assert told is not None and found is not None, sentence
    low, high = found.band(float(told[3]))
    assert float(told[1].replace(",", "")) <= low and high <= float(told[2].replace(",", ""))


def test_without_densities_there_is_no_chart() -> None:
    assert chart(fabricated.analysis()) is None

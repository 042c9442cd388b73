"""Counts of eigenvalues above a threshold, against the spectrum itself."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

import fabricated
from layerhess.linalg.stochastic.density import Density, exact_density
from layerhess.show.page.counts import SCALE, chart, counted


def test_of_a_whole_spectrum_counts_are_exact() -> None:
    made = fabricated.complete("w", (50,))
    found = counted(made)
    assert found is not None and made.spectrum is not None
    for threshold in (0.01, 0.3, 1.0, 9.0):
        assert found.above(threshold) == (made.spectrum > threshold).sum() and found.error(threshold) == 0.0


def test_from_probes_the_count_is_their_mean_with_its_standard_error() -> None:
    base = exact_density(np.array([1.0, 2.0]), Density())
    nodes = np.array([[4.0, 2.0, 0.5], [4.0, 1.5, 0.2], [3.0, 2.5, 0.1]])
    weights = np.array([[0.2, 0.3, 0.5], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
    density = dataclasses.replace(base, probes=3, bandwidth=0.01, nodes=nodes, weights=weights)
    found = counted(fabricated.spectrum("w", (10,), density=density))
    assert found is not None and found.least == 0.02
    each = 10 * np.array([0.5, 0.1, 0.6])  # above 1.8
    assert np.isclose(found.above(1.8), each.mean())
    assert np.isclose(found.error(1.8), each.std(ddof=1) / np.sqrt(3))
    unfinished = dataclasses.replace(density, finished=False)
    assert counted(fabricated.spectrum("w", (10,), density=unfinished)) is None


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


def test_the_sentence_has_the_count_and_its_error() -> None:
    made = fabricated.estimated(fabricated.analysis())
    assert made.full is not None
    found = counted(made.full)
    sentence = chart(made).sentence
    told = re.search(r"whole model (\d+) ± (\d+) bend more than ([\d.e+-]+),", sentence)
    assert told is not None and found is not None, sentence
    threshold = float(told[3])
    assert abs(found.above(threshold) - float(told[1])) <= 0.5 and float(told[2]) >= found.error(threshold)


def test_without_densities_there_is_no_chart() -> None:
    assert chart(fabricated.analysis()) is None

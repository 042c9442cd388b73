"""The report's chart of densities over decades: there for a logarithmic axis, with lines for either sign."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

import fabricated
from layerhess.linalg.stochastic.density import Density, exact_density
from layerhess.results.spectrum import AnalysisRecord
from layerhess.show.page.distribution import distribution
from layerhess.show.report import as_html

VALUES = np.concatenate([10.0 ** np.linspace(-4, 1, 90), -(10.0 ** np.linspace(-3, -2, 10)), np.zeros(100)])


@pytest.fixture
def analysis() -> AnalysisRecord:
    made = fabricated.analysis()
    density = exact_density(VALUES, Density(axis="log"))
    assert made.full is not None
    blocks = {name: dataclasses.replace(s, density=density) for name, s in made.blocks.items()}
    return dataclasses.replace(made, blocks=blocks, full=dataclasses.replace(made.full, density=density))


def test_a_line_for_each_block_a_bold_one_for_the_model_and_a_dashed_one_for_negative_values(
    analysis: AnalysisRecord,
) -> None:
    chart = distribution(analysis)
    assert chart is not None
    assert sum(line.whole for line in chart.lines) == 1 and sum(line.limit for line in chart.lines) == 1
    assert {line.block for line in chart.lines} == {*analysis.blocks, "(full)"}
    for line in chart.lines:
        assert re.fullmatch(r"(?:[ML]\d+ \d+)+", line.path)
        assert all(0 <= int(number) <= 1000 for number in re.findall(r"\d+", line.path))
    assert "50 % are smaller than 1e-07 in size; 5 % are negative and larger" in chart.sentence


def test_it_is_in_the_report_and_only_for_such_densities(analysis: AnalysisRecord) -> None:
    assert "Over which decades" in as_html(analysis)
    plain = fabricated.analysis()
    assert distribution(plain) is None and "Over which decades" not in as_html(plain)
    assert analysis.full is not None and analysis.full.density is not None
    early = {n: dataclasses.replace(s, density=dataclasses.replace(s.density, finished=False))
             for n, s in analysis.blocks.items() if s.density is not None}  # fmt: skip
    assert distribution(dataclasses.replace(analysis, blocks=early, full=None)) is None

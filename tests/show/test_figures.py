"""Figures of eigenvalues: what is drawn is what was found, with its bounds, for every kind of input."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

import fabricated
from fabricated import one
from layerhess.show import figures


def labels(figure: Figure) -> list[str]:
    return [tick.get_text() for tick in figure.axes[0].get_yticklabels()]


def test_the_overview_has_the_full_model_and_every_block_and_draws_the_bounds() -> None:
    made = fabricated.analysis()
    figure = made.plot()
    assert labels(figure) == ["full model (H)", *made.blocks]
    axes = figure.axes[0]
    assert axes.get_xscale() == "symlog"
    segments = [s for bars in axes.collections for s in bars.get_segments()]
    for row, s in enumerate([made.full, *made.blocks.values()]):
        if s.status == "zero":
            continue
        for value, bound in zip(s.eigenvalues, s.error_bounds, strict=True):
            whisker = [[value - bound, row], [value + bound, row]]
            assert any(np.allclose(segment, whisker) for segment in segments if len(segment))


def test_positive_spectra_are_drawn_on_a_logarithmic_axis() -> None:
    base = fabricated.spectrum("w", eigenvalues=np.array([30.0, 2.0, 0.1]), error_bounds=np.full(3, 1e-3))
    assert figures.overview(one(base)).axes[0].get_xscale() == "log"


def test_every_value_is_inside_the_axes() -> None:
    for made in (fabricated.analysis(), fabricated.analysis(bad=True), fabricated.analysis(full=None, full_mass=[])):
        low, high = figures.overview(made).axes[0].get_xlim()
        values = np.concatenate([s.eigenvalues for s in made.spectra()])
        assert low <= values.min() and values.max() <= high


def test_unconverged_and_refused_are_marked() -> None:
    figure = figures.overview(fabricated.analysis(bad=True))
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "not converged" in legend
    assert "refused" in [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("extreme", [0.0, 1e-300, 1e300, np.inf])
def test_extreme_values_do_not_break_the_figures(extreme: float) -> None:
    block = fabricated.spectrum("w", eigenvalues=np.array([1.0, 0.5, -extreme if np.isfinite(extreme) else -1.0]))
    block = dataclasses.replace(block, error_bounds=np.array([1e-3, 1e-3, extreme]))
    figures.overview(one(block))._repr_png_()


def test_a_figure_shows_itself_in_a_notebook_without_pyplot() -> None:
    loaded = "matplotlib.pyplot" in sys.modules
    assert fabricated.analysis().plot()._repr_png_().startswith(b"\x89PNG")
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_a_model_of_a_thousand_blocks_is_cut_visibly(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = {f"b{i}": fabricated.spectrum(f"b{i}", (2,), i) for i in range(1000)}
    monkeypatch.setattr(figures, "_draw_spectrum", lambda *_: None)  # what is drawn is tested above, and takes long
    figure = figures.overview(fabricated.analysis(blocks=blocks, full=None, full_mass=[]))
    assert len(labels(figure)) == 300 and "300 of 1000 blocks" in figure.axes[0].get_title(loc="left")


def test_dollars_in_names_are_no_mathematics() -> None:
    figures.overview(one(fabricated.spectrum("cost$_{")))._repr_png_()

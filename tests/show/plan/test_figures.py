"""``plan.plot``: what is drawn is what was measured; nothing is told by colour alone."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from matplotlib.axes import Axes

import plans_by_hand
from layerhess.errors import InputError
from layerhess.show.plan import figures, words
from layerhess.show.plan.plots import PlanPlots


def series(axes: Axes) -> dict[str, np.ndarray]:
    """Label -> (n, 2) points, of error bars."""
    return {
        str(container.get_label()): np.array(container.lines[0].get_xydata())
        for container in axes.containers
        if hasattr(container, "lines")
    }


def test_every_picture_shows_itself_without_pyplot() -> None:
    loaded = "matplotlib.pyplot" in sys.modules
    plot = PlanPlots(plans_by_hand.plan())
    for picture in (plot(), plot.bits(), plot.predicted(), plot.frontier()):
        assert picture._repr_png_().startswith(b"\x89PNG")
    assert ("matplotlib.pyplot" in sys.modules) == loaded
    assert "plot(), .bits(), .predicted(), .frontier()" in repr(plot)


def test_points_are_predicted_against_measured() -> None:
    made = plans_by_hand.plan()
    found = series(PlanPlots(made).predicted().axes[0])
    assert np.allclose(found["the plan"], [[made.predicted, made.measured]])
    hawq = made.baselines["hawq_v2"]
    assert np.allclose(found["HAWQ-V2"], [[hawq.predicted, hawq.measured]])
    assert len(found["random plans"]) == 40


def test_the_frontier_has_sizes_in_the_units_of_its_label() -> None:
    made = plans_by_hand.plan()
    axes = PlanPlots(made).frontier().axes[0]
    assert "kB" in axes.get_xlabel()
    assert np.allclose(series(axes)["the plan"], [[made.size_bytes / 1e3, made.measured]])


def test_kinds_have_different_shapes() -> None:
    assert len({shape for shape, *_ in figures.MARKS.values()}) == len(figures.MARKS)


def test_bars_are_the_bits_in_model_order() -> None:
    made = plans_by_hand.plan()
    axes = PlanPlots(made).bits().axes
    assert [bar.get_width() for bar in axes[0].patches] == list(map(float, plans_by_hand.CHOSEN))
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == list(made.choice)
    alone = [row.measured for row in words.chosen_rows(made).values() if row is not None]
    assert np.allclose([container.lines[0].get_xdata()[0] for container in axes[1].containers], alone)


def test_a_layer_without_an_increase_is_told_in_words() -> None:
    made = plans_by_hand.plan()
    rows = tuple(dataclasses.replace(r, measured=-1e-5) if r.layer == "head.weight" else r for r in made.rows)
    axes = PlanPlots(dataclasses.replace(made, rows=rows)).bits().axes[1]
    assert [text.get_text() for text in axes.texts] == ["-1e-05: no increase"]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_strange_names_do_no_harm() -> None:
    layers = {f"$x_{{$\\frac{i}</b>\x1b[31m" + "層" * 60: (4, 4) for i in range(3)}
    plot = PlanPlots(plans_by_hand.plan(layers, (2, 4, 8)))
    assert plot()._repr_png_() and plot.predicted()._repr_png_()


def test_too_few_plans_to_draw_are_refused_with_what_to_do() -> None:
    plot = PlanPlots(plans_by_hand.undone())
    assert plot.bits()._repr_png_()
    for draw in (plot.predicted, plot.frontier):
        with pytest.raises(InputError, match=r"fewer than two plans.*verify=True"):
            draw()

"""Plots of slices: the loss is a solid line, its quadratic is drawn over it; contours at the same levels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.colors import to_hex

from layerhess.results.loss_slice import LossSliceRecord
from layerhess.show.slice_figures import drawn
from layerhess.show.style import BOTTOM, TOP

ALPHA = np.linspace(-1.0, 1.0, 9)
LINE = LossSliceRecord(
    alpha=ALPHA, loss=np.cosh(ALPHA), quadratic=1.0 + ALPHA**2 / 2, value=1.0, rounding=1e-16, slope=0.0,
    curvature=1.0, difference_curvature=1.0, difference_error=1e-6, agrees=True, norms=(1.0,),
    directions=("block $1$",), parameters=("block",), status="fine",
)  # fmt: skip


def test_a_line_has_the_loss_and_its_quadratic() -> None:
    (axes,) = drawn(LINE).axes
    loss, quadratic = (
        next(line for line in axes.lines if to_hex(line.get_color()) == colour) for colour in (TOP, BOTTOM)
    )
    assert loss.get_ydata() == pytest.approx(LINE.loss) and quadratic.get_ydata() == pytest.approx(LINE.quadratic)
    assert quadratic.get_linestyle() == "--" and quadratic.get_zorder() > loss.get_zorder()
    low, high = axes.get_ylim()
    assert low < 1.0 and high > LINE.loss.max()
    assert r"\$1\$" in axes.get_xlabel()


def test_a_quadratic_that_runs_away_does_not_flatten_the_loss() -> None:
    steep = dataclasses.replace(LINE, quadratic=1.0 + 1e6 * ALPHA**2)
    low, high = drawn(steep).axes[0].get_ylim()
    assert high - low < 4.0 * (LINE.loss.max() - LINE.loss.min())


def test_what_is_not_finite_is_left_out() -> None:
    loss = LINE.loss.copy()
    loss[[0, 8]] = np.inf, np.nan
    figure = drawn(dataclasses.replace(LINE, loss=loss))
    assert all(np.isfinite(figure.axes[0].get_ylim()))
    nothing = drawn(dataclasses.replace(LINE, loss=np.full(9, np.nan)))
    assert all(np.isfinite(nothing.axes[0].get_ylim()))


def test_a_surface_has_contours_of_both_and_the_first_direction_to_the_right() -> None:
    a, b = np.meshgrid(ALPHA, ALPHA, indexing="ij")
    surface = dataclasses.replace(
        LINE, loss=1.0 + 3.0 * a**2 + np.cosh(b), quadratic=2.0 + 3.0 * a**2 + b**2 / 2, directions=("one", "other")
    )
    (axes,) = drawn(surface).axes
    assert "one" in axes.get_xlabel() and "other" in axes.get_ylabel()
    loss, quadratic = axes.collections
    assert np.array_equal(loss.levels, quadratic.levels)  # type: ignore[attr-defined]
    wide = loss.get_paths()[1].get_extents()
    assert wide.height > wide.width, "the loss rises faster along the first direction, which runs to the right"

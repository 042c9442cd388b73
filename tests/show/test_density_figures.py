"""Figures of densities, couplings and distances: what is drawn is what was estimated, for every kind of input."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from layerhess.linalg.estimates import DensityEstimate
from layerhess.linalg.stochastic.density import Density, exact_density
from layerhess.show.density_figures import densities

Floats = NDArray[np.float64]
NAMES = ["stem.weight", *(f"blocks.{i}.{p}.weight" for i in range(7) for p in ("conv1", "bn1", "conv2"))]


def estimate(values: Floats, probes: int = 0) -> DensityEstimate:
    """The exact density; with probes, as if they had left a band of a factor of two."""
    made = exact_density(np.asarray(values, dtype=np.float64), Density())
    if not probes:
        return made
    factor = 2.0 if probes > 1 else np.nan
    changed = {**vars(made), "probes": probes, "low": made.value / factor, "high": made.value * factor}
    return DensityEstimate(**changed)


def spread(seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    return np.concatenate([10.0 ** rng.uniform(0, 2, 4), 0.05 * rng.standard_normal(80)])


def curve(axes: Axes) -> tuple[Floats, Floats]:
    line = max(axes.lines, key=lambda line: len(line.get_xdata()))
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def drawn(figure: Figure) -> bytes:
    return figure._repr_png_()  # type: ignore[attr-defined, no-any-return]


def overlapping(figure: Figure, axes: Axes, axis: str) -> bool:
    """Do neighbouring tick labels touch? For slanted ones, their distance across the text against its height."""
    figure.canvas.draw()
    ticks = getattr(axes, f"get_{axis}ticklabels")()
    if axis == "x" and ticks and ticks[0].get_rotation():
        step = np.diff([axes.transData.transform((t.get_position()[0], 0))[0] for t in ticks]).min()
        height = ticks[0].get_fontsize() * figure.dpi / 72
        return bool(step * np.sin(np.deg2rad(ticks[0].get_rotation())) < height)
    boxes = [tick.get_window_extent() for tick in ticks if tick.get_text()]
    return any(a.overlaps(b) for a, b in pairwise(boxes))


# -- on a logarithmic axis ---------------------------------------------------------------------------------------------


def test_both_signs_are_drawn_over_decades_and_what_is_near_zero_is_said() -> None:
    values = np.concatenate([10.0 ** np.linspace(-3, 1, 40), -(10.0 ** np.linspace(-4, -2, 20)), np.zeros(60)])
    found = {
        "a": exact_density(values, Density(axis="log")),
        "b": exact_density(np.abs(values), Density(axis="log")),
        "c": exact_density(np.zeros(4), Density(axis="log")),
    }
    figure = densities(found)
    both, _, nothing = figure.axes
    assert [axes.get_xscale() for axes in figure.axes] == ["log"] * 3
    assert [len(axes.lines) for axes in figure.axes] == [2, 1, 0]
    solid, dashed = both.lines
    assert solid.get_linestyle() == "-" and dashed.get_linestyle() == "--"
    np.testing.assert_array_equal(solid.get_ydata(), found["a"].value)
    np.testing.assert_array_equal(dashed.get_ydata(), found["a"].value_negative)
    assert "50 % below" in both.texts[0].get_text() and nothing.texts[0].get_text() == "no curvature"
    assert drawn(figure) and not overlapping(figure, both, "x")


# -- densities ---------------------------------------------------------------------------------------------------------


def test_each_block_has_a_panel_with_its_curve_on_shared_axes() -> None:
    made = {name: estimate(spread(i), 6) for i, name in enumerate(NAMES)}
    figure = densities(made)
    assert [axes.get_title(loc="left") for axes in figure.axes] == NAMES
    assert len({axes.get_xlim() for axes in figure.axes}) == len({axes.get_ylim() for axes in figure.axes}) == 1
    for axes, found in zip(figure.axes, made.values(), strict=True):
        assert axes.get_yscale() == "log"
        bottom = axes.get_ylim()[0]
        x, y = curve(axes)
        np.testing.assert_array_equal(x, found.grid)
        seen = found.value > bottom
        np.testing.assert_array_equal(y[seen], found.value[seen])
        (band,) = axes.collections
        (path,) = band.get_paths()
        assert path.vertices[:, 1].max() == pytest.approx(found.high.max())
        low, high = axes.get_xlim()
        assert low <= found.grid[seen].min() and found.grid[seen].max() <= high
    assert "95 % band over 6 random vectors" in figure.legends[0].get_texts()[0].get_text()


def test_outliers_put_eigenvalues_on_a_logarithmic_axis_and_a_plain_bulk_does_not() -> None:
    assert densities({"a": estimate(np.linspace(-1, 1, 50))}).axes[0].get_xscale() == "linear"
    assert densities({"a": estimate(spread(0))}).axes[0].get_xscale() == "symlog"


def test_exact_densities_and_single_probes_have_no_band() -> None:
    for found in (estimate(spread(0)), estimate(spread(0), 1)):
        figure = densities({"a": found})
        assert not figure.axes[0].collections and not figure.legends


def test_a_block_without_curvature_says_so_and_leaves_the_axes_to_the_others() -> None:
    alone = densities({"a": estimate(np.linspace(0, 1, 50))})
    beside = densities({"a": estimate(np.linspace(0, 1, 50)), "b": estimate(np.zeros(9))})
    assert (
        beside.axes[0].get_ylim() == alone.axes[0].get_ylim() and beside.axes[0].get_xlim() == alone.axes[0].get_xlim()
    )
    assert [text.get_text() for text in beside.axes[1].texts] == ["no curvature"]
    drawn(densities({"b": estimate(np.zeros(9))}))


def test_many_blocks_are_cut_visibly_in_their_order() -> None:
    made = {f"b{i}": estimate((1 + i) * np.linspace(0, 1, 9)) for i in range(40)}
    figure = densities(made)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [f"b{i}" for i in range(16, 40)]
    assert "24 of 40 blocks" in " ".join(text.get_text() for text in figure.texts)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 22])
def test_ticks_of_the_panels_do_not_touch(count: int) -> None:
    figure = densities({name: estimate(10.0 ** (i % 3) * spread(i)) for i, name in enumerate(NAMES[:count])})
    assert not any(overlapping(figure, axes, axis) for axes in figure.axes for axis in "xy")


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e9])
def test_every_scale_of_eigenvalues_can_be_drawn(scale: float) -> None:
    drawn(densities({"a": estimate(scale * spread(0)), "b": estimate(np.full(3, scale)), "c": estimate([-scale])}))
    drawn(densities({"a": estimate(scale * spread(0)), "b": estimate(spread(1))}))


def test_no_blocks_are_an_empty_figure() -> None:
    drawn(densities({}))


# -- the full model ----------------------------------------------------------------------------------------------------


# -- heat maps ---------------------------------------------------------------------------------------------------------


def table(count: int, decades: float = 4.0) -> Floats:
    a = 10.0 ** np.random.default_rng(0).uniform(-decades, 0.0, (count, count))
    return (a + a.T) / 2

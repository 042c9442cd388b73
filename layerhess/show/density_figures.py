"""Figures of densities with their confidence bands, one small panel for each block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from layerhess.linalg.estimates import DensityEstimate, Floats
from layerhess.linalg.numbers import number, share
from layerhess.show.figures import shortened, tick_label
from layerhess.show.style import BOTTOM, INK, MUTED, PAPER, RULE, TOP, Picture

WIDTH = 9.0  # inches
MOST_PANELS = 24
COLUMNS = 4
DECADES = 5.0  # drawn of each density, down from its peak
MOST_DECADES = 10.0  # of all panels together
FINE = 300.0  # bandwidths: an eigenvalue axis longer than this is symmetric logarithmic
SIGNS: Any = ((TOP, "-", "positive"), (BOTTOM, "--", "negative"))  # on a logarithmic axis
MOST_NAMES = 60  # blocks named along a heat map


def densities(estimates: Mapping[str, DensityEstimate]) -> Picture:
    """One small panel for each block, all with the same axes: the density on a logarithmic scale, with its 95 % band.

    The eigenvalue axis is linear, or symmetric logarithmic if the narrowest density would be invisible. Densities made
    on a logarithmic axis are drawn over |eigenvalue|, negative ones dashed, by decades. With more than 24 blocks, those
    with the largest mean square eigenvalue, in their order.
    """
    shown = dict(estimates)
    if len(shown) > MOST_PANELS:
        kept = sorted(shown, key=lambda name: -shown[name].second)[:MOST_PANELS]
        shown = {name: estimate for name, estimate in shown.items() if name in kept}
    columns = max(1, min(COLUMNS, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    height = 1.0 + 1.35 * rows
    figure = Picture(figsize=(WIDTH, height), facecolor=PAPER)
    drawn = [estimate for estimate in shown.values() if not _is_zero(estimate)]
    by_decades = bool(shown) and all(estimate.axis == "log" for estimate in shown.values())
    bottom, top = _density_limits(drawn)
    left, right, threshold = _decade_limits(drawn) if by_decades else _eigenvalue_limits(drawn, bottom)
    for index, (name, estimate) in enumerate(shown.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        style_axes(axes)
        if by_decades:
            _decade_axes(axes, left, right, threshold)
        else:
            _eigenvalue_axis(axes, left, right, threshold, most=5)
            _density_axis(axes, bottom, top)
        axes.set_title(shortened(name, 30), fontsize=8.5, color=INK, loc="left", pad=3)
        if _is_zero(estimate):
            middle = math.sqrt(left * right) if by_decades else 0.0
            if not by_decades:
                axes.axvline(0.0, color=MUTED, linewidth=1.6)
            box = {"facecolor": PAPER, "edgecolor": "none", "pad": 2.0}
            place = axes.get_xaxis_transform()
            axes.text(middle, 0.5, "no curvature", transform=place, fontsize=8, color=MUTED, ha="center", bbox=box)
        elif by_decades:
            _draw_decades(axes, estimate)
        else:
            _draw(axes, estimate, bottom)
        axes.tick_params(labelbottom=index + columns >= len(shown), labelleft=index % columns == 0)
    _margins(figure, height, left=0.75, top=0.62, bottom=0.62)
    across, up = ("size of the eigenvalue", "share by decade") if by_decades else ("eigenvalue", "density")
    figure.supxlabel(across, color=MUTED, fontsize=9, y=0.12 / height)
    figure.supylabel(f"{up} (mass 1 in each panel)" if rows > 1 else up, color=MUTED, fontsize=9, x=0.008)
    signs: list[Line2D | Patch] = []
    if by_decades:
        signs += [Line2D([], [], color=c, linestyle=d, label=label) for c, d, label in SIGNS]
        if any(estimate.rounding > left for estimate in drawn):
            signs.append(Patch(facecolor=RULE, alpha=0.45, label="rounding"))
    _legend(figure, [estimate for estimate in shown.values() if estimate.probes > 1], height, 0.14, signs)
    if len(shown) < len(estimates):
        note = f"the {len(shown)} of {len(estimates)} blocks with the largest mean square eigenvalue"
        figure.text(0.99, 1.0 - 0.14 / height, note, fontsize=8.5, color=MUTED, ha="right", va="center")
    return figure


# -- densities ---------------------------------------------------------------------------------------------------------


def _draw(axes: Axes, density: DensityEstimate, floor: float) -> None:
    """The curve and its band."""
    below = 0.1 * floor  # below the axis, so that no line lies along it between outliers
    if density.probes > 1:
        low, high = np.maximum(density.low, below), np.maximum(density.high, below)
        axes.fill_between(density.grid, low, high, color=TOP, alpha=0.28, linewidth=0, zorder=2)
    axes.plot(density.grid, np.maximum(density.value, below), color=TOP, linewidth=1.1, zorder=3)


def _draw_decades(axes: Axes, density: DensityEstimate) -> None:
    """Both curves with their bands, and the share that lies too near 0 to be drawn."""
    for (colour, dashes, _), value, low, high in zip(
        SIGNS,
        (density.value, density.value_negative),
        (density.low, density.low_negative),
        (density.high, density.high_negative),
        strict=True,
    ):
        if not value.any():
            continue
        if density.probes > 1:
            axes.fill_between(density.grid, low, high, color=colour, alpha=0.22, linewidth=0, zorder=2)
        axes.plot(density.grid, value, color=colour, linestyle=dashes, linewidth=1.2, zorder=3)
    if density.rounding > axes.get_xlim()[0]:  # numbers whose sign, too, may be rounding
        axes.axvspan(axes.get_xlim()[0], density.rounding, color=RULE, alpha=0.45, linewidth=0, zorder=1)
    if density.below_floor >= 0.005:
        near = f"{share(density.below_floor)} below {number(density.floor, 1)}"
        axes.text(0.02, 0.97, near, transform=axes.transAxes, fontsize=7, color=MUTED, ha="left", va="top")


def _decade_limits(drawn: Sequence[DensityEstimate]) -> tuple[float, float, float]:
    """Both ends of the axis of sizes, and the highest curve (or band, up to twice that)."""
    low = min((float(density.grid[0]) for density in drawn), default=0.1)
    high = max((float(density.grid[-1]) for density in drawn), default=1.0)
    peaks = [float(max(d.value.max(), d.value_negative.max(initial=0.0))) for d in drawn]
    bands = [float(max(np.nanmax(d.high, initial=0.0), np.nanmax(d.high_negative, initial=0.0))) for d in drawn]
    peak = max(peaks, default=1.0)
    return low, high, max(1.05 * peak, min(2.0 * peak, max(bands, default=peak)))


def _decade_axes(axes: Axes, left: float, right: float, top: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(0.0, top)
    powers = range(math.ceil(math.log10(left)), math.floor(math.log10(right)) + 1)
    shown = powers[:: max(1, math.ceil(len(powers) / 4))]
    axes.set_xticks([10.0**k for k in shown], [tick_label(10.0**k) for k in shown])
    axes.minorticks_off()


def _is_zero(density: DensityEstimate) -> bool:
    return not np.any(density.nodes[density.weights > 0.0])


def _density_limits(drawn: Sequence[DensityEstimate]) -> tuple[float, float]:
    """Five decades of the flattest density, and at most ten in all."""
    peaks = [float(density.value.max()) for density in drawn] or [1.0]
    top = max(peaks)
    bottom = max(min(peaks) * 10.0**-DECADES, top * 10.0**-MOST_DECADES)
    return bottom, 3.0 * top


def _eigenvalue_limits(
    drawn: Sequence[DensityEstimate], floor: float, others: Floats | None = None
) -> tuple[float, float, float]:
    """Both ends of the axis and the linear part of a symmetric logarithmic one (0 for a linear one)."""
    seen = [density.grid[density.value > floor] for density in drawn]
    every = np.concatenate([*seen, np.zeros(1) if others is None or not len(others) else others])
    low, high = float(every.min()), float(every.max())
    size = max(abs(low), abs(high))
    if size == 0.0:
        return -1.0, 1.0, 0.0
    finest = min((density.resolution for density in drawn), default=size)
    if (high - low) / finest <= FINE:
        margin = 0.04 * (high - low)
        return low - margin, high + margin, 0.0
    threshold = 10.0 ** round(math.log10(max(3.0 * finest, 1e-6 * size)))
    return low * 1.6 if low < 0 else -threshold, high * 1.6 if high > 0 else threshold, threshold


def _eigenvalue_axis(axes: Axes, left: float, right: float, threshold: float, most: int) -> None:
    if threshold:
        axes.set_xscale("symlog", linthresh=threshold, linscale=0.6)
        powers = range(round(math.log10(threshold)), math.floor(math.log10(max(-left, right))) + 1)
        sizes = [10.0**k for k in powers][::-1]
        for step in range(1, len(sizes) + 1):
            chosen = [m for m in sizes[::step] if m > threshold or len(sizes) == 1]  # no room next to 0
            ticks = sorted({0.0, *(-m for m in chosen if -m >= left), *(m for m in chosen if m <= right)})
            if len(ticks) <= most:
                break
        axes.set_xticks(ticks, [tick_label(tick) for tick in ticks])
        axes.minorticks_off()
    else:
        axes.locator_params(axis="x", nbins=min(most, 8) - 1)
    axes.set_xlim(left, right)


def _density_axis(axes: Axes, bottom: float, top: float) -> None:
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    first, last = math.ceil(math.log10(bottom)), math.floor(math.log10(top))
    step = max(1, math.ceil((last - first + 1) / 4))
    powers = range(first, last + 1, step)
    axes.set_yticks([10.0**k for k in powers], [tick_label(10.0**k) for k in powers])
    axes.minorticks_off()


def style_axes(axes: Axes) -> None:
    """A curve over a grid."""
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("bottom", "left"))
        spine.set_color(RULE)
    axes.tick_params(axis="both", colors=MUTED, labelsize=7.5, length=2)
    axes.grid(color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)


def _margins(figure: Picture, height: float, *, left: float, top: float, bottom: float) -> None:
    figure.subplots_adjust(
        left=left / WIDTH,
        right=1.0 - 0.15 / WIDTH,
        top=1.0 - top / height,
        bottom=bottom / height,
        hspace=0.38,
        wspace=0.1,
    )


def _legend(
    figure: Picture, banded: Sequence[DensityEstimate], height: float, down: float, marks: Sequence[Line2D | Patch] = ()
) -> None:
    """A legend whose middle is ``down`` inches below the top of the figure."""
    handles: list[Line2D | Patch] = [*marks]
    if banded:
        probes = sorted({density.probes for density in banded})
        number_of = f"{probes[0]}" if len(probes) == 1 else f"{probes[0]} to {probes[-1]}"
        handles.append(Patch(facecolor=TOP, alpha=0.28, label=f"95 % band over {number_of} random vectors"))
    if handles:
        figure.legend(
            handles=handles, loc="center left", bbox_to_anchor=(0.005, 1.0 - down / height), ncols=4, frameon=False,
            fontsize=8.5, labelcolor=INK, borderaxespad=0.3, handletextpad=0.4, handlelength=1.4,
        )  # fmt: skip


# -- heat maps ---------------------------------------------------------------------------------------------------------


def name_cells(axes: Axes, names: Sequence[str]) -> None:
    """Names of the rows and columns of a table, as many as fit."""
    count = len(names)
    step = max(1, math.ceil(count / MOST_NAMES))
    places = list(range(0, count, step))
    size = 8.0 if count <= 26 else 6.0 if count <= 40 else 5.0
    labels = [shortened(names[place], 30) for place in places]
    axes.set_yticks(places, labels, fontsize=size, color=INK)
    axes.set_xticks(places, labels, fontsize=size, color=INK, rotation=55, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0, pad=3)

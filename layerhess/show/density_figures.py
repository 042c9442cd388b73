"""Figures of estimates: spectral densities with confidence bands, and heat maps of pairs of blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize, to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from layerhess.linalg.estimates import DensityEstimate, Floats
from layerhess.show.figures import shortened, tick_label
from layerhess.show.numbers import number
from layerhess.show.style import BOTTOM, INK, MUTED, PAPER, RULE, TOP, Picture

WIDTH = 9.0  # inches
MOST_PANELS = 24
COLUMNS = 4
DECADES = 5.0  # drawn of each density, down from its peak
MOST_DECADES = 10.0  # of all panels together
FINE = 300.0  # bandwidths: an eigenvalue axis longer than this is symmetric logarithmic
MOST_NAMES = 60  # blocks named along a heat map
MOST_NUMBERS = 12  # blocks up to which each cell has its number
WIDE = 30.0  # largest over smallest value from which on colours are logarithmic
COLOUR_DECADES = 5.0  # of a logarithmic colour scale; smaller values have its lightest colour


def densities(estimates: Mapping[str, DensityEstimate]) -> Picture:
    """One small panel for each block, all with the same axes: the density on a logarithmic scale, with its 95 % band.

    The eigenvalue axis is linear, or symmetric logarithmic if the narrowest density would be invisible. With more than
    24 blocks, those with the largest mean square eigenvalue, in their order.
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
    bottom, top = _density_limits(drawn)
    left, right, threshold = _eigenvalue_limits(drawn, bottom)
    for index, (name, estimate) in enumerate(shown.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        style_axes(axes)
        _eigenvalue_axis(axes, left, right, threshold, most=5)
        _density_axis(axes, bottom, top)
        axes.set_title(shortened(name, 30), fontsize=8.5, color=INK, loc="left", pad=3)
        if _is_zero(estimate):
            axes.axvline(0.0, color=MUTED, linewidth=1.6)
            box = {"facecolor": PAPER, "edgecolor": "none", "pad": 2.0}
            place = axes.get_xaxis_transform()
            axes.text(0.0, 0.5, "no curvature", transform=place, fontsize=8, color=MUTED, ha="center", bbox=box)
        else:
            _draw(axes, estimate, bottom)
        axes.tick_params(labelbottom=index + columns >= len(shown), labelleft=index % columns == 0)
    _margins(figure, height, left=0.75, top=0.62, bottom=0.62)
    figure.supxlabel("eigenvalue", color=MUTED, fontsize=9, y=0.12 / height)
    figure.supylabel("density (mass 1 in each panel)" if rows > 1 else "density", color=MUTED, fontsize=9, x=0.008)
    _legend(figure, [estimate for estimate in shown.values() if estimate.probes > 1], height, 0.14)
    if len(shown) < len(estimates):
        note = f"the {len(shown)} of {len(estimates)} blocks with the largest mean square eigenvalue"
        figure.text(0.99, 1.0 - 0.14 / height, note, fontsize=8.5, color=MUTED, ha="right", va="center")
    return figure


def full_density(
    density: DensityEstimate, eigenvalues: Floats, error_bounds: Floats, ends: Sequence[str] = (), title: str = ""
) -> Picture:
    """The density of one operator, with single eigenvalues marked above it.

    Args:
        eigenvalues, error_bounds: (k,) certified ones, from a solver that reorthogonalises; never the density's nodes,
            which contain ghost copies.
        ends: "top" or "bottom" for each, for its colour; by default by their sign.
        title: above the figure.
    """
    values, bounds = np.asarray(eigenvalues, dtype=np.float64), np.asarray(error_bounds, dtype=np.float64)
    ends = ends or ["top" if value >= 0 else "bottom" for value in values]
    height = 3.6
    figure = Picture(figsize=(WIDTH, height), facecolor=PAPER)
    axes = figure.add_subplot(1, 1, 1)
    style_axes(axes)
    drawn = [] if _is_zero(density) else [density]
    bottom, top = _density_limits(drawn)
    known = values[np.isfinite(values)]
    left, right, threshold = _eigenvalue_limits(drawn, bottom, known)
    _eigenvalue_axis(axes, left, right, threshold, most=11)
    _density_axis(axes, bottom, top * 6.0)
    if drawn:
        _draw(axes, density, bottom)
    place = axes.get_xaxis_transform()
    for value, bound, end in zip(values, bounds, ends, strict=True):
        if not math.isfinite(value):
            continue
        colour = BOTTOM if end == "bottom" else TOP
        axes.plot([value, value], [0.0, 0.93], transform=place, color=colour, linewidth=0.8, alpha=0.55, zorder=1)
        axes.errorbar(
            value, 0.93, xerr=bound if math.isfinite(bound) else None, transform=place, color=colour,
            fmt="s" if end == "bottom" else "o", markersize=4.5, elinewidth=1.3, capsize=2.5, zorder=4,
        )  # fmt: skip
    axes.set_xlabel("eigenvalue", color=MUTED, fontsize=9)
    axes.set_ylabel("density", color=MUTED, fontsize=9)
    if title:
        x, y = 0.1 / WIDTH, 1.0 - 0.16 / height
        figure.text(x, y, shortened(title, 90), fontsize=9.5, color=INK, va="center", fontweight="bold")
    _margins(figure, height, left=0.8, top=0.68 if title else 0.4, bottom=0.55)
    marks = [
        Line2D([], [], marker=shape, color=colour, linestyle="", markersize=5, label=f"{words}, with error bound")
        for end, shape, colour, words in (
            ("top", "o", TOP, "largest eigenvalues"),
            ("bottom", "s", BOTTOM, "smallest eigenvalues"),
        )
        if end in ends
    ]
    _legend(figure, [density] if drawn and density.probes > 1 else [], height, 0.42 if title else 0.14, marks)
    return figure


def heat_map(
    names: Sequence[str],
    matrix: Floats,
    title: str,
    label: str,
    *,
    limits: tuple[float, float] | None = None,
) -> Picture:
    """A (B, B) table of pairs of blocks, in model order; darker is more, unknown (NaN) cells are crossed.

    Colours are linear between ``limits`` where they are given (0 and 1 for distances); otherwise logarithmic where the
    values span more than a factor of thirty. Up to twelve blocks, each cell has its number.

    Args:
        names: of the B blocks. title: above the table. label: what the colours measure.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    count = len(names)
    side = max(2.4, min(6.3, 0.42 + 0.27 * count if count > MOST_NUMBERS else 0.46 * count))
    longest = max((len(shortened(name, 30)) for name in names), default=0)
    margin = 0.3 + 0.06 * min(longest, 30)
    width, height = side + margin + 1.25, side + 0.75 * margin + 0.75
    figure = Picture(figsize=(width, height), facecolor=PAPER)
    axes = figure.add_axes((margin / width, 0.75 * margin / height + 0.1 / height, side / width, side / height))
    scale, least, end = _colours(matrix, limits)
    palette = _shades()
    edges = np.arange(count + 1) - 0.5
    filled = np.ma.masked_invalid(np.maximum(matrix, least))
    mesh = axes.pcolormesh(edges, edges, filled, cmap=palette, norm=scale, rasterized=count > MOST_NAMES)
    rows, unknown = np.nonzero(~np.isfinite(matrix))
    axes.plot(unknown, rows, linestyle="", marker="x", color=MUTED, markersize=max(2.0, min(6.0, 90.0 / max(count, 1))))
    axes.set_aspect("equal")
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    name_cells(axes, names)
    if count <= MOST_NUMBERS:
        _number_cells(axes, np.ma.filled(scale(filled), 0.0), matrix)
    for spine in axes.spines.values():
        spine.set_color(RULE)
    bar = figure.add_axes(((margin + side + 0.14) / width, (0.75 * margin + 0.1) / height, 0.14 / width, side / height))
    colours = figure.colorbar(mesh, cax=bar, extend=end)
    colours.set_label(label, color=MUTED, fontsize=9)
    colours.outline.set_edgecolor(RULE)
    bar.tick_params(colors=MUTED, labelsize=8, length=2)
    if isinstance(scale, LogNorm):
        powers = [
            10.0**k for k in range(math.ceil(math.log10(least)), math.floor(math.log10(float(scale.vmax or 1.0))) + 1)
        ]
        colours.set_ticks(powers, labels=[tick_label(power) for power in powers])
        colours.minorticks_off()
    axes.set_title(title, fontsize=9.5, color=INK, loc="left", fontweight="bold", pad=8)
    return figure


# -- densities ---------------------------------------------------------------------------------------------------------


def _draw(axes: Axes, density: DensityEstimate, floor: float) -> None:
    """The curve and its band."""
    below = 0.1 * floor  # below the axis, so that no line lies along it between outliers
    if density.probes > 1:
        low, high = np.maximum(density.low, below), np.maximum(density.high, below)
        axes.fill_between(density.grid, low, high, color=TOP, alpha=0.28, linewidth=0, zorder=2)
    axes.plot(density.grid, np.maximum(density.value, below), color=TOP, linewidth=1.1, zorder=3)


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
    finest = min((density.bandwidth for density in drawn), default=size)
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
    figure: Picture, banded: Sequence[DensityEstimate], height: float, down: float, marks: Sequence[Line2D] = ()
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


def _shades() -> Colormap:
    """The colour of the largest eigenvalues, from nearly transparent to full: one hue, on light and on dark pages."""
    red, green, blue, _ = to_rgba(TOP)
    return ListedColormap([(red, green, blue, round(alpha, 3)) for alpha in np.linspace(0.04, 1.0, 48)])


def _colours(matrix: Floats, limits: tuple[float, float] | None) -> tuple[Normalize, float, str]:
    """The scale, its lower end, and whether that stands for smaller values too ("min" or "neither")."""
    if limits is not None:
        return Normalize(*limits), limits[0], "neither"
    known = matrix[np.isfinite(matrix)]
    positive = known[known > 0.0]
    high = float(known.max(initial=0.0))
    if not len(positive) or np.any(known < 0.0):
        least = float(known.min(initial=0.0))
        return Normalize(least, high if high > 0.0 else 1.0), least, "neither"
    low = float(positive.min())
    if high / low < WIDE:
        return Normalize(0.0, high), 0.0, "neither"
    floor = max(low, high * 10.0**-COLOUR_DECADES)
    return LogNorm(floor, high), floor, "min" if float(known.min()) < floor else "neither"


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


def _number_cells(axes: Axes, shades: Floats, matrix: Floats) -> None:
    for (row, column), value in np.ndenumerate(matrix):
        if math.isfinite(value):
            colour = PAPER if shades[row, column] > 0.55 else INK
            axes.text(column, row, number(value, 2), ha="center", va="center", fontsize=7, color=colour)

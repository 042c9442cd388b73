"""The figures of ``analysis.plot`` on estimates: how many directions bend, densities, and which layers bend together.

As in :mod:`layerhess.show.drawings`, nothing is told by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter

from layerhess.linalg.estimates import Floats
from layerhess.linalg.stochastic.counts import band_of_counts, counts_above
from layerhess.results.spectrum import FULL_NAME, AnalysisRecord, Spectrum
from layerhess.show import density_figures
from layerhess.show.drawings import line, shades
from layerhess.show.figures import shortened, tick_label
from layerhess.show.numbers import number, share_with_error
from layerhess.show.page.coefficients import coefficients
from layerhess.show.style import ALARM, BLUE, INK, MUTED, ORANGE, PAPER, QUIET, SKY, VERMILION, Picture
from layerhess.show.summary import operator_names, operator_of, some

WIDTH = 9.0  # inches
LOUD = 5  # blocks with a line of their own look; the others are thin and grey
MOST_NUMBERS = 12  # blocks up to which each cell of a table has its number
UNSURE = 0.25  # of a coupling: with a larger standard error its cell is small
LOOKS: tuple[tuple[str, Any], ...] = (
    (BLUE, "-"), (VERMILION, (0, (7, 3))), (ORANGE, "-."), (SKY, (0, (1, 1.2))), (MUTED, (0, (2.5, 2.5))),
)  # fmt: skip


def counts(analysis: AnalysisRecord) -> Picture:
    """How many eigenvalues lie above lambda: a line for each block, the full model bold with its 95 % band.

    From the quadratures' nodes and weights, drawn from twice the bandwidth on, where a density tells nodes apart. The
    blocks with most of ||A||_F^2 have looks of their own, the others are thin and grey.
    """
    drawn = {s.name: s for s in analysis.spectra() if s.density is not None and s.density.finished}
    blocks = [s for name, s in drawn.items() if name != FULL_NAME]
    size = {s.name: s.numel * s.density.second for s in blocks if s.density is not None}
    loud = sorted((name for name in size if size[name] > 0.0), key=lambda name: -size[name])[:LOUD]
    figure = Picture(figsize=(WIDTH, 4.6), facecolor=PAPER)
    axes = figure.add_subplot(1, 1, 1)
    density_figures.style_axes(axes)
    axes.set_xscale("log")
    axes.set_yscale("log")
    handles: list[Line2D | Patch] = []
    ends: list[float] = []
    for s in blocks:
        colour, dashes = LOOKS[loud.index(s.name)] if s.name in loud else (QUIET, "-")
        width = 1.7 if s.name in loud else 0.9
        ends += _draw_counts(
            axes, s, color=colour, linestyle=dashes, linewidth=width, zorder=3 if s.name in loud else 2
        )
    handles += [line(*LOOKS[i], 1.7, shortened(name, 34)) for i, name in enumerate(loud)]
    if len(blocks) > len(loud):
        handles.append(line(QUIET, "-", 0.9, f"{len(blocks) - len(loud)} other blocks"))
    full = drawn.get(FULL_NAME)
    if full is not None:
        ends += _draw_counts(axes, full, color=INK, linestyle="-", linewidth=2.6, zorder=5)
        handles.insert(0, line(INK, "-", 2.6, "full model"))
        if _band(axes, full):
            handles.insert(1, Patch(facecolor=INK, alpha=0.15, label="its 95 % band"))
    if ends:
        axes.set_xlim(min(ends), 1.3 * max(ends))
    else:
        axes.text(0.5, 0.5, "no positive curvature", transform=axes.transAxes, ha="center", color=MUTED, fontsize=10)
    axes.set_ylim(bottom=0.7)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda mark, _: tick_label(mark)))
    names = operator_names(operator_of(analysis))
    axes.set_xlabel(f"eigenvalue λ of {names.block}, or of the full {names.full}", color=MUTED, fontsize=9)
    axes.set_ylabel("number of eigenvalues above λ", color=MUTED, fontsize=9)
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8.5, labelcolor=INK,
        borderaxespad=0.0, handlelength=3.2,
    )  # fmt: skip
    _warn(figure, analysis)
    figure.subplots_adjust(left=0.08, right=0.7, top=0.96, bottom=0.17)
    return figure


def densities(analysis: AnalysisRecord) -> Picture:
    """A panel for the full model and for each block: the density on a logarithmic scale, with its 95 % band."""
    found = {}
    for s in sorted(analysis.spectra(), key=lambda s: s.name != FULL_NAME):
        if s.density is not None and s.density.finished:
            found["full model" if s.name == FULL_NAME else s.name] = s.density
    figure = density_figures.densities(found)
    _warn(figure, analysis)
    return figure


def coupling(analysis: AnalysisRecord) -> Picture:
    """The lower triangle of coefficients ||A_bc||_F / sqrt(||A_bb||_F ||A_cc||_F); darker is more.

    A small cell has a standard error above a quarter of its value, a crossed one is not known.
    """
    found = analysis.coupling
    assert found is not None
    matrix = coefficients(found)
    with np.errstate(divide="ignore", invalid="ignore"):
        unsure = found.standard_error / found.value > UNSURE
    names, symbol = found.blocks, operator_names(operator_of(analysis))
    lower = np.tril(np.ones_like(matrix, dtype=bool))
    figure, axes = _triangle(names, np.where(lower, matrix, np.nan), lower & unsure)
    total = share_with_error(found.off_diagonal_share, found.share_error)
    title = f"{total} of ‖{symbol.full}‖² lies between blocks"
    if not np.isfinite(found.value).all():
        title += "   (INCOMPLETE: crossed pairs were not measured)"
    axes.set_title(title, fontsize=9.5, color=INK, loc="left", fontweight="bold", pad=8)
    return figure


def _points(spectrum: Spectrum) -> Floats:
    """Where the count changes, from twice the bandwidth on; empty where nothing is that large."""
    density = spectrum.density
    assert density is not None
    nodes = np.unique(density.nodes[density.weights > 0.0])
    start = 2.0 * density.resolution
    beyond = nodes[nodes > start]
    return np.concatenate([[start], beyond]) if len(beyond) and start > 0.0 else np.empty(0)


def _draw_counts(axes: Axes, spectrum: Spectrum, **look: Any) -> list[float]:
    """A falling staircase; both ends of its eigenvalue axis."""
    density, points = spectrum.density, _points(spectrum)
    if density is None or not len(points):
        return []
    number_of = counts_above(density, spectrum.numel, points)[0].mean(axis=0)
    number_of[-1] = max(number_of[-1], 1e-3)  # zero from the last node on: the line goes down there
    axes.step(points, number_of, where="post", **look)
    return [float(points[0]), float(points[-1])]


def _band(axes: Axes, spectrum: Spectrum) -> bool:
    density, points = spectrum.density, _points(spectrum)
    if density is None or density.probes < 2 or not len(points):
        return False
    low, high = band_of_counts(density, spectrum.numel, points)
    axes.fill_between(points, np.maximum(low, 1e-3), high, step="post", color=INK, alpha=0.15, linewidth=0, zorder=4)
    return True


def _warn(figure: Picture, analysis: AnalysisRecord) -> None:
    """Name the densities that are not drawn, since they were stopped early."""
    late = [s for s in analysis.spectra() if s.density is not None and not s.density.finished]
    if late:
        names = some([shortened("full model" if s.name == FULL_NAME else s.name, 24) for s in late], 4)
        said = f"STOPPED EARLY, not drawn: {names}"
        figure.text(0.01, 0.01, said, fontsize=8.5, color=ALARM, va="bottom", fontweight="bold")


def _triangle(names: Sequence[str], matrix: Floats, unsure: np.ndarray) -> tuple[Picture, Axes]:
    count = len(names)
    side = max(2.6, min(6.6, 0.5 * count if count <= MOST_NUMBERS else 0.27 * count + 0.6))
    longest = max(len(shortened(name, 30)) for name in names)
    margin = 0.35 + 0.068 * min(longest, 30)
    width, height = max(side + margin + 1.35, 6.2), side + 0.75 * margin + 0.6
    figure = Picture(figsize=(width, height), facecolor=PAPER)
    axes = figure.add_axes((margin / width, (0.75 * margin + 0.1) / height, side / width, side / height))
    axes.set_facecolor("none")
    palette, scale = shades(), Normalize(0.0, max(1.0, float(np.nanmax(matrix, initial=0.0))))
    for b in range(count):
        for c in range(b + 1):
            value = float(matrix[b, c])
            known = math.isfinite(value)
            half = 0.28 if unsure[b, c] else 0.47
            colour = palette(scale(value)) if known else "none"
            axes.add_patch(Rectangle((c - half, b - half), 2 * half, 2 * half, linewidth=0.0, facecolor=colour))
            if not known:
                axes.plot(c, b, marker="x", color=MUTED, markersize=max(2.0, min(6.0, 90.0 / count)))
            elif count <= MOST_NUMBERS:
                ink = PAPER if scale(value) > 0.45 else INK
                axes.text(c, b, number(value, 2), ha="center", va="center", fontsize=7, color=ink)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    density_figures.name_cells(axes, names)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.add_axes((1.0 - 1.75 / width, 1.0 - 1.05 / height, 1.6 / width, 0.12 / height))
    steps = np.linspace(0.0, scale.vmax or 1.0, 60)
    bar.pcolormesh(np.linspace(0.0, scale.vmax or 1.0, 61), [0, 1], steps[None], cmap=palette, norm=scale)
    bar.set_yticks([])
    bar.tick_params(colors=MUTED, labelsize=8, length=2)
    label = "coupling coefficient" + (f"\nsmall: ± more than {100 * UNSURE:.0f} %" if np.any(unsure) else "")
    bar.set_title(label, fontsize=8, color=MUTED, loc="right", pad=3)
    for spine in bar.spines.values():
        spine.set_visible(False)
    return figure, axes

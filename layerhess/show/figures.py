"""The overview of an analysis, every block's eigenvalues with their bounds, and what all figures share.

Figures are plain ``Figure`` objects; nothing touches pyplot's global state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from layerhess.linalg.described import plain
from layerhess.results.spectrum import AnalysisRecord, Spectrum
from layerhess.show.style import BOTTOM, INK, MUTED, PAPER, RULE, TOP, WRONG, Picture
from layerhess.show.summary import operator_names, operator_of

WIDTH = 9.0  # inches
MOST_ROWS = 300
DECADES = 5.0  # of a symmetric logarithmic axis; smaller values are drawn near zero
FEW_VECTORS = 5  # up to here each eigenvector's mass is a bar chart; with more, a heat map


def overview(analysis: AnalysisRecord) -> Picture:
    """Each block's eigenvalues with their error bars, both ends; the full model in the first row, its ends as lines.

    Hollow red marks have not converged. With more than 300 blocks, those with the largest absolute eigenvalues.
    """
    blocks, title = shown_blocks(analysis)
    rows = [*([analysis.full] if analysis.full is not None else []), *blocks]
    figure, axes = canvas(len(rows), "eigenvalue")
    names = operator_names(operator_of(analysis))
    labels = [f"full model ({names.full})" if s is analysis.full else s.name for s in rows]
    for row, spectrum in enumerate(rows):
        _draw_spectrum(axes, row, spectrum)
    if analysis.full is not None:
        axes.axhspan(-0.5, 0.5, color=RULE, alpha=0.45, zorder=0, linewidth=0)
        for pair, colour in ((analysis.full.top, TOP), (analysis.full.bottom, BOTTOM)):
            if pair is not None:
                axes.axvline(pair[0], color=colour, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    name_rows(axes, labels, bold=analysis.full is not None)
    scale_axis(axes, rows)
    axes.set_xlabel(
        f"eigenvalue of {names.block}, each block's own {names.words}"
        + (f"; dashed: the ends of the full {names.full}" if analysis.full is not None and analysis.full.top else ""),
        color=MUTED,
        fontsize=9,
    )
    _legend(axes, rows)
    if title:
        axes.set_title(title, fontsize=9, color=MUTED, loc="left", pad=26)
    figure.tight_layout()
    return figure


def shown_blocks(analysis: AnalysisRecord) -> tuple[list[Spectrum], str]:
    """The blocks that have room in a figure, and a title where these are not all."""
    blocks = list(analysis.blocks.values())
    if len(blocks) <= MOST_ROWS:
        return blocks, ""
    size = {s.name: float(np.max(np.abs(s.eigenvalues), initial=0.0)) for s in blocks}
    kept = {s.name for s in sorted(blocks, key=lambda s: -size[s.name])[:MOST_ROWS]}
    title = f"the {MOST_ROWS} of {len(blocks)} blocks with the largest absolute eigenvalues"
    return [s for s in blocks if s.name in kept], title


def canvas(rows: int, kind: str, panels: int = 1) -> tuple[Picture, Axes]:
    """A figure as high as its rows need, and the first of its panels."""
    height = max(2.2, 1.15 + rows * _row_height(rows))
    figure = Picture(figsize=(WIDTH, height), facecolor=PAPER)
    axes = figure.add_subplot(1, panels, 1)
    style_axes(axes)
    return figure, axes


def _row_height(rows: int) -> float:
    return 0.27 if rows <= 45 else 0.19


def style_axes(axes: Axes) -> None:
    """Rows on a grid of values."""
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(MUTED)
    axes.tick_params(axis="both", colors=MUTED, labelsize=9, length=0)
    axes.tick_params(axis="x", length=3)
    axes.grid(axis="x", color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)


def name_rows(axes: Axes, labels: Sequence[str], *, bold: bool = False) -> None:
    """Labels at the left, from the top down."""
    size = 9.0 if len(labels) <= 45 else 7.0
    axes.set_yticks(range(len(labels)), [shortened(label) for label in labels], fontsize=size, color=INK)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    if bold and labels:
        axes.get_yticklabels()[0].set_fontweight("bold")


def shortened(label: str, most: int = 44) -> str:
    """A long name without its middle, with the characters escaped that matplotlib takes for mathematics."""
    label = plain(label)
    short = label if len(label) <= most else f"{label[: most // 3]}…{label[-(2 * most // 3) :]}"
    return short.replace("$", r"\$")


def _draw_spectrum(axes: Axes, row: int, spectrum: Spectrum) -> None:
    if not len(spectrum.eigenvalues):
        word = spectrum.status.split(":")[0]
        axes.text(0.5, row, word, transform=axes.get_yaxis_transform(), color=WRONG, fontsize=8, va="center")
        return
    if spectrum.status.startswith("zero"):
        axes.errorbar(
            0.0, row, xerr=float(np.max(spectrum.error_bounds)), fmt="D", markersize=5.0, color=MUTED, zorder=3
        )
        return
    for index, value in enumerate(spectrum.eigenvalues):
        bottom = spectrum.end[index] == "bottom"
        done = bool(spectrum.converged[index])
        colour = (BOTTOM if bottom else TOP) if done else WRONG
        extreme = index == (len(spectrum.eigenvalues) - 1 if bottom else 0)
        bound = float(spectrum.error_bounds[index])
        axes.errorbar(
            value,
            row,
            xerr=bound if math.isfinite(bound) else None,
            fmt="s" if bottom else "o",
            markersize=(6.0 if extreme else 3.5) if len(spectrum.eigenvalues) < 30 else 3.0,
            color=colour,
            markerfacecolor=colour if done else PAPER,
            alpha=1.0 if extreme else 0.55,
            elinewidth=1.4,
            capsize=3.0 if extreme else 0.0,
            zorder=3,
        )


def scale_axis(axes: Axes, rows: Iterable[Spectrum]) -> None:
    """Logarithmic if everything is positive, bounds included; otherwise symmetric logarithmic, with few ticks."""
    values = np.concatenate([s.eigenvalues for s in rows] or [np.empty(0)])
    bounds = np.concatenate([s.error_bounds for s in rows] or [np.empty(0)])
    known = np.isfinite(values)
    values, bounds = values[known], np.nan_to_num(bounds[known], posinf=0.0)
    if not len(values) or not np.any(values):
        axes.set_xlim(-1.0, 1.0)
        return
    sizes = np.abs(values[values != 0])
    high = float(sizes.max())
    if np.all(values - bounds > 0):
        axes.set_xscale("log")
        low, high = float((values - bounds).min()), float((values + bounds).max())
        if high / low < 30:
            low, high = low / 3, high * 3
        _ticks(axes, [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)])
        axes.set_xlim(low / 1.5, high * 1.5)
        return
    clear = np.abs(values) > bounds
    least = float(np.abs(values[clear]).min()) if np.any(clear) else high
    threshold = 10.0 ** math.floor(math.log10(max(least, high * 10**-DECADES)))
    axes.set_xscale("symlog", linthresh=threshold, linscale=0.6)
    low_end, high_end = float((values - bounds).min()), float((values + bounds).max())
    powers = [10.0**k for k in range(round(math.log10(threshold)), math.floor(math.log10(high * 1.01)) + 1)]
    step = max(1, math.ceil(len(powers) / 5))
    marks = powers[::-1][::step][::-1]
    _ticks(axes, [-m for m in reversed(marks) if -m >= low_end * 1.5] + [0.0] + [m for m in marks if m <= high_end * 2])
    left = low_end * 1.6 if low_end < 0 else -threshold * 0.4
    right = high_end * 1.6 if high_end > 0 else threshold * 0.4
    axes.set_xlim(min(left, -threshold * 0.4), max(right, threshold * 0.4))


def _ticks(axes: Axes, marks: list[float]) -> None:
    if len(marks) > 11:
        marks = marks[:: math.ceil(len(marks) / 11)]
    axes.set_xticks(marks, [tick_label(mark) for mark in marks])
    axes.minorticks_off()


def tick_label(mark: float) -> str:
    """The number at a tick, short, with a proper minus sign."""
    text = f"{mark:.0e}".replace("e-0", "e-").replace("e+0", "e") if 0 < abs(mark) < 1e-3 or abs(mark) >= 1e4 else ""
    return (text or f"{mark:g}").replace("-", "−")


def _legend(axes: Axes, rows: Iterable[Spectrum]) -> None:
    def mark(shape: str, colour: str, label: str, face: str | None = None) -> Line2D:
        return Line2D([], [], marker=shape, color=colour, markerfacecolor=face or colour, linestyle="", label=label)

    spectra = list(rows)
    handles = []
    if any("top" in s.end for s in spectra):
        handles.append(mark("o", TOP, "largest, with its error bound"))
    if any("bottom" in s.end for s in spectra):
        handles.append(mark("s", BOTTOM, "smallest, with its error bound"))
    if any(s.status.startswith("zero") for s in spectra):
        handles.append(mark("D", MUTED, "zero"))
    if not all(np.all(s.converged) for s in spectra):
        handles.append(mark("o", WRONG, "not converged", PAPER))
    if handles:
        axes.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=4,
            frameon=False,
            fontsize=9,
            labelcolor=INK,
            borderaxespad=0.3,
            handletextpad=0.3,
        )

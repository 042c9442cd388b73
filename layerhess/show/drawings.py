"""The figures of ``analysis.plot`` on eigenvalues: all of them by block, and the mass of the full model's eigenvectors.

For screens and for prints in grey: whatever has a colour differs in its mark, its line or its hatch too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from layerhess.linalg.estimates import Floats
from layerhess.results.spectrum import AnalysisRecord, Spectrum
from layerhess.show.figures import canvas, name_rows, scale_axis, shown_blocks, style_axes
from layerhess.show.numbers import number, share
from layerhess.show.style import ALARM, BLUE, INK, MUTED, PAPER, RULE, VERMILION, Picture
from layerhess.show.summary import operator_names, operator_of

MOST_BLOCKS = 40  # with more, those that hold less than LEAST of every eigenvector are left out
LEAST = 0.005
FEW_VECTORS = 4  # up to here each eigenvector's mass is a bar chart; with more, a table


def eigenvalues(analysis: AnalysisRecord) -> Picture:
    """A row for each block, the full model first: filled the outermost eigenvalue, open the next ones.

    Circles at the top, squares at the bottom; a cross, a dashed bar and capitals for what has not converged.
    """
    blocks, title = shown_blocks(analysis)
    rows = [*([analysis.full] if analysis.full is not None else []), *blocks]
    names = operator_names(operator_of(analysis))
    figure, axes = canvas(len(rows), "eigenvalue")
    scale_axis(axes, rows)
    left, right = _limits(axes, rows)
    for row, spectrum in enumerate(rows):
        _draw_row(axes, row, spectrum, (left, right))
    if analysis.full is not None:
        axes.axhspan(-0.5, 0.5, color=RULE, alpha=0.45, zorder=0, linewidth=0)
        if analysis.full.top is not None:
            axes.axvline(analysis.full.top[0], color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    labels = [f"full model ({names.full})" if s is analysis.full else s.name for s in rows]
    name_rows(axes, labels, bold=analysis.full is not None)
    axes.set_xlim(left, right)
    axes.set_xlabel(f"eigenvalue of {names.block}, each block's own {names.words}", color=MUTED, fontsize=9)
    _legend(axes, _marks(rows))
    if title:
        axes.set_title(title, fontsize=9, color=MUTED, loc="left", pad=26)
    figure.tight_layout()
    return figure


def mass(analysis: AnalysisRecord) -> Picture:
    """Each full-model eigenvector's squared norm by block: bars for up to four vectors, else a table of shares.

    Plain bars for eigenvalues at the top, hatched ones at the bottom.
    """
    columns = analysis.full_mass
    largest = {name: max(column.get(name, 0.0) for column in columns) for name in columns[0]}
    names = [name for name, part in largest.items() if part > 0.0]
    shown = names if len(names) <= MOST_BLOCKS else [name for name in names if largest[name] >= LEAST]
    values = np.array([[column.get(name, 0.0) for column in columns] for name in shown]).reshape(len(shown), -1)
    titles, bottom = _vectors(analysis)
    figure = _bars(shown, titles, bottom, values) if len(columns) <= FEW_VECTORS else _table(shown, titles, values)
    if hidden := len(names) - len(shown):
        note = f"{hidden} blocks with less than 0.5 % of every eigenvector are not shown"
        figure.text(0.01, 0.004, note, fontsize=8, color=MUTED)
    return figure


def _limits(axes: Axes, rows: Sequence[Spectrum]) -> tuple[float, float]:
    """Ends of the axis, as far as sampling errors reach where these are larger than the bounds."""
    left, right = axes.get_xlim()
    values = np.concatenate([s.eigenvalues for s in rows] or [np.empty(0)])
    reach = 2.0 * np.concatenate([s.sampling_errors for s in rows] or [np.empty(0)])
    low, high = values - reach, values + reach
    if axes.get_xscale() == "log":
        low = low[low > 0.0]
    low, high = low[np.isfinite(low)], high[np.isfinite(high)]
    spread = 1.2 if axes.get_xscale() == "log" else 1.0
    return min(left, float(low.min(initial=left)) / spread), max(right, float(high.max(initial=right)) * spread)


def _draw_row(axes: Axes, row: int, spectrum: Spectrum, limits: tuple[float, float]) -> None:
    if spectrum.alarm and not spectrum.solved:
        word = spectrum.alarm.split(",")[0]
        axes.text(
            1.01, row, word, transform=axes.get_yaxis_transform(), color=ALARM, fontsize=7.5, va="center",
            fontweight="bold",
        )  # fmt: skip
    if spectrum.status.startswith("zero"):
        axes.plot(0.0, row, marker="D", markersize=5.0, color=MUTED, zorder=3)
        return
    lower, upper = spectrum.interval[:, 0], spectrum.interval[:, 1]
    for index, value in enumerate(map(float, spectrum.eigenvalues)):
        bottom, done = spectrum.end[index] == "bottom", bool(spectrum.converged[index])
        outermost = index == (len(spectrum.eigenvalues) - 1 if bottom else 0)
        colour = (VERMILION if bottom else BLUE) if done else INK
        if not math.isfinite(value):
            continue
        sampled, bound = float(spectrum.sampling_errors[index]), float(spectrum.error_bounds[index])
        reach = 2.0 * sampled if math.isfinite(sampled) else bound if math.isfinite(bound) else 0.0
        low, high = (value - reach, value + reach) if done else (float(lower[index]), float(upper[index]))
        ends = [end if math.isfinite(end) else limits[i] for i, end in enumerate((low, high))]
        axes.plot(
            np.clip(ends, *limits), [row, row], color=colour, linewidth=1.3, zorder=2,
            linestyle="-" if done else (0, (2, 1.5)),
        )  # fmt: skip
        axes.plot(
            value, row, linestyle="", color=colour, zorder=4 if outermost else 3,
            marker=("s" if bottom else "o") if done else "X",
            markersize=(6.5 if outermost else 4.5) if done else 7.5,
            markerfacecolor=colour if outermost and done else PAPER, markeredgewidth=1.1,
        )  # fmt: skip


def _marks(rows: Sequence[Spectrum]) -> list[Line2D]:
    def mark(shape: str, colour: str, face: str, label: str, size: float = 6.0) -> Line2D:
        return Line2D([], [], marker=shape, color=colour, markerfacecolor=face, linestyle="", label=label,
                      markersize=size)  # fmt: skip

    ends = {end for s in rows for end in s.end}
    found: list[Line2D] = []
    sampled = any(np.isfinite(s.sampling_errors).any() for s in rows)
    if "top" in ends:
        found.append(mark("o", BLUE, BLUE, "largest"))
    if any(s.end.count("top") > 1 for s in rows):
        found.append(mark("o", BLUE, PAPER, "next ones", 4.5))
    if "bottom" in ends:
        found.append(mark("s", VERMILION, VERMILION, "smallest"))
    if any(s.status.startswith("zero") for s in rows):
        found.append(mark("D", MUTED, MUTED, "zero"))
    found.append(line(MUTED, "-", 1.3, "± 2 sampling errors" if sampled else "error bound"))
    if not all(bool(np.all(s.converged)) for s in rows):
        found.append(
            Line2D([], [], marker="X", color=INK, markerfacecolor=PAPER, linestyle=(0, (2, 1.5)), markersize=7.5,
                   label="NOT CONVERGED: as far as known")
        )  # fmt: skip
    return found


def _legend(axes: Axes, handles: Sequence[Line2D]) -> None:
    axes.legend(
        handles=list(handles), loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=6, frameon=False, fontsize=8.5,
        labelcolor=INK, borderaxespad=0.3, handletextpad=0.4, columnspacing=1.2,
    )  # fmt: skip


def line(colour: str, style: Any, width: float, label: str) -> Line2D:
    """A line of a legend."""
    return Line2D([], [], color=colour, linestyle=style, linewidth=width, label=label)


def shades() -> ListedColormap:
    """From nearly white to dark blue, ever darker: the order stays in grey."""
    light, middle, dark = (np.array(to_rgb(colour)) for colour in ("#f3f8fc", BLUE, "#00304d"))
    ramp = [light + (middle - light) * t for t in np.linspace(0.0, 1.0, 40)]
    ramp += [middle + (dark - middle) * t for t in np.linspace(0.05, 1.0, 20)]
    return ListedColormap([tuple(colour) for colour in ramp])


def _vectors(analysis: AnalysisRecord) -> tuple[list[str], list[bool]]:
    """For each eigenvector of the full model its eigenvalue, in capitals what is wrong, and whether from the bottom."""
    full, count = analysis.full, len(analysis.full_mass)
    if full is None or len(full.eigenvalues) != count:
        return [f"eigenvector {index + 1}" for index in range(count)], [False] * count
    titles = [
        f"λ = {number(float(value), 3)}".replace("-", "−") + ("" if done else "\nNOT CONVERGED")
        for value, done in zip(full.eigenvalues, full.converged, strict=True)
    ]
    return titles, [end == "bottom" for end in full.end]


def _bars(names: Sequence[str], titles: Sequence[str], bottom: Sequence[bool], values: Floats) -> Picture:
    figure, first = canvas(len(names) + 1, "mass", len(titles))
    widest = max(0.2, float(values.max(initial=0.0)))
    for column, title in enumerate(titles):
        axes = first if not column else figure.add_subplot(1, len(titles), column + 1, sharey=first)
        style_axes(axes)
        low, wrong = bottom[column], "NOT CONVERGED" in title
        colour = VERMILION if low else BLUE
        axes.barh(
            range(len(names)), values[:, column], height=0.62, zorder=2, linewidth=1.0, edgecolor=colour,
            color="none" if wrong else colour if not low else "#f6cfb4", hatch="////" if low else None,
            linestyle="--" if wrong else "-",
        )  # fmt: skip
        axes.set_xlim(0.0, 1.28 * widest)
        ticks = [t for t in (0.0, 0.25, 0.5, 0.75, 1.0) if t <= 1.1 * widest]
        axes.set_xticks(ticks, [f"{100 * t:.0f} %" for t in ticks])
        axes.set_title(title, fontsize=9.5, color=ALARM if wrong else INK, loc="left", fontweight="bold")
        for row, value in enumerate(values[:, column]):
            if value >= 0.005:
                axes.text(value + 0.02 * widest, row, share(float(value)), va="center", fontsize=7.5, color=MUTED)
        if column:
            axes.tick_params(labelleft=False)
    name_rows(first, names)
    figure.tight_layout(w_pad=1.0)
    return figure


def _table(names: Sequence[str], titles: Sequence[str], values: Floats) -> Picture:
    figure, axes = canvas(len(names) + 3, "mass")
    axes.grid(False)
    palette = shades()
    for (row, column), value in np.ndenumerate(values):
        axes.add_patch(Rectangle((column - 0.48, row - 0.44), 0.96, 0.88, facecolor=palette(float(value))))
        if value >= 0.045 and len(titles) <= 14:
            ink = PAPER if value > 0.45 else INK
            axes.text(column, row, f"{100 * value:.0f} %", ha="center", va="center", fontsize=7.5, color=ink)
    axes.set_xlim(-0.5, len(titles) - 0.5)
    name_rows(axes, names)
    words = [title.removeprefix("λ = ").replace("\n", " ") for title in titles]
    axes.set_xticks(range(len(titles)), words, rotation=40, ha="left", rotation_mode="anchor", fontsize=8)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("one column for each eigenvector of the full model, by its eigenvalue", color=MUTED, fontsize=9)
    axes.spines["bottom"].set_visible(False)
    figure.tight_layout()
    return figure

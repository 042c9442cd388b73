"""Figures of comparisons: the log ratio of every block's largest eigenvalue, with its errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy.special import stdtrit

from layerhess.linalg.estimates import CONFIDENCE
from layerhess.results.comparison import BlockComparison, ComparisonRecord
from layerhess.show.comparison.table import called
from layerhess.show.figures import shortened
from layerhess.show.style import BOTTOM, INK, MUTED, PAPER, RULE, TOP, WRONG, Picture

WIDTH = 9.0  # inches
ROW = 0.27  # inches
MOST_ROWS = 300
LEAST = 0.01  # of the axis on either side: smaller differences are nothing to look at


def log_ratios(pairs: Sequence[ComparisonRecord]) -> Picture:
    """A panel for each pair, a row for each block: log ratios with 95 % intervals (error bound included).

    Filled marks differ by more than chance; diamonds are the scale-free log ratios. With more than 300 blocks, those
    with the largest differences.
    """
    names = _shown(pairs)
    figure = Picture(figsize=(WIDTH, max(2.4, 1.3 + ROW * len(names))), facecolor=PAPER)
    first: Axes | None = None
    for place, pair in enumerate(pairs, 1):
        axes = figure.add_subplot(1, len(pairs), place, sharex=first, sharey=first)
        _style(axes)
        for row, name in enumerate(names):
            if name in pair.blocks:
                _draw(axes, row, pair.blocks[name])
        axes.axvline(0.0, color=MUTED, linewidth=1.0, zorder=1)
        label = f"log ratio of the largest eigenvalue\n{shortened(pair.second)} against {shortened(pair.first)}"
        axes.set_xlabel(label, color=MUTED, fontsize=9)
        if first is None:
            shown = [next(called(p.blocks[name]) for p in pairs if name in p.blocks) for name in names]
            axes.set_yticks(range(len(names)), [shortened(name) for name in shown], fontsize=9, color=INK)
            axes.set_ylim(len(names) - 0.4, -0.6)
            _legend(axes)
            first = axes
        else:
            axes.tick_params(labelleft=False)
    if first is not None:
        low, high = first.get_xlim()
        first.set_xlim(min(low, -LEAST), max(high, LEAST))
    figure.tight_layout()
    return figure


def _shown(pairs: Sequence[ComparisonRecord]) -> list[str]:
    names = list(dict.fromkeys(name for pair in pairs for name in pair.blocks))
    size = {
        name: max(np.nan_to_num(abs(p.blocks[name].log_ratio), nan=-1.0) for p in pairs if name in p.blocks)
        for name in names
    }
    kept = set(sorted(names, key=lambda name: -size[name])[:MOST_ROWS])
    return [name for name in names if name in kept]


def _draw(axes: Axes, row: int, block: BlockComparison) -> None:
    if math.isnan(block.log_ratio):
        colour = MUTED if block.finished else WRONG
        words = "not compared" if block.finished else "not converged"
        axes.text(
            0.99, row, words, transform=axes.get_yaxis_transform(), color=colour, fontsize=8, va="center", ha="right"
        )
        return  # fmt: skip
    if math.isfinite(block.scale_free_log_ratio):
        axes.plot(block.scale_free_log_ratio, row, "D", color=BOTTOM, markersize=3.6, markerfacecolor="none", zorder=2)
    width = half_width(block)
    axes.errorbar(
        block.log_ratio,
        row,
        xerr=width if math.isfinite(width) else None,
        fmt="o",
        markersize=5.0,
        color=TOP if block.significant else MUTED,
        markerfacecolor=TOP if block.significant else PAPER,
        elinewidth=1.4,
        capsize=2.5,
        zorder=3,
    )


def half_width(block: BlockComparison) -> float:
    """Of the 95 % interval: chance by Student's t, and the error bound beside it; NaN where chance is not known."""
    if math.isnan(block.standard_error):
        return math.nan
    return block.error_bound + float(stdtrit(block.freedom, (1.0 + CONFIDENCE) / 2.0)) * block.standard_error


def _style(axes: Axes) -> None:
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(MUTED)
    axes.tick_params(axis="both", colors=MUTED, labelsize=9, length=0)
    axes.grid(axis="x", color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)


def _legend(axes: Axes) -> None:
    def mark(shape: str, colour: str, face: str, label: str) -> Line2D:
        return Line2D([], [], marker=shape, color=colour, markerfacecolor=face, linestyle="", label=label)

    handles = [
        mark("o", TOP, TOP, "different, with 95 % interval"),
        mark("o", MUTED, PAPER, "not told apart"),
        mark("D", BOTTOM, "none", "scale-free: of λ ‖W‖²"),
    ]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False, fontsize=9,
        labelcolor=INK, borderaxespad=0.3, handletextpad=0.3,
    )  # fmt: skip

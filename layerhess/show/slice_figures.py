"""Figures of the loss along directions: the loss, and the quadratic drawn over it."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from layerhess.results.loss_slice import LossSliceRecord
from layerhess.show.figures import shortened
from layerhess.show.style import BOTTOM, INK, MUTED, PAPER, RULE, TOP, Picture

LEVELS = 12  # contours


def drawn(found: LossSliceRecord) -> Picture:
    """Lines over one direction; contours over two, solid the loss and dashed its quadratic, at the same levels."""
    figure = Picture(figsize=(6.4, 4.4 if found.loss.ndim == 1 else 5.6), facecolor=PAPER)
    axes = figure.add_subplot(1, 1, 1)
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("bottom", "left"))
        spine.set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=9)
    if found.loss.ndim == 1:
        _line(axes, found)
    else:
        _surface(axes, found)
    handles = [
        Line2D([], [], color=TOP, linewidth=2.0, label="loss"),
        Line2D([], [], color=BOTTOM, linewidth=1.6, linestyle=(0, (4, 3)), label="quadratic from gradient and Hessian"),
    ]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False, fontsize=9, labelcolor=INK
    )
    figure.tight_layout()
    return figure


def _line(axes: Axes, found: LossSliceRecord) -> None:
    axes.grid(color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.plot(found.alpha, np.where(np.isfinite(found.loss), found.loss, np.nan), color=TOP, linewidth=2.0, zorder=3)
    axes.plot(found.alpha, found.quadratic, color=BOTTOM, linewidth=1.6, linestyle=(0, (4, 3)), zorder=4)
    axes.plot([0.0], [found.value], "o", color=INK, markersize=4.0, zorder=5)
    axes.set_ylim(*_limits(found))
    axes.set_xlabel(f"alpha along {shortened(found.directions[0], 60)}", color=MUTED, fontsize=9)
    axes.set_ylabel("loss", color=MUTED, fontsize=9)


def _limits(found: LossSliceRecord) -> tuple[float, float]:
    """Of the loss; the quadratic may leave the picture, but not by its height at most."""
    known = found.loss[np.isfinite(found.loss)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (found.value, found.value)
    room = (high - low) or abs(found.value) or 1.0
    low = max(low - room, min(low, float(found.quadratic.min())))
    high = min(high + room, max(high, float(found.quadratic.max())))
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def _surface(axes: Axes, found: LossSliceRecord) -> None:
    known = found.loss[np.isfinite(found.loss)]
    if len(known) and known.max() > known.min():
        levels = np.linspace(float(known.min()), float(known.max()), LEVELS + 1)
        masked = np.ma.masked_invalid(found.loss).T  # the first direction runs to the right
        axes.contour(found.alpha, found.alpha, masked, levels=levels, colors=TOP, linewidths=1.4)
        if found.quadratic.max() > found.quadratic.min():
            axes.contour(
                found.alpha, found.alpha, found.quadratic.T, levels=levels, colors=BOTTOM, linewidths=1.1,
                linestyles="dashed",
            )  # fmt: skip
    axes.plot([0.0], [0.0], "o", color=INK, markersize=4.0)
    axes.set_aspect("equal")
    axes.set_xlabel(f"alpha along {shortened(found.directions[0])}", color=MUTED, fontsize=9)
    axes.set_ylabel(f"alpha along {shortened(found.directions[1])}", color=MUTED, fontsize=9)

"""The pictures of the atlas: spectra by depth, and where the full model's top direction lies, side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerhess.show.style import INK, MUTED, RULE, TOP, VERMILION

COLUMNS = 3
NORMS = ("BatchNorm2d", "LayerNorm")


def is_norm(module: dict[str, Any]) -> bool:
    """Whether a block is a normalisation's scale and shift."""
    return module["kind"] in NORMS


def draw(subjects: dict[str, Any], path: Path) -> None:
    """Write an SVG; a pair of panels for each subject, the same bytes for the same numbers."""
    rows = -(-len(subjects) // COLUMNS)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "atlas", "font.size": 8, "text.color": INK}):
        figure = Figure(figsize=(3.6 * COLUMNS, 3.2 * rows), layout="constrained")
        panels = figure.subplots(2 * rows, COLUMNS, height_ratios=[3, 1] * rows, squeeze=False)
        for place, found in enumerate(subjects.values()):
            row, column = divmod(place, COLUMNS)
            _spectra(panels[2 * row][column], found)
            _shares(panels[2 * row + 1][column], found)
        for axes in panels.flat:
            axes.set_visible(axes.has_data())
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    # without the empty ends of lines and the addresses that matplotlib writes
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


def _spectra(axes: Axes, found: dict[str, Any]) -> None:
    """Largest eigenvalue of every block, by depth."""
    modules = list(found["modules"].values())
    for wanted, colour, mark in ((False, TOP, "o"), (True, VERMILION, "x")):
        points = [(i, m["top"][0]) for i, m in enumerate(modules) if is_norm(m) is wanted and m["top"][0] > 0.0]
        if points:
            axes.plot(*zip(*points, strict=True), mark, color=colour, markersize=3, markeredgewidth=0.8)
    axes.axhline(found["examined"]["(full)"]["top"][0], color=MUTED, linewidth=0.8, linestyle="--")
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_title(found["title"], fontsize=8)
    axes.tick_params(labelsize=7, colors=MUTED, labelbottom=False)
    _plain(axes)


def _shares(axes: Axes, found: dict[str, Any]) -> None:
    """Share of the full model's top direction in every block."""
    shares = [module["share"][0] for module in found["modules"].values()]
    axes.bar(range(len(shares)), shares, width=1.0, color=MUTED)
    axes.set_ylim(0.0, 1.0 if max(shares) > 0.5 else 1.15 * max(shares))
    axes.tick_params(labelsize=7, colors=MUTED)
    axes.set_xlim(-1, len(shares))
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.grid(axis="y", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(RULE)


def decades(found: dict[str, Any]) -> float:
    """How many powers of ten lie between the largest and the smallest positive top eigenvalue of the blocks."""
    tops = [module["top"][0] for module in found["modules"].values() if module["top"][0] > 0.0]
    return math.log10(max(tops) / min(tops))

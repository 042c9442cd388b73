"""Comparisons as one self-contained HTML page that needs no network and no other file."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from layerhess.results.comparison import BlockComparison, ComparisonRecord
from layerhess.show.comparison import figures
from layerhess.show.comparison import table as comparison_table
from layerhess.show.numbers import number, rounded_up
from layerhess.show.page.templates import template
from layerhess.show.style import inline_svg
from layerhess.show.summary import operator_names


def as_html(pairs: Sequence[ComparisonRecord]) -> str:
    """The comparisons as one HTML document, readable in light and in dark.

    Args:
        pairs: of other analyses with the same first one; names in them may contain anything, they are escaped.
    """
    figure = figures.log_ratios(pairs)
    return template("comparison/comparison.html.j2").render(
        pairs=pairs,
        names=operator_names(pairs[0].operator),
        figure=Markup(inline_svg(figure, "Log ratio of the largest eigenvalue of each block with its errors")),
        table=comparison_table,
        row=_row,
    )


def _row(block: BlockComparison) -> dict[str, str]:
    """The texts of one row, with more columns than a terminal has."""
    cells = comparison_table.cells(block)
    angle = "-"
    if block.overlap == block.overlap:
        angle = f"{number(float(block.angles[-1]), 3)} ± {rounded_up(block.angle_bound)}"
    return {
        **cells,
        "bound": rounded_up(block.error_bound) if block.error_bound == block.error_bound else "-",
        "p": number(block.p_value, 2),
        "paired": "yes" if block.paired else "no",
        "angle": angle,
        "spaces": block.spaces,
        "divergence": f"{number(block.divergence, 2)} ± {number(block.divergence_error, 2)}"
        if block.divergence == block.divergence
        else "-",
        "status": block.status,
    }

"""The printed table of one workload: times in gradients, ratios to ours, and how wrong each answer is."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from .marks import Mark
from .peer import TOL, Values, deviation

__all__ = ["KINDS", "Row", "errors", "fastest", "print_table", "verdict"]


@dataclass(frozen=True)
class Row:
    """One contestant in one column. Times are lists of seconds, one per run."""

    column: str
    title: str
    processor: list[float]
    wall: list[float]
    worst: float
    wrong: int
    note: str
    kept: bool = False  # a peer on kept graphs: not a library

    @property
    def seconds(self) -> float:
        return statistics.median(self.processor)


def errors(values: Values, true: Values) -> tuple[float, int]:
    """Worst error and number of targets beyond the tolerance, over the targets that were answered."""
    found = [deviation(values[target], true[target]) for target in values]
    return max(found, default=0.0), sum(error > TOL for error in found)


def print_table(
    title: str, rows: list[Row], unit: float, targets: int, marks: dict[str, Mark | None], say: Callable[[str], None]
) -> None:
    """Print ours, then columns A and B, then the sentences that matter: each ratio beside its bar and goal."""
    ours = next((row for row in rows if row.column == "ours"), None)
    say(f"\n{title}: unit = one gradient over the same data, {unit * 1e3:.1f} ms of CPU time")
    heading = f"|contestant|gradients|times ours|worst error|wrong of {targets}|runs|CPU s|wall s|".split("|")
    lines = [heading]
    for row in sorted(rows, key=lambda row: ["ours", "A", "B"].index(row.column)):
        ratio = f"{row.seconds / ours.seconds:.2f}" if ours else "-"
        lines.append(
            [
                row.column,
                row.title,
                f"{row.seconds / unit:.1f}",
                ratio,
                f"{row.worst:.1e}",
                str(row.wrong),
                str(len(row.processor)),
                f"{row.seconds:.2f}",
                f"{statistics.median(row.wall):.2f}",
                row.note,
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    for line in lines:
        cells = [
            c.ljust(w) if i in (0, 1, 9) else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())
    if ours:
        for sentence in verdict(ours, rows, marks):
            say(sentence)


KINDS = {
    "A": "the fastest library with an oracle",
    "B": "the fastest library that is right by its own rule",
    "A, kept graphs": "the fastest on kept graphs with an oracle",
    "B, kept graphs": "the fastest on kept graphs that is right by its own rule",
}


def verdict(ours: Row, rows: list[Row], marks: dict[str, Mark | None]) -> list[str]:
    """One sentence for each column with a peer that is right everywhere, and one more if ours is not."""
    sentences = []
    for column, kind in KINDS.items():
        best = fastest(rows, column)
        if best is None:
            if any(_belongs(row, column) for row in rows):
                sentences.append(f"{column}: no peer is right everywhere, so nothing sets a bar.")
            continue
        ratio = best.seconds / ours.seconds
        mark = marks.get(column)
        reached = f" ({mark.verdict(ratio)})" if mark is not None else ""
        sentences.append(f"{column}: {kind}, {best.title}, takes {ratio:.2f} times as long as ours{reached}.")
    if ours.wrong:
        sentences.append(f"OURS IS WRONG on {ours.wrong} targets, worst error {ours.worst:.1e}.")
    return sentences


def fastest(rows: list[Row], column: str) -> Row | None:
    """The fastest peer of a column (a key of `KINDS`) that is right on every target."""
    right = [row for row in rows if _belongs(row, column) and not row.wrong and "never right" not in row.note]
    return min(right, key=lambda row: row.seconds, default=None)


def _belongs(row: Row, column: str) -> bool:
    return column == row.column + ", kept graphs" * row.kept

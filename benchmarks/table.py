"""The printed table of one workload: times in gradients, ratios to ours, and how wrong each answer is."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Row", "errors", "print_table"]


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

    @property
    def seconds(self) -> float:
        return statistics.median(self.processor)


def errors(values: dict[str, float], true: dict[str, float], tol: float) -> tuple[float, int]:
    """Worst relative error and number of blocks beyond `tol`, over the blocks that were answered."""
    relative = [abs(values[block] - true[block]) / abs(true[block]) for block in values]
    return max(relative), sum(error > tol for error in relative)


def print_table(title: str, rows: list[Row], unit: float, blocks: int, say: Callable[[str], None]) -> None:
    """Print ours, then columns A and B, then the two sentences that matter."""
    ours = next((row for row in rows if row.column == "ours"), None)
    say(f"\n{title}: unit = one gradient over the same data, {unit * 1e3:.1f} ms of CPU time")
    heading = f"|contestant|gradients|times ours|worst error|wrong of {blocks}|runs|CPU s|wall s|".split("|")
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
        _verdict(ours, rows, say)


def _verdict(ours: Row, rows: list[Row], say: Callable[[str], None]) -> None:
    complete = [row for row in rows if row.column == "A" and "never right" not in row.note and not row.wrong]
    if complete:
        best = min(complete, key=lambda row: row.seconds)
        ratio = best.seconds / ours.seconds
        say(f"A: the fastest peer with an oracle, {best.title}, takes {ratio:.2f} times as long as ours (at least 1).")
    right = [row for row in rows if row.column == "B" and not row.wrong]
    if right:
        best = min(right, key=lambda row: row.seconds)
        ratio = best.seconds / ours.seconds
        say(f"B: the fastest peer that is right by its own rule, {best.title}, takes {ratio:.2f} times (at least 3).")
    if ours.wrong:
        say(f"OURS IS WRONG on {ours.wrong} blocks, worst relative error {ours.worst:.1e}.")

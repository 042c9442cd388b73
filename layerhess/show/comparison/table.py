"""Comparisons as a table in the terminal, and as one in a notebook."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from html import escape

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from layerhess.results.comparison import BlockComparison, ComparisonRecord
from layerhess.results.spectrum import FULL_NAME
from layerhess.show.numbers import counted, number, rounded_up
from layerhess.show.summary import operator_names, some

WIDTH = 80
SHORT = 24  # characters of a block's name that are never folded
VERDICT = 16  # characters kept for the verdict
MOST_ROWS = 60  # blocks shown in a notebook's cell; to_frame() has all
MEANING = {
    "block": "diagonal block, or the full model",
    "first": "largest eigenvalue in the first",
    "second": "largest eigenvalue in the second",
    "log ratio": "log(second / first): 0.1 is about 10 % more",
    "s.e.": "standard error of the log ratio with respect to the data",
    "scale-free": "log ratio of lambda_max ||W||^2; * different",
    "overlap": "mean squared cosine between the spaces of the first eigenvectors",
    "verdict": "different: more than error bounds and chance, false discovery rate 5 %",
}


def as_text(pairs: Sequence[ComparisonRecord], width: int = WIDTH) -> str:
    """Comparisons as plain text, ``width`` columns wide, without colours."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, force_terminal=False, highlight=False)
    console.print(renderable(pairs))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def renderable(pairs: Sequence[ComparisonRecord]) -> RenderableType:
    """Comparisons for a rich console of any width, with colours."""
    parts: list[RenderableType] = []
    for pair in pairs:
        parts += [Text(heading(pair), style="bold"), "", Ratios(pair), ""]
        parts.append(Text(headline(pair) + ".", style="bold"))
        parts += [Text(f"  ! {sentence}", style="red") for sentence in unfinished(pair)]
        parts += [Text(f"Note: {sentence}", style="dim") for sentence in notes(pair)]
        parts.append("")
    return Group(*parts[:-1])


def heading(pair: ComparisonRecord) -> str:
    """What is compared with what."""
    names = operator_names(pair.operator)
    return f"{pair.second} against {pair.first}: largest eigenvalues of {names.block} and {names.full}"


def headline(pair: ComparisonRecord) -> str:
    """How many blocks differ, and which most."""
    tested = [block for block in pair.blocks.values() if block.p_value == block.p_value]
    if not tested:
        return "No block could be tested"
    different = sorted((b for b in tested if b.significant), key=lambda b: -abs(b.log_ratio))
    if not different:
        return f"None of {counted(len(tested), 'spectrum', 'spectra')} is told apart"
    first = different[0]
    called = "the full model" if first.name == FULL_NAME else first.name
    change = f"{100.0 * abs(_change(first)):.2g} % {'more' if first.log_ratio > 0 else 'less'}"
    return f"{len(different)} of {counted(len(tested), 'spectrum', 'spectra')} differ; most: {called}, {change}"


def _change(block: BlockComparison) -> float:
    return float(block.second / block.first - 1.0)


def unfinished(pair: ComparisonRecord) -> list[str]:
    """One sentence for each block that is not compared since it was not finished."""
    return [f"{called(b)}: {b.status}." for b in pair.blocks.values() if not b.finished and b.log_ratio != b.log_ratio]


def notes(pair: ComparisonRecord) -> list[str]:
    """What else the reader should know."""
    said = list(pair.notes)
    for name, left in ((pair.first, pair.only_first), (pair.second, pair.only_second)):
        if left:
            said.append(f"only in {name}: {some(left)}")
    apart = [b for b in pair.blocks.values() if b.scale_free_significant and not b.significant]
    if apart:
        said.append(f"of lambda_max ||W||^2 alone (scale-free) different: {some([called(b) for b in apart])}")
    alike: dict[str, list[str]] = {}
    for block in pair.blocks.values():
        if math.isnan(block.overlap):
            alike.setdefault(f"no overlap, since {block.spaces}", []).append(called(block))
        elif ", if " in block.spaces:
            alike.setdefault(f"overlap: {block.spaces}", []).append(called(block))
    return said + [f"{sentence}: {some(names)}" for sentence, names in alike.items()]


def called(block: BlockComparison) -> str:
    """The block's name, for people."""
    return "full model" if block.name == FULL_NAME else block.name


def cells(block: BlockComparison) -> dict[str, str]:
    """The texts of one row, by column."""
    error = block.standard_error
    return {
        "block": called(block),
        "first": number(block.first),
        "second": number(block.second),
        "log ratio": number(block.log_ratio, 3),
        "s.e.": rounded_up(error) if error < 1e-3 else number(error, 2),
        "scale-free": number(block.scale_free_log_ratio, 3) + (" *" if block.scale_free_significant else ""),
        "overlap": number(block.overlap, 3),
        "verdict": verdict(block),
    }


def verdict(block: BlockComparison) -> str:
    """The status in a word or two; in capitals where something is not done."""
    word = block.status.split(":")[0]
    return word if block.finished else word.upper()


class Ratios:
    """The table of log ratios, with as many of its columns as fit the console's width."""

    def __init__(self, pair: ComparisonRecord) -> None:
        self.rows = [(block, cells(block)) for block in pair.blocks.values()]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One table; columns are left out from the least telling on."""
        widths = {
            column: max([cell_len(column), *(cell_len(row[column]) for _, row in self.rows)]) for column in MEANING
        }
        widths["block"], widths["verdict"] = min(widths["block"], SHORT), min(widths["verdict"], VERDICT)
        shown = list(MEANING)
        for column in ("second", "overlap", "scale-free", "first"):
            if sum(widths[name] + 2 for name in shown) > options.max_width:
                shown.remove(column)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for column in shown:
            if column in ("block", "verdict"):
                table.add_column(column, overflow="fold", min_width=widths[column])
            else:
                table.add_column(column, justify="right", no_wrap=True)
        for block, row in self.rows:
            if block.name == FULL_NAME and len(self.rows) > 1:
                table.add_section()
            style = "bold" if block.significant else "" if block.finished else "red"
            table.add_row(*(Text(row[column]) for column in shown), style=style)
        yield table


def notebook(pairs: Sequence[ComparisonRecord]) -> str:
    """A fragment of HTML for a notebook's cell, in its colours."""
    parts = []
    cell = "padding:2px 12px 2px 0;text-align:"
    for pair in pairs:
        heads = "".join(
            f'<th style="{cell}{_side(name)}" title="{escape(meaning)}">{escape(name)}</th>'
            for name, meaning in MEANING.items()
        )
        blocks = list(pair.blocks.values())
        rows = "".join(
            f'<tr style="{"font-weight:600" if block.significant else ""}">'
            + "".join(f'<td style="{cell}{_side(name)}">{escape(text)}</td>' for name, text in cells(block).items())
            + "</tr>"
            for block in blocks[:MOST_ROWS]
        )
        hidden = len(blocks) - MOST_ROWS
        said = [headline(pair) + ".", *unfinished(pair), *notes(pair)]
        said += [f"{hidden} more blocks: to_frame() shows all"] if hidden > 0 else []
        parts.append(
            f"<div><b>{escape(heading(pair))}</b></div>"
            f'<table style="border-collapse:collapse"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
            + "".join(f"<div>{escape(sentence)}</div>" for sentence in said)
        )
    return "".join(parts)


def _side(column: str) -> str:
    return "left" if column in ("block", "verdict") else "right"

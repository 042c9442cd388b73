"""An analysis as a table in the terminal."""

from __future__ import annotations

import io
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from layerhess.linalg.described import plain
from layerhess.results.spectrum import AnalysisRecord, Spectrum
from layerhess.show import estimates, summary
from layerhess.show.numbers import count, counted, number, with_reach

WIDTH = 100
SHORT = 24  # characters of a block's name that are never folded
_STATUS = 12  # characters of the status kept on one line


def as_text(analysis: AnalysisRecord, width: int = WIDTH) -> str:
    """The analysis as plain text, ``width`` columns wide, without colours.

    >>> from layerhess.results.record import Counts
    >>> from layerhess.results.spectrum import AnalysisRecord
    >>> empty = AnalysisRecord({}, None, [], (), (), 0.5, 4.0, 4, 1, 0.1, {}, (), (), Counts(0, 0, 0, 0, 0, {}), {}, {})
    >>> print(as_text(empty).splitlines()[0])
    model: 0 parameters, 0 blocks, operator: hessian
    """
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, force_terminal=False, highlight=False)
    console.print(renderable(analysis))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def renderable(analysis: AnalysisRecord) -> RenderableType:
    """The analysis for a rich console of any width, with colours."""
    parts: list[RenderableType] = [_heading(analysis), ""]
    if analysis.spectra():
        parts += [Eigenvalues(analysis), ""]
    columns, lines = estimates.lines(analysis)
    if columns:
        parts += [Estimates(estimates.brief(columns), lines), ""]
    verdict = summary.verdict(analysis)
    parts.append(Text(verdict.headline + ".", style="bold green" if verdict.good else "bold red"))
    parts += [Text(f"  ! {detail}", style="red") for detail in verdict.details]
    parts += [Text(line) for line in _facts(analysis)]
    parts += [Text(f"Note: {note}", style="dim") for note in analysis.notes]
    return Group(*parts)


def _heading(analysis: AnalysisRecord) -> Text:
    operator = summary.operator_of(analysis)
    first = (
        f"{analysis.model or 'model'}: {counted(analysis.total_numel, 'parameter')}, "
        f"{counted(len(analysis.blocks), 'block')}, "
        f"operator: {operator}{summary.condition(analysis)}"
    )
    second = f"loss {number(analysis.loss, 6)} over {summary.examples(analysis)}"
    if analysis.gradient_norm == analysis.gradient_norm:
        second += f"; norm of the gradient {number(analysis.gradient_norm)}"
    return Text.assemble((first, "bold"), "\n", second)


@dataclass(frozen=True)
class Eigenvalues:
    """The table of both ends of each spectrum; what a console is too narrow for comes below, is left out or folded."""

    analysis: AnalysisRecord

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One table."""
        spectra = self.analysis.spectra()
        names = summary.operator_names(summary.operator_of(self.analysis))
        called = [f"full model ({names.full})" if s is self.analysis.full else plain(s.name) for s in spectra]
        columns = {f"block ({names.block})": called, "numel": [count(s.numel) for s in spectra]}
        if any(s.top is not None for s in spectra):
            columns["lambda_max"] = [_end(s.top, s.highest) for s in spectra]
        if any(s.bottom is not None for s in spectra):
            columns["lambda_min"] = [_end(s.bottom, s.deepest) for s in spectra]
        widths, narrow = _widths(columns, options.max_width)
        if narrow:  # what is not excluded goes below its number
            columns = {heading: [text.replace(", ", "\n") if heading.startswith("lambda") else text for text in texts]
                       for heading, texts in columns.items()}  # fmt: skip
            widths, narrow = _widths(columns, options.max_width)
        if narrow:
            del columns["numel"]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for heading in columns:
            if heading.startswith("block"):
                table.add_column(heading, overflow="fold", no_wrap=widths[0] <= SHORT)
            else:
                table.add_column(heading, justify="right", overflow="fold", no_wrap=not narrow)
        table.add_column("status", overflow="fold")
        for spectrum, *cells in zip(spectra, *columns.values(), strict=True):
            last = spectrum is self.analysis.full
            if last and self.analysis.blocks:
                table.add_section()
            status = Text(short_status(spectrum), style="" if spectrum.solved else "bold red")
            table.add_row(*map(Text, cells), status, style="bold" if last else "")
        yield table


@dataclass(frozen=True)
class Estimates:
    """The table of estimates with as many columns, from the first on, as fit the console's width."""

    columns: list[estimates.Column]
    lines: list[estimates.Line]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One table, with at least the first column."""
        longest = max(cell_len(line.name) for line in self.lines)
        room = options.max_width - min(longest, SHORT)
        shown: list[str] = []
        for column in self.columns:
            width = max(cell_len(text) for text in [column.heading, *(line.cells[column.key] for line in self.lines)])
            room -= width + 2
            if shown and room < 0:
                break
            shown.append(column.key)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("block", overflow="fold", no_wrap=longest <= SHORT)
        in_order = [column for column in estimates.COLUMNS if column.key in shown]
        for column in in_order:
            table.add_column(column.heading, justify="right", no_wrap=True)
        for line in self.lines:
            cells = [Text(line.cells[column.key]) for column in in_order]
            table.add_row(Text(line.name), *cells, style="" if line.ok else "bold red")
        yield table


def _widths(columns: dict[str, list[str]], room: int) -> tuple[list[int], bool]:
    """Of the columns, and whether they are too wide together with the status."""
    widths = [max(cell_len(line) for text in [name, *texts] for line in text.split("\n")) for name, texts in
              columns.items()]  # fmt: skip
    return widths, min(widths[0], SHORT) + sum(widths[1:]) + 2 * len(widths) + _STATUS > room


def _end(pair: tuple[float, float] | None, reach: float) -> str:
    return "-" if pair is None else with_reach(*pair, reach)


def short_status(spectrum: Spectrum) -> str:
    """The status of the eigenvalues in a word or two; in capitals if not done."""
    word = spectrum.status.split(":")[0]
    return word if spectrum.solved else word.upper()


def _facts(analysis: AnalysisRecord) -> list[str]:
    step, negative = summary.stable_step(analysis), summary.most_negative(analysis)
    lines = []
    names = summary.names_of(analysis)
    if names.caveat:
        lines.append(names.caveat)
    if summary.largest(analysis) is not None and not names.caveat:
        lines.append(f"2/lambda_max: {step.value}. {step.sentence}")
    if summary.lowest(analysis) is not None and not names.caveat:
        lines.append(f"Most negative eigenvalue: {negative.value}. {negative.sentence}")
    lines += estimates.sentences(analysis)
    missed = summary.missed_overall(analysis)
    lines.append(f"Could one have been missed? {missed}" if missed else "")
    more = max((len(s.eigenvalues) for s in analysis.spectra()), default=0)
    if more > 2:
        lines.append(f"Up to {more} eigenvalues per spectrum: see .eigenvalues, to_frame() or the report.")
    if analysis.frozen:
        lines.append(f"Left out because they are frozen: {summary.some(analysis.frozen)}.")
    if analysis.uncovered:
        lines.append(f"In no block, only in the full model: {summary.some(analysis.uncovered)}.")
    if analysis.counts.passes:
        cost = analysis.counts
        lines.append(
            f"Cost: {counted(cost.passes, 'pass', 'passes')} over the data, "
            f"{counted(cost.products, names.product)} and "
            f"{counted(cost.backwards, 'gradient')} of one batch."
        )
    lines.append(summary.cost(analysis))
    return [line for line in lines if line]

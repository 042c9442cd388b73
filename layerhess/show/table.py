"""An analysis as a table in the terminal."""

from __future__ import annotations

import io

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from layerhess.results import Analysis, Spectrum
from layerhess.show import estimates, summary
from layerhess.show.formatting import count, counted, number, with_bound

WIDTH = 100
IN_TERMINAL = ("trace", "effective_rank", "sampling_top", "sampling_trace")  # the report has them all


def as_text(analysis: Analysis, width: int = WIDTH) -> str:
    """The analysis as plain text, ``width`` columns wide, without colours.

    >>> from layerhess.results import Analysis, Counts
    >>> empty = Analysis({}, None, [], (), (), 0.5, 4.0, 4, 1, 0.1, {}, (), (), Counts(0, 0, 0, 0, 0, {}), {}, {})
    >>> print(as_text(empty).splitlines()[0])
    model: 0 parameters, 0 blocks, operator: hessian
    """
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, force_terminal=False, highlight=False)
    console.print(renderable(analysis))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def renderable(analysis: Analysis) -> RenderableType:
    """The same for a rich console of any width, with colours."""
    parts: list[RenderableType] = [_heading(analysis), ""]
    if analysis.spectra():
        parts += [_table(analysis), ""]
    columns, lines = estimates.lines(analysis)
    if columns:
        parts += [_estimates(columns, lines), ""]
    verdict = summary.verdict(analysis)
    parts.append(Text(verdict.headline + ".", style="bold green" if verdict.good else "bold red"))
    parts += [Text(f"  ! {detail}", style="red") for detail in verdict.details]
    parts += [Text(line) for line in _facts(analysis)]
    parts += [Text(f"Note: {note}", style="dim") for note in analysis.notes]
    return Group(*parts)


def _heading(analysis: Analysis) -> Text:
    operator = summary.operator_of(analysis)
    first = (
        f"{analysis.model or 'model'}: {counted(analysis.total_numel, 'parameter')}, "
        f"{counted(len(analysis.blocks), 'block')}, "
        f"operator: {operator}"
    )
    second = f"loss {number(analysis.loss, 6)} over {summary.examples(analysis)}"
    if analysis.gradient_norm == analysis.gradient_norm:
        second += f"; norm of the gradient {number(analysis.gradient_norm)}"
    return Text.assemble((first, "bold"), "\n", second)


def _table(analysis: Analysis) -> Table:
    tops = any(s.top is not None for s in analysis.spectra())
    bottoms = any(s.bottom is not None for s in analysis.spectra())
    names = summary.operator_names(summary.operator_of(analysis))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(f"block ({names.block})", overflow="fold")
    table.add_column("numel", justify="right", no_wrap=True)
    if tops:
        table.add_column("lambda_max", justify="right", no_wrap=True)
    if bottoms:
        table.add_column("lambda_min", justify="right", no_wrap=True)
    table.add_column("status", overflow="fold")
    for spectrum in analysis.blocks.values():
        table.add_row(*_cells(spectrum, spectrum.name, tops, bottoms))
    if analysis.full is not None:
        if analysis.blocks:
            table.add_section()
        table.add_row(*_cells(analysis.full, f"full model ({names.full})", tops, bottoms), style="bold")
    return table


def _estimates(columns: list[estimates.Column], lines: list[estimates.Line]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("block", overflow="fold")
    shown = [column for column in columns if column.key in IN_TERMINAL]
    for column in shown:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for line in lines:
        cells = [Text(line.cells[column.key]) for column in shown]
        table.add_row(Text(line.name), *cells, style="" if line.ok else "bold red")
    return table


def _cells(spectrum: Spectrum, name: str, tops: bool, bottoms: bool) -> list[Text]:
    def end(pair: tuple[float, float] | None) -> Text:
        return Text("-") if pair is None else Text(with_bound(*pair))

    cells = [Text(name), Text(count(spectrum.numel))]
    cells += [end(spectrum.top)] if tops else []
    cells += [end(spectrum.bottom)] if bottoms else []
    word = short_status(spectrum)
    return [*cells, Text(word, style="" if spectrum.ok else "bold red")]


def short_status(spectrum: Spectrum) -> str:
    """The status in a word or two; whatever is not done is in capitals."""
    word = spectrum.status.split(":")[0]
    return word if spectrum.ok else word.upper()


def _facts(analysis: Analysis) -> list[str]:
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
        lines.append(f"Left out because they are frozen: {_some(analysis.frozen)}.")
    if analysis.uncovered:
        lines.append(f"In no block, only in the full model: {_some(analysis.uncovered)}.")
    if analysis.counts.passes:
        cost = analysis.counts
        lines.append(
            f"Cost: {counted(cost.passes, 'pass', 'passes')} over the data, "
            f"{counted(cost.products, names.product)} and "
            f"{counted(cost.backwards, 'gradient')} of one batch."
        )
    lines.append(summary.cost(analysis))
    return [line for line in lines if line]


def _some(names: tuple[str, ...], most: int = 5) -> str:
    listed = ", ".join(names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"

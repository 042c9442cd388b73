"""An analysis in a notebook cell: a small HTML table with its own style, in the notebook's colours."""

from __future__ import annotations

from html import escape

from layerhess.results.spectrum import AnalysisRecord, Spectrum
from layerhess.show import estimates, summary
from layerhess.show.numbers import count, number, with_reach
from layerhess.show.table import short_status

MOST_ROWS = 60  # blocks shown in a cell; to_frame() has all
_WRONG = "color:#d03a34;font-weight:600"
_CELL = "padding:2px 12px 2px 0;text-align:right;font-variant-numeric:tabular-nums"
_LEFT = "padding:2px 12px 2px 0;text-align:left"


def as_html(analysis: AnalysisRecord) -> str:
    """A fragment of HTML: heading, verdict, headline numbers, one row per block and the full model last; estimates.

    Args:
        analysis: complete or partial; names in it may contain anything, they are escaped.
    """
    verdict = summary.verdict(analysis)
    names = summary.operator_names(summary.operator_of(analysis))
    rows = [_row(s, s.name) for s in list(analysis.blocks.values())[:MOST_ROWS]]
    hidden = len(analysis.blocks) - MOST_ROWS
    if hidden > 0:
        rows.append(f'<tr><td colspan="5" style="{_LEFT}">… {hidden} more blocks: to_frame() shows all</td></tr>')
    if analysis.full is not None:
        rows.append(
            _row(analysis.full, f"full model ({names.full})", "font-weight:600;border-top:1px solid currentColor")
        )
    heads = (f"block ({names.block})", "numel", "λ<sub>max</sub>", "λ<sub>min</sub>", "status")
    head = "".join(f'<th style="{_LEFT if i in (0, 4) else _CELL}">{text}</th>' for i, text in enumerate(heads))
    facts = [f"loss {number(analysis.loss)} over {summary.examples(analysis)}"]
    if summary.largest(analysis) is not None and not names.caveat:
        facts.append(f"2/λ<sub>max</sub>: {escape(summary.stable_step(analysis).value)}")
    if summary.lowest(analysis) is not None and not names.caveat:
        facts.append(f"most negative eigenvalue: {escape(summary.most_negative(analysis).value)}")
    details = "".join(f'<div style="{_WRONG}">{escape(detail)}</div>' for detail in verdict.details)
    style = "font-weight:600" if verdict.good else _WRONG
    return (
        '<div style="line-height:1.5">'
        f"<div><b>{escape(analysis.model or 'model')}</b>, {count(analysis.total_numel)} parameters, operator "
        f"{escape(summary.operator_of(analysis) + summary.condition(analysis))}; {'; '.join(facts)}</div>"
        f'<div style="{style}">{escape(verdict.headline)}.</div>{details}'
        f'<table style="border-collapse:collapse;margin-top:6px"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>{_estimates(analysis)}</div>"
    )


def _estimates(analysis: AnalysisRecord) -> str:
    """The estimates, in the same columns as in the terminal, and sentences on them."""
    columns, lines = estimates.lines(analysis)
    said = "".join(f"<div>{escape(sentence)}</div>" for sentence in estimates.sentences(analysis))
    shown = [column for column in columns if column.key in estimates.BRIEFLY]
    if not shown:
        return said
    heads = "".join(f'<th style="{_CELL}" title="{escape(c.meaning)}">{escape(c.heading)}</th>' for c in shown)
    blocks = lines[: len(analysis.blocks)]
    rows = "".join(
        f'<tr style="{"" if line.ok else _WRONG}"><td style="{_LEFT}">{escape(line.name)}</td>'
        + "".join(f'<td style="{_CELL}">{escape(line.cells[c.key])}</td>' for c in shown)
        + "</tr>"
        for line in [*blocks[:MOST_ROWS], *lines[len(blocks) :]]
    )
    return (
        f'<table style="border-collapse:collapse;margin-top:6px"><thead><tr><th style="{_LEFT}">block</th>{heads}</tr>'
        f"</thead><tbody>{rows}</tbody></table>{said}"
    )


def _row(spectrum: Spectrum, name: str, style: str = "") -> str:
    def end(pair: tuple[float, float] | None, reach: float) -> str:
        return "-" if pair is None else escape(with_reach(*pair, reach))

    style = style if spectrum.solved else f"{style};{_WRONG}".lstrip(";")
    return (
        f'<tr style="{style}"><td style="{_LEFT}">{escape(name)}</td><td style="{_CELL}">{count(spectrum.numel)}</td>'
        f'<td style="{_CELL}">{end(spectrum.top, spectrum.highest)}</td>'
        f'<td style="{_CELL}">{end(spectrum.bottom, spectrum.deepest)}</td>'
        f'<td style="{_LEFT}">{escape(short_status(spectrum))}</td></tr>'
    )

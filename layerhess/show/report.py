"""The report of an analysis: one self-contained HTML page that needs no network and no other file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from layerhess.results.record import Floats
from layerhess.results.spectrum import AnalysisRecord, Spectrum
from layerhess.show import density_figures, estimates, figures, numbers, summary
from layerhess.show.style import inline_svg
from layerhess.show.table import short_status

_MOST_PAIRS = 400  # eigenvalues listed one by one; if there are more, analysis.json has them


@dataclass(frozen=True)
class Row:
    """One line of the sortable table: texts to show and numbers to sort by (None sorts last).

    Attributes:
        name, numel, share, top, bottom, norm, sensitivity, missed, status: texts.
        ok: False when an eigenvalue in the line has not converged.
        keys: column -> number.
        bar: lambda_max over the largest one of all lines, 0 to 1, for the bar behind the number.
    """

    name: str
    numel: str
    share: str
    top: str
    bottom: str
    norm: str
    sensitivity: str
    missed: str
    status: str
    ok: bool
    keys: dict[str, float | None]
    bar: float


def as_html(analysis: AnalysisRecord) -> str:
    """The report of an analysis as one self-contained HTML document, readable in light and in dark.

    Args:
        analysis: complete or partial; names and sentences in it may contain anything, they are escaped.
    """
    operator = summary.operator_of(analysis)
    return _template().render(
        analysis=analysis,
        operator=operator,
        condition=summary.condition(analysis),
        names=summary.operator_names(operator),
        verdict=summary.verdict(analysis),
        step=summary.stable_step(analysis),
        negative=summary.most_negative(analysis),
        cost=summary.cost(analysis),
        examples=summary.examples(analysis),
        interlacing=summary.interlacing(analysis),
        missed=summary.missed_overall(analysis),
        ranking=_ranking(analysis),
        rows=_rows(analysis),
        pairs=_pairs(analysis),
        left_out=max(0, sum(len(s.eigenvalues) for s in analysis.spectra()) - _MOST_PAIRS),
        overview=_overview(analysis),
        mass=_mass(analysis),
        mass_sentences=_mass_sentences(analysis),
        beyond=_beyond(analysis),
        settings={key: _setting(value) for key, value in analysis.settings.items() if key != "identity"},
        number=numbers.number,
        count=numbers.count,
        counted=numbers.counted,
        duration=numbers.duration,
        total_seconds=sum(analysis.seconds.values()),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("layerhess", "show"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["mathematics"] = _mathematics
    return environment.get_template("report.html.j2")


_SYMBOLS = {
    "lambda_max": "λ<sub>max</sub>",
    "lambda_min": "λ<sub>min</sub>",
    "||A||_F^2": "‖A‖<sub>F</sub>²",
    "||A||_2^2": "‖A‖<sub>2</sub>²",
    "|lambda|": "|λ|",
    " * ||W||^2": "‖W‖²",
    "H_bb": "H<sub>bb</sub>",
    "G_bb": "G<sub>bb</sub>",
    "F_bb": "F<sub>bb</sub>",
}


def _mathematics(sentence: str) -> Markup:
    """One of our sentences, escaped, with its formulas typeset."""
    text = str(escape(sentence))
    for plain, typeset in _SYMBOLS.items():
        text = text.replace(plain, typeset)
    return Markup(text)


def _rows(analysis: AnalysisRecord) -> list[Row]:
    sizes = [s.top[0] for s in analysis.blocks.values() if s.top is not None]
    largest = max(sizes, default=0.0)
    return [_row(spectrum, analysis.total_numel, largest) for spectrum in analysis.blocks.values()]


def _row(spectrum: Spectrum, total: int, largest: float) -> Row:
    part = spectrum.numel / total if total else math.nan
    top, bottom = spectrum.top, spectrum.bottom
    norm = spectrum.weight_norm_squared
    sensitivity = top[0] * norm if top is not None else math.nan
    reaches = ((top, spectrum.highest), (bottom, spectrum.deepest))
    beyond = [numbers.up_to(*pair, end) for pair, end in reaches if pair is not None]
    excluded = "all computed" if spectrum.complete else ", ".join(text for text in beyond if text)
    if spectrum.missed_factor == math.inf:
        excluded = "none excluded"
    elif not spectrum.complete and math.isfinite(spectrum.missed_factor):
        chance = f"(p ≤ {_chance(spectrum)})"
        excluded = f"{excluded} {chance}" if excluded else f"nothing beyond the bound {chance}"
    return Row(
        name=spectrum.name,
        numel=numbers.count(spectrum.numel),
        share=numbers.share(part),
        top="-" if top is None else numbers.with_bound(*top),
        bottom="-" if bottom is None else numbers.with_bound(*bottom),
        norm=numbers.number(norm),
        sensitivity=numbers.number(sensitivity),
        missed=excluded,
        status=short_status(spectrum),
        ok=spectrum.solved,
        keys={
            "numel": _key(part),
            "top": _key(top[0] if top else math.nan),
            "bottom": _key(bottom[0] if bottom else math.nan),
            "norm": _key(norm),
            "sensitivity": _key(sensitivity),
        },
        bar=top[0] / largest if top is not None and largest > 0 and top[0] > 0 else 0.0,
    )


def _key(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _chance(spectrum: Spectrum) -> str:
    return numbers.share(spectrum.missed_probability)


def _pairs(analysis: AnalysisRecord) -> list[dict[str, str]]:
    """Every eigenvalue with all digits, up to a limit."""
    pairs: list[dict[str, str]] = []
    for spectrum in [*([analysis.full] if analysis.full is not None else []), *analysis.blocks.values()]:
        for index, value in enumerate(spectrum.eigenvalues):
            conditional, bound = float(spectrum.conditional_bounds[index]), float(spectrum.error_bounds[index])
            reach = float(spectrum.interval[index, 0 if spectrum.end[index] == "bottom" else 1])
            pairs.append(
                {
                    "name": spectrum.name,
                    "operator": spectrum.operator,
                    "end": spectrum.end[index],
                    "value": repr(float(value)),
                    "bound": numbers.rounded_up(bound),
                    "reach": numbers.up_to(float(value), bound, reach),
                    "conditional": "-" if math.isnan(conditional) else numbers.rounded_up(conditional),
                    "converged": "yes" if spectrum.converged[index] else "NO",
                    "path": spectrum.path,
                    "steps": numbers.count(spectrum.steps),
                }
            )
    return pairs[:_MOST_PAIRS]


def _ranking(analysis: AnalysisRecord) -> list[str]:
    """Sentences on which blocks stand out; each names its operator."""
    found = {s.name: s for s in analysis.blocks.values() if s.top is not None and s.settled("top")}
    tops = {name: s.top[0] for name, s in found.items() if s.top is not None and s.top[0] > 0}
    if not tops:
        return []
    others = len([s for s in analysis.blocks.values() if s.top is not None]) - len(found)
    among = f" of those that have converged ({others} have not)" if others else ""
    names = summary.operator_names(summary.operator_of(analysis))
    order = sorted(tops, key=lambda name: -tops[name])
    first, last = order[0], order[-1]
    sentences = []
    if len(order) > 1:
        words = (f"The sharpest block{among} is", "flattest with positive curvature is")
        if names.caveat:
            words = (f"The largest eigenvalue{among} is that of", "smallest of these is that of")
        ratio = numbers.times(tops[first] / tops[last])
        sentences.append(
            f"{words[0]} {first} (lambda_max of its {names.block} is {numbers.number(tops[first])}); the "
            f"{words[1]} {last} ({numbers.number(tops[last])}), {ratio} times less."
        )
    weighed = {n: tops[n] * analysis.blocks[n].weight_norm_squared for n in order}
    weighed = {n: value for n, value in weighed.items() if math.isfinite(value)}
    if weighed:
        best = max(weighed, key=lambda name: weighed[name])
        cost = (
            "" if names.caveat else ": a relative change of its weights along the worst direction costs the most loss"
        )
        sentences.append(
            f"Measured against its weights, lambda_max * ||W||^2, {best} is the most sensitive "
            f"({numbers.number(weighed[best])}){cost}."
        )
    zero = [s.name for s in analysis.blocks.values() if s.status.startswith("zero")]
    if zero:
        shown = ", ".join(zero[:5]) + (f" and {len(zero) - 5} more" if len(zero) > 5 else "")
        nothing = f"{names.block} is zero" if names.caveat else "The loss has no measurable curvature"
        sentences.append(f"{nothing} in {shown}.")
    return sentences


def _overview(analysis: AnalysisRecord) -> Markup:
    if not analysis.spectra():
        return Markup()
    return Markup(inline_svg(figures.overview(analysis), "Eigenvalues per block with error bars"))


def _mass(analysis: AnalysisRecord) -> Markup:
    if not analysis.full_mass:
        return Markup()
    return Markup(inline_svg(figures.mass(analysis), "Share of each full-model eigenvector per block"))


@dataclass(frozen=True)
class Beyond:
    """The estimates for the report: a table, sentences, and figures with captions."""

    columns: list[estimates.Column]
    lines: list[estimates.Line]
    sentences: list[str]
    figures: list[tuple[str, Markup]]


def _beyond(analysis: AnalysisRecord) -> Beyond | None:
    columns, lines = estimates.lines(analysis)
    drawn = _curvature_figures(analysis)
    return Beyond(columns, lines, estimates.sentences(analysis), drawn) if columns or drawn else None


def _curvature_figures(analysis: AnalysisRecord) -> list[tuple[str, Markup]]:
    names = summary.operator_names(summary.operator_of(analysis))
    drawn = []
    full, coupling = analysis.full, analysis.coupling
    if full is not None and full.density is not None:
        figure = density_figures.full_density(full.density, full.eigenvalues, full.error_bounds, full.end)
        caption = f"Spectral density of the full {names.words}; marked are the eigenvalues that have error bounds."
        caption += _cut_short([full])
        drawn.append((caption, _svg(figure, "Spectral density of the full model")))
    densities = {name: s.density for name, s in analysis.blocks.items() if s.density is not None}
    if densities:
        caption = "Spectral density of each block, all on the same axes; the band is 95 % over the random vectors."
        caption += _cut_short(list(analysis.blocks.values()))
        drawn.append((caption, _svg(density_figures.densities(densities), "Spectral density of each block")))
    if coupling is not None:
        figure = density_figures.heat_map(coupling.blocks, coupling.value, "Coupling between blocks", "Frobenius norm")
        caption = f"Frobenius norms of the blocks of {names.full}: on the diagonal the layers, off it their coupling."
        caption += _uncertainty(coupling.standard_error, coupling.value)
        drawn.append((caption, _svg(figure, "Coupling between blocks")))
        if coupling.divergence is not None:
            figure = density_figures.heat_map(
                coupling.blocks, coupling.divergence, "How different the spectra are", "distance", limits=(0.0, 1.0)
            )
            caption = "Jensen-Shannon distance between the blocks' spectral densities: 0 the same, 1 disjoint."
            caption += _uncertainty(coupling.divergence_error)
            drawn.append((caption, _svg(figure, "Distance between spectra")))
    return drawn


def _cut_short(spectra: list[Spectrum]) -> str:
    """Which of the drawn densities lack steps; their bands do not show it."""
    names = [s.name for s in spectra if s.density is not None and not s.density.finished]
    if not names:
        return ""
    which = "" if len(spectra) == 1 else f" ({summary.some(names)})"
    return f" STOPPED EARLY{which}: it is coarser than was asked for, and its band does not say by how much."


def _uncertainty(errors: Floats | None, values: Floats | None = None) -> str:
    """How large the errors of a table are, relative to its values where those are given."""
    if errors is None or not errors.size:
        return ""
    if not np.isfinite(errors).all():
        return " Some have no known error, since they come from a single random vector."
    if not errors.any():
        return " All are exact."
    if values is None:
        return f" Errors (noise and bias): half are below {np.median(errors):.2g}, all below {errors.max():.2g}."
    estimated = (values > 0.0) & (errors > 0.0)
    relative = errors[estimated] / values[estimated]
    if not len(relative):
        return ""
    rest = "" if estimated.all() else "; the others are exact"
    half, most = np.median(relative), relative.max()
    return (
        f" Standard errors of those from random vectors: half are below {half:.1%} of the norm, all {most:.1%}{rest}."
    )


def _svg(figure: Any, label: str) -> Markup:
    return Markup(inline_svg(figure, label))


def _mass_sentences(analysis: AnalysisRecord) -> list[str]:
    full = analysis.full
    if full is None or len(full.eigenvalues) != len(analysis.full_mass) or not analysis.full_mass:
        return []
    caveat = summary.names_of(analysis).caveat
    wanted = {0: "The top eigenvector" if caveat else "The steepest direction of the whole model"}
    if "bottom" in full.end and len(full.eigenvalues) > 1:
        last = len(full.eigenvalues) - 1
        wanted[last] = (
            "Its most negative direction" if full.eigenvalues[last] < 0 else "Its flattest computed direction"
        )
        if caveat:
            wanted[last] = "The lowest computed eigenvector"
    sentences = []
    for index, subject in wanted.items():
        row = analysis.full_mass[index]
        order = sorted(row, key=lambda name: -row[name])[:3]
        parts = [f"{numbers.share(row[name])} in {name}" for name in order if row[name] >= 0.005]
        if parts:
            value = numbers.number(float(full.eigenvalues[index]))
            sentences.append(f"{subject} (eigenvalue {value}) has {_and(parts)} of its squared norm.")
    return sentences


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _setting(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_setting(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_setting(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)

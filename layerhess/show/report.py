"""The report of an analysis: one self-contained HTML page that needs no network and no other file."""

from __future__ import annotations

import json
import math

import numpy as np
from markupsafe import Markup

from layerhess.results.plan import PlanRecord
from layerhess.results.spectrum import AnalysisRecord
from layerhess.show import estimates, numbers, summary
from layerhess.show.page.answers import answers, sharpest
from layerhess.show.page.coefficients import DRAWN, triangle
from layerhess.show.page.counts import chart
from layerhess.show.page.distribution import distribution
from layerhess.show.page.layers import Table, table
from layerhess.show.page.templates import setting, sign, template
from layerhess.show.plan import page as plan_page

LONGEST = 40  # characters of a block scheme at the head


def as_html(analysis: AnalysisRecord, plan: PlanRecord | None = None) -> str:
    """The report of an analysis as one self-contained HTML document, readable in light and in dark.

    Args:
        analysis: complete or partial; names and sentences in it may contain anything, they are escaped.
        plan: of the same model; it has a section then.
    """
    found = sharpest(analysis)
    rows = table(analysis, found.names if found is not None else [])
    pairs = None if analysis.coupling is None else triangle(analysis.coupling)
    names = summary.names_of(analysis)
    return template("page/report.html.j2").render(
        analysis=analysis,
        title=analysis.model or "model",
        under=_under(analysis),
        answers=answers(analysis, found),
        sign=sign,
        table=rows,
        columns=4 + rows.negative + rows.shares + rows.sensitivities,
        direction="top eigenvector" if names.caveat else "steepest direction",
        legend=_legend(analysis, rows),
        chart=chart(analysis),
        distribution=distribution(analysis),
        triangle=pairs,
        together=_together(analysis),
        coefficients=Markup(json.dumps(pairs.values, separators=(",", ":")) if pairs is not None else "[]"),
        beyond=_beyond(analysis),
        cost=_cost(analysis),
        meaning=_meaning(analysis),
        verdict=summary.verdict(analysis),
        passed=sum(check.passed for check in analysis.checks),
        lists=_lists(analysis),
        plan=None if plan is None else plan_page.section(plan),
    )


def _under(analysis: AnalysisRecord) -> str:
    """Which matrix of which loss, on which data, of how many parameters, and when."""
    words = summary.names_of(analysis).words
    parts = [
        f"{words[0].upper()}{words[1:]}{summary.condition(analysis)}; loss {numbers.number(analysis.loss)} on "
        f"{summary.examples(analysis)}",
        f"{numbers.counted(len(analysis.blocks), 'layer')} (blocks {_scheme(analysis)}), "
        f"{numbers.counted(analysis.total_numel, 'parameter')}",
    ]
    return " · ".join([*parts, *([analysis.created[:10]] if analysis.created else [])])


def _scheme(analysis: AnalysisRecord) -> str:
    """How layers were made blocks: a word. Patterns of one's own are listed with the settings."""
    scheme = analysis.settings.get("blocks", "parameter")
    return f"by {scheme}" if isinstance(scheme, str) and len(scheme) <= LONGEST else "of your own"


def _legend(analysis: AnalysisRecord, rows: Table) -> str:
    """How to read the marks."""
    block = summary.names_of(analysis).block
    said = [f"Filled: the largest eigenvalue of the layer’s own {block}, the others held fixed"]
    if any(s.end.count("top") > 1 for s in analysis.spectra()):
        said[0] += "; rings: the next ones"
    if rows.negative:
        said[0] += "; squares: the most negative one, by its size"
    said[0] += "."
    if rows.sampled:
        said.append("The line is ± 2 sampling errors (other data of the same kind).")
    bounds = [s.top[1] / abs(s.top[0]) for s in analysis.spectra() if s.top and s.settled("top") and s.top[0]]
    if bounds and max(bounds) <= 0.02:
        numbers_of = "converged numbers" if any(not s.solved for s in analysis.spectra()) else "the numbers"
        said.append(
            f"Error bounds of {numbers_of} are smaller than a dot; a number without ± is right to its last digit."
        )
    if any(not s.solved for s in analysis.spectra()):
        said.append("Red rings have NOT CONVERGED: the dashed line is what is known.")
    if rows.whole_at is not None:
        said.append("Dashed: the whole model.")
    return " ".join([*said, "Open a layer for all digits, bounds and how they were found."])


def _together(analysis: AnalysisRecord) -> str:
    """What the triangle shows, how much lies between layers, and the errors."""
    found = analysis.coupling
    if found is None:
        return ""
    a = summary.names_of(analysis).full
    pairs = triangle(found)
    said = [
        f"Shown is ‖{a}_bc‖ / √(‖{a}_bb‖‖{a}_cc‖), 0 where two layers do not act on each other, 1 for a layer itself."
    ]
    if pairs is not None and pairs.most > 1.05 and not summary.names_of(analysis).caveat:
        said.append(
            f"Above 1, here up to {numbers.number(pairs.most, 2)}, there is more curvature between two layers than of "
            "their own."
        )
    if not math.isnan(found.off_diagonal_share):
        share = numbers.share_with_error(found.off_diagonal_share, found.share_error)
        said.append(f"{share} of ‖{a}‖² lies between layers.")
    errors, values = found.standard_error, found.value
    if errors.size and not np.isfinite(errors).all():
        said.append("Some have no known error: they come from a single random vector.")
    elif errors.size and (estimated := (values > 0.0) & (errors > 0.0)).any():
        half = float(np.median(errors[estimated] / values[estimated]))
        said.append(f"Half of the estimated norms have standard errors below {numbers.share(max(half, 1e-3))}.")
    return " ".join(said)


def _beyond(analysis: AnalysisRecord) -> list[str]:
    """Sentences on the whole model beside its blocks, and on the estimates; what is not drawn is named."""
    said = [sentence for sentence in (summary.interlacing(analysis), *estimates.sentences(analysis)) if sentence]
    found = analysis.coupling
    if found is not None and len(found.blocks) > DRAWN:
        said.append(f'Pairs of {len(found.blocks)} layers are not drawn; to_frame("coupling") has them.')
    short = [
        "full model" if s is analysis.full else s.name
        for s in analysis.spectra()
        if s.density is not None and not s.density.finished
    ]
    if short:
        said.append(f"Densities STOPPED EARLY ({summary.some(short)}) are coarser than was asked for, and not drawn.")
    return said


def _cost(analysis: AnalysisRecord) -> str:
    product = summary.names_of(analysis).product
    return (
        f"{numbers.counted(analysis.counts.passes, 'pass', 'passes')} over the data, "
        f"{numbers.counted(analysis.counts.products, product)} and "
        f"{numbers.counted(analysis.counts.backwards, 'gradient')} of one batch, "
        f"{numbers.duration(sum(analysis.seconds.values()))}."
    )


def _meaning(analysis: AnalysisRecord) -> list[str]:
    names = summary.names_of(analysis)
    missed = summary.missed_overall(analysis)
    said = []
    if not names.caveat:
        said = [
            "An eigenvalue says how fast the slope of the loss changes when all weights of the block move along one "
            "direction (its eigenvector). Large and positive: a steep valley wall, where a small error in the weights "
            "is costly. Near zero: flat. Negative: the loss curves downwards there: no minimum.",
            "The sensitivity lambda_max * ||W||^2 weighs it by the size of the block's weights: half of it, times the "
            "square of a relative change, is the loss that this change costs at worst, to second order.",
            "2/lambda_max belongs to plain gradient descent on the whole data set: with a larger step the iteration "
            "leaves this valley along the steepest direction. Momentum, adaptive steps and noise move that limit.",
        ]
    else:
        said = [f"{names.full} is the {names.words}. {names.caveat}"]
    said += [
        f"{names.block} is the {names.words} of one block with all other parameters held fixed; {names.full} is that "
        "of all parameters together, with the coupling between layers. Both are shown; neither replaces the other.",
        "The error bound is ‖A v − θ v‖ plus the rounding error, measured where possible: an eigenvalue of the matrix "
        "lies in that interval, whatever else happens. A sampling error says how much other data would change a "
        "number; it is no part of the bound.",
        f"Was an eigenvalue missed? Only a probability can be given, over the random start. {missed}",
        f"The loss is the sum of all losses over the sum of all counts; operator {summary.operator_of(analysis)}"
        f"{summary.condition(analysis)}.",
    ]
    if analysis.frozen:
        said.append(f"Left out because they are frozen: {', '.join(analysis.frozen)}.")
    if analysis.uncovered:
        said.append(
            f"Trainable, but in no block (they are part of {names.full} only): {', '.join(analysis.uncovered)}."
        )
    return said


def _lists(analysis: AnalysisRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    """Settings, counts, time and versions as lists of terms."""
    counts = analysis.counts
    told = [
        ("passes over the data", numbers.count(counts.passes)),
        ("forwards of one batch", numbers.count(counts.forwards)),
        ("gradients of one batch", numbers.count(counts.backwards)),
        (
            f"{summary.names_of(analysis).product}s",
            f"{numbers.count(counts.products)}, {numbers.count(counts.full_products)} of them with the full matrix",
        ),
    ]
    for phase, work in counts.by_phase.items():
        told.append((phase, ", ".join(f"{numbers.count(amount)} {kind}" for kind, amount in work.items())))
    time = [(phase, numbers.duration(seconds)) for phase, seconds in analysis.seconds.items()]
    if said := summary.cost(analysis):
        time.append(("in all", said))
    about = [("loss", repr(analysis.loss)), ("data", summary.examples(analysis))]
    if math.isfinite(analysis.gradient_norm):
        about.append(("norm of the gradient", numbers.number(analysis.gradient_norm)))
    settings = [(key, setting(value)) for key, value in analysis.settings.items() if key != "identity"]
    versions = list(analysis.versions.items())
    return [("Loss and data", about), ("Counts", told), ("Time", time), ("Versions", versions), ("Settings", settings)]

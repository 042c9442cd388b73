"""The marks of one spectrum in its table row, as SVG: eigenvalues as dots, errors as whiskers."""

from __future__ import annotations

import math

from markupsafe import Markup

from layerhess.results.spectrum import Spectrum
from layerhess.show.page.axis import LogAxis

MOST_FURTHER = 8  # of the further eigenvalues at one end
ERRORS = 2.0  # standard errors that a whisker is long, either way
LEAST_WIDTH = 0.4  # per cent of the axis: a shorter whisker is hidden by its dot


def marks(spectrum: Spectrum, axis: LogAxis, *, further: int = MOST_FURTHER) -> Markup:
    """The dots and whiskers of one row, placed by the size of the eigenvalue.

    A filled circle is the largest eigenvalue, a square the most negative one, rings are further ones. A largest one
    that is negative has no circle: it has no place among the positive ones. The thick line is two sampling errors long
    either way, the thin one the interval that is known where the search has not ended.

    Args:
        further: how many further eigenvalues are drawn at each end.
    """
    parts: list[str] = []
    top = [i for i, end in enumerate(spectrum.end) if end == "top"]
    bottom = [i for i, end in enumerate(spectrum.end) if end == "bottom" and _below_zero(spectrum, i)]
    for index in top[1 : 1 + further]:
        if float(spectrum.eigenvalues[index]) <= 0.0:
            continue
        parts.append(_ring(axis.at(float(spectrum.eigenvalues[index]))))
    for index in bottom[::-1][1 : 1 + further]:
        parts.append(_ring(axis.at(-float(spectrum.eigenvalues[index])), "more below"))
    if bottom:
        parts += _extreme(spectrum, bottom[-1], axis, below=True)
    if top and not _below_zero(spectrum, top[0]):
        parts += _extreme(spectrum, top[0], axis, below=False)
    elif not spectrum.end and (pair := spectrum.top) is not None:
        parts.append(f'<circle class="pt" cx="{axis.at(pair[0]):.2f}%" cy="50%" r="4.4"/>')
    return Markup("".join(parts))  # numbers and fixed words only


def sizes(spectrum: Spectrum) -> list[float]:
    """What the axis has to have room for: all eigenvalues that are drawn, and their whiskers."""
    found: list[float] = []
    for index, value in enumerate(map(float, spectrum.eigenvalues)):
        below = spectrum.end[index] == "bottom"
        if below and not _below_zero(spectrum, index):
            continue
        size = -value if below else value
        error = float(spectrum.sampling_errors[index])
        extreme = index in (0, len(spectrum.end) - 1)
        found += [size, size + ERRORS * error] if extreme and math.isfinite(error) else [size]
    return found


def is_negative(spectrum: Spectrum) -> bool:
    """Whether its smallest eigenvalue is below zero, error bound included."""
    return bool(spectrum.end) and spectrum.end[-1] == "bottom" and _below_zero(spectrum, len(spectrum.end) - 1)


def _below_zero(spectrum: Spectrum, index: int) -> bool:
    """Only that has a place on a logarithmic axis: a value that may be zero has no size."""
    return float(spectrum.eigenvalues[index] + spectrum.error_bounds[index]) < 0.0


def _extreme(spectrum: Spectrum, index: int, axis: LogAxis, *, below: bool) -> list[str]:
    sign = -1.0 if below else 1.0
    value, done = sign * float(spectrum.eigenvalues[index]), bool(spectrum.converged[index])
    error = float(spectrum.sampling_errors[index])
    parts = []
    if not done:
        low, high = sorted(sign * float(end) for end in spectrum.interval[index])
        parts.append(_line("known", axis.at(low), axis.at(high), below))
    if math.isfinite(error):
        ends = axis.at(value - ERRORS * error), axis.at(value + ERRORS * error)
        if ends[1] - ends[0] >= LEAST_WIDTH:
            parts.append(_line("err", *ends, below))
    kind = ("pt" if done else "open") + (" below" if below else "")
    place = f"{axis.at(value):.2f}%"
    if below:
        parts.append(f'<svg x="{place}" y="50%" class="at"><path class="{kind}" d="M-4-4h8v8h-8z"/></svg>')
    else:
        parts.append(f'<circle class="{kind}" cx="{place}" cy="50%" r="4.4"/>')
    return parts


def _line(kind: str, left: float, right: float, below: bool) -> str:
    kind += " below" if below else ""
    return f'<line class="{kind}" x1="{left:.2f}%" x2="{right:.2f}%" y1="50%" y2="50%"/>'


def _ring(place: float, kind: str = "more") -> str:
    return f'<circle class="{kind}" cx="{place:.2f}%" cy="50%" r="2.6"/>'

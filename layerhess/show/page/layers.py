"""The rows of the report's table: for each layer its name, numbers, marks, bars, and the details behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from layerhess.linalg.described import plain
from layerhess.linalg.estimates import CouplingEstimate
from layerhess.results.spectrum import AnalysisRecord, Spectrum
from layerhess.show import estimates, numbers
from layerhess.show.page.axis import LogAxis
from layerhess.show.page.coefficients import coefficients
from layerhess.show.page.marks import MOST_FURTHER, is_negative, marks, sizes
from layerhess.show.table import short_status

MANY = 100  # rows from which on fewer further eigenvalues are drawn
RIGHT = 5e-4  # relative error from which on a number of four digits needs its error beside it
COUPLED = 3  # of the blocks a block is most coupled with


@dataclass(frozen=True)
class Bar:
    """A number as text, and the length of its bar in per cent of the longest one."""

    text: str
    width: float


@dataclass(frozen=True)
class Row:
    """One layer, or the whole model.

    Attributes:
        block: its name, as in the analysis. prefix, last: the name in two parts, up to the last dot and after it.
        numel, top, bottom: texts. share, sensitivity: with bars, or None where they are not known.
        marks: SVG. keys: column -> number to sort by. tags: words beside the name.
        first: it begins a group of layers. ok: all its numbers are done. whole: the whole model.
        details: (term, text) in the order in which they are read.
    """

    block: str
    prefix: str
    last: str
    numel: str
    top: str
    bottom: str
    share: Bar | None
    sensitivity: Bar | None
    marks: Markup
    keys: dict[str, float]
    tags: tuple[str, ...]
    first: bool
    ok: bool
    whole: bool
    details: list[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """All rows in model order, the whole model first, on one axis.

    Attributes:
        sampled: the figure after ± is a sampling error (else an error bound).
        negative: some layer has a negative eigenvalue, which has a column then.
        shares, sensitivities: whether any row has such a bar.
    """

    rows: list[Row]
    axis: LogAxis
    sampled: bool
    negative: bool
    shares: bool
    sensitivities: bool
    whole_at: float | None


def table(analysis: AnalysisRecord, sharpest: Sequence[str]) -> Table:
    """The table of an analysis.

    Args:
        sharpest: blocks that are marked as such.
    """
    axis = LogAxis.over(size for spectrum in analysis.spectra() for size in sizes(spectrum))
    full, blocks = analysis.full, list(analysis.blocks.values())
    found = full is not None and "top" in full.end and full.settled("top")  # else its eigenvector is not known
    mass = analysis.full_mass[0] if analysis.full_mass and found else {}
    weighed = {s.name: _sensitivity(s) for s in blocks}
    longest = max((w for w in weighed.values() if math.isfinite(w)), default=0.0)
    most = max((mass.get(s.name, 0.0) for s in blocks), default=0.0)
    columns, estimated = estimates.lines(analysis)
    lines = {line.name: line for line in estimated}
    coupled, alike = _coupled(analysis.coupling), _alike(analysis.coupling)
    rows = []
    groups = _groups([s.name for s in blocks])
    for spectrum in [*([full] if full is not None else []), *blocks]:
        whole = spectrum is full
        name = spectrum.name
        line = lines.get("full model" if whole else name)
        told = [(c.heading, line.cells[c.key]) for c in columns if line.cells[c.key] != "-"] if line else []
        part, weight = mass.get(name, math.nan), weighed.get(name, math.nan)
        prefix, last = _parts("whole model" if whole else name)
        rows.append(
            Row(
                block=name,
                prefix=prefix,
                last=last,
                numel=numbers.count(spectrum.numel),
                top=value_of(spectrum, "top"),
                bottom=value_of(spectrum, "bottom") if is_negative(spectrum) else "",
                share=None if math.isnan(part) else Bar(numbers.share(part), 100.0 * part / most if most else 0.0),
                sensitivity=None
                if math.isnan(weight)
                else Bar(
                    numbers.times(weight) if weight > 0.0 else numbers.number(weight, 2),
                    100.0 * max(weight, 0.0) / longest if longest else 0.0,
                ),
                marks=marks(spectrum, axis, further=MOST_FURTHER if len(blocks) < MANY else 3),
                keys=_keys(spectrum, part, weight),
                tags=_tags(spectrum, name in sharpest),
                first=not whole and name in groups,
                ok=spectrum.ok,
                whole=whole,
                details=_details(spectrum, analysis, told, coupled.get(name, ""), alike.get(name, "")),
            )
        )
    return Table(
        rows,
        axis,
        sampled=any(math.isfinite(e) for s in analysis.spectra() for e in s.sampling_errors),
        negative=any(is_negative(s) for s in analysis.spectra()),
        shares=bool(mass),
        sensitivities=longest > 0.0,
        whole_at=axis.at(full.top[0]) if full and full.top and full.settled("top") and full.top[0] > 0.0 else None,
    )


def _sensitivity(spectrum: Spectrum) -> float:
    """lambda_max ||W||^2, where lambda_max is known."""
    if spectrum.top is None or not spectrum.settled("top"):
        return math.nan
    return spectrum.top[0] * spectrum.weight_norm_squared


def value_of(spectrum: Spectrum, end: str) -> str:
    """An eigenvalue with as many digits as it deserves; its error where that shows in four digits."""
    pair = spectrum.top if end == "top" else spectrum.bottom
    if pair is None:
        return "" if spectrum.end else short_status(spectrum)
    value, bound = pair
    error = _sampling(spectrum, end)
    if spectrum.settled(end) and math.isfinite(error) and error > bound:
        return numbers.with_bound(value, error)
    if math.isfinite(bound) and bound <= RIGHT * abs(value):
        return numbers.number(value)
    if spectrum.status.startswith("zero"):
        return f"0 ± {numbers.rounded_up(bound)}"
    return numbers.with_bound(value, bound)


def _sampling(spectrum: Spectrum, end: str) -> float:
    asked = [i for i, found in enumerate(spectrum.end) if found == end]
    return float(spectrum.sampling_errors[asked[0] if end == "top" else asked[-1]]) if asked else math.nan


def _keys(spectrum: Spectrum, share: float, sensitivity: float) -> dict[str, float]:
    """Numbers to sort by; what is not known is left out, and comes last."""
    found = {
        "numel": float(spectrum.numel),
        "top": spectrum.top[0] if spectrum.top else math.nan,
        "bottom": spectrum.bottom[0] if spectrum.bottom else math.nan,
        "share": share,
        "sensitivity": sensitivity,
    }
    return {key: value for key, value in found.items() if math.isfinite(value)}


def _tags(spectrum: Spectrum, sharpest: bool) -> tuple[str, ...]:
    if not spectrum.solved:
        return (short_status(spectrum),)
    if not spectrum.ok:
        return ("ESTIMATES NOT DONE",)
    if spectrum.status.startswith("zero"):
        return ("zero",)
    return ("sharpest",) if sharpest else ()


def _parts(name: str) -> tuple[str, str]:
    """The name up to its last dot, and the rest."""
    prefix, dot, last = plain(name).rpartition(".")
    return prefix + dot, last


def _groups(names: Sequence[str]) -> set[str]:
    """Names that begin a group: the layers below one stage, or one repeated block, of the module path."""
    stages = [_stage(name) for name in names]
    sizes: dict[str, int] = {}
    for stage in stages:
        sizes[stage] = sizes.get(stage, 0) + 1
    began = set()
    for index, name in enumerate(names[1:], 1):
        grouped = sizes[stages[index]] > 1 or sizes[stages[index - 1]] > 1
        if stages[index] != stages[index - 1] and grouped:
            began.add(name)
    return began


def _stage(name: str) -> str:
    """The module path up to the number of a repeated block of layers, or its first part.

    >>> _stage("transformer.h.3.attn.weight"), _stage("block1.conv.0.weight"), _stage("head.weight")
    ('transformer.h.3', 'block1', '')
    """
    parts = name.split(".")
    for index, part in enumerate(parts[:-2]):
        if part.isdigit() and index:
            return ".".join(parts[: index + 1])
    return parts[0] if len(parts) > 2 else ""


def _details(
    spectrum: Spectrum, analysis: AnalysisRecord, told: list[tuple[str, str]], coupled: str, alike: str
) -> list[tuple[str, str]]:
    found = [("status", spectrum.status)]
    for end, term in (("top", "largest eigenvalues"), ("bottom", "smallest eigenvalues")):
        if pairs := [_pair(spectrum, i) for i, asked in enumerate(spectrum.end) if asked == end]:
            found.append((term if len(pairs) > 1 else term[:-1], "; ".join(pairs)))
    if spectrum.eigenvalues.size:
        found.append(("could one be missed?", _missed(spectrum)))
    if math.isfinite(spectrum.weight_norm_squared):
        text = f"‖W‖² = {numbers.number(spectrum.weight_norm_squared)}"
        weighed = _sensitivity(spectrum)
        found.append(("weights", text + (f", λmax‖W‖² = {numbers.number(weighed)}" if math.isfinite(weighed) else "")))
    if told:
        found.append(("estimates", "; ".join(f"{heading} {text}" for heading, text in told)))
    if shares := _shares(spectrum, analysis):
        found.append(("share of the whole model’s directions", shares))
    if coupled:
        found.append(("most coupled with", coupled))
    if alike:
        found.append(("spectrum most like", alike))
    if spectrum.path:
        how = f"{spectrum.path}, {numbers.counted(spectrum.steps, 'product')}"
        found.append(("how", how + (f"; {spectrum.licence}" if spectrum.licence else "")))
    return found


def _pair(spectrum: Spectrum, index: int) -> str:
    """One eigenvalue with all its digits and errors."""
    value, bound = float(spectrum.eigenvalues[index]), float(spectrum.error_bounds[index])
    conditional, sampled = float(spectrum.conditional_bounds[index]), float(spectrum.sampling_errors[index])
    said = [f"{value!r} ± {numbers.rounded_up(bound)}"]
    if not spectrum.converged[index]:
        said.append("NOT CONVERGED")
    end = float(spectrum.interval[index, 0 if spectrum.end[index] == "bottom" else 1])
    if beyond := numbers.up_to(value, bound, end):
        said.append(beyond)
    if math.isfinite(conditional):
        said.append(f"r²/gap {numbers.rounded_up(conditional)}")
    if math.isfinite(sampled):
        said.append(f"sampling error {numbers.number(sampled, 2)}")
    return ", ".join(said)


def _missed(spectrum: Spectrum) -> str:
    if spectrum.complete:
        return "No: the whole spectrum was computed."
    if spectrum.missed_factor == math.inf:
        return "Nothing beyond these was excluded."
    if math.isnan(spectrum.missed_factor):
        return "See the status."
    chance = numbers.share(spectrum.missed_probability)
    factor = numbers.number(spectrum.missed_factor, 3)
    return f"A further one above {factor} times λmax is excluded, except with a probability of {chance} at most."


def _shares(spectrum: Spectrum, analysis: AnalysisRecord) -> str:
    full = analysis.full
    if full is None or spectrum is full or len(full.eigenvalues) != len(analysis.full_mass):
        return ""
    parts = [
        f"{numbers.share(row[spectrum.name])} of that with eigenvalue {numbers.number(float(value))}"
        for value, row, done in zip(full.eigenvalues, analysis.full_mass, full.converged, strict=True)
        if done and spectrum.name in row
    ]
    return "; ".join(parts[:5])


def _coupled(found: CouplingEstimate | None) -> Mapping[str, str]:
    """Block -> those it is most coupled with."""
    if found is None or len(found.blocks) < 2:
        return {}
    values = coefficients(found)
    said = {}
    for row, name in enumerate(found.blocks):
        others = [c for c in values[row].argsort()[::-1] if c != row and values[row, c] > 0.0]
        said[name] = ", ".join(f"{found.blocks[c]} ({values[row, c]:.2f})" for c in others[:COUPLED])
    return said


def _alike(found: CouplingEstimate | None) -> Mapping[str, str]:
    """Block -> that whose density is the nearest, by the Jensen-Shannon distance."""
    if found is None or found.divergence is None or found.divergence_error is None or len(found.blocks) < 2:
        return {}
    said = {}
    for row, name in enumerate(found.blocks):
        distances = found.divergence[row].copy()
        distances[row] = math.inf
        nearest = int(distances.argmin())
        error = float(found.divergence_error[row, nearest])
        distance = numbers.with_bound(float(distances[nearest]), error)
        said[name] = f"{found.blocks[nearest]} (Jensen-Shannon distance {distance}, 0 the same, 1 disjoint)"
    return said

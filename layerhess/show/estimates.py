"""The estimates (trace, diagonal, ...) as text: one line for each block and for the full model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from layerhess.linalg.described import plain
from layerhess.linalg.estimates import CONFIDENCE
from layerhess.results.derived import Figure, derive
from layerhess.results.spectrum import FULL_NAME, AnalysisRecord, Spectrum
from layerhess.show.numbers import counted, number, rounded_up, share_with_error, with_bound
from layerhess.show.summary import some


@dataclass(frozen=True)
class Column:
    """A column of the table: its key in :attr:`Line.cells`, its heading, and what it means."""

    key: str
    heading: str
    meaning: str


# The report shows all; other displays show as many as fit, from the first on.
BRIEFLY = ("trace", "effective_rank", "sampling_top", "sampling_trace", "diagonal")
COLUMNS = (
    Column(
        "trace",
        "trace",
        "sum of the eigenvalues; with its standard error over the probes, or its bound where all are known",
    ),
    Column("mean", "trace / n", "average second derivative over the parameters"),
    Column("diagonal", "diagonal", "Euclidean norm of the diagonal's entries, and of their standard errors"),
    Column("top_sum", "top sum", "sum of the eigenvalues found at the top, with its bound"),
    Column("top_share", "top share", "sum of the eigenvalues found at the top, over the trace"),
    Column("top_condition", "top condition", "largest over smallest of the eigenvalues found at the top"),
    Column("stable_rank", "stable rank", "||A||_F^2 / ||A||_2^2"),
    Column("effective_rank", "effective rank", "exp of the entropy of |lambda| / sum |lambda|"),
    Column("damping", "damping", "what has to be added to the diagonal for no eigenvalue to be negative"),
    Column("sampling_top", "data, lambda_max", "standard error of lambda_max with respect to the sample of data"),
    Column("sampling_trace", "data, trace", "standard error of the trace with respect to the sample of data"),
)


@dataclass(frozen=True)
class Line:
    """One spectrum's texts, by the keys of :data:`COLUMNS`; "-" for what is not known."""

    name: str
    cells: dict[str, str]
    ok: bool  # False when an estimate misses its goal; eigenvalues are in another table


def lines(analysis: AnalysisRecord) -> tuple[list[Column], list[Line]]:
    """The columns that are not empty, and a line for each spectrum; none where only eigenvalues were asked for."""
    if not any(_asked(s) for s in analysis.spectra()):
        return [], []
    made = [_line(spectrum) for spectrum in analysis.spectra()]
    columns = [column for column in COLUMNS if any(line.cells[column.key] != "-" for line in made)]
    return columns, made


def sentences(analysis: AnalysisRecord) -> list[str]:
    """Sentences on the estimates as a whole."""
    said = []
    said += _coupled(analysis)
    said += _drawn(analysis)
    traced = [s for s in analysis.blocks.values() if s.trace is not None and s.trace.value != 0.0]
    if traced and analysis.total_numel:
        densest = max(traced, key=lambda s: s.trace.value / s.numel if s.trace is not None else -math.inf)
        assert densest.trace is not None
        said.append(
            f"Per parameter {densest.name} has the most curvature: trace / n = "
            f"{_figure(derive(densest).mean_curvature)}."
        )
    return said + _kinds_of_error(analysis)


def _kinds_of_error(analysis: AnalysisRecord) -> list[str]:
    """What the numbers after ± are: standard errors where random probes were used, bounds elsewhere."""
    spectra = analysis.spectra()
    probes = {
        "traces": [s.trace.probes for s in spectra if s.trace is not None],
        "diagonals": [s.diagonal.probes for s in spectra if s.diagonal is not None],
        "densities": [s.density.probes for s in spectra if s.density is not None],
    }
    said = []
    if kinds := [name for name, counts in probes.items() if any(counts)]:
        subject = ", ".join(kinds[:-1]) + (" and " if len(kinds) > 1 else "") + kinds[-1]
        said.append(
            f"{subject.capitalize()} come from random probes where they are not exact: the figure after ± is then a "
            f"standard error, and a {CONFIDENCE:.0%} interval is about twice as wide. Eigenvalues have error bounds."
        )
    exact, number = sum(not count for count in probes["traces"]), len(probes["traces"])
    if exact:
        count = "All traces" if exact == number else f"{exact} of {number} traces"
        said.append(f"{count} are exact but for rounding, which is the figure after ±.")
    return said


def brief(columns: list[Column]) -> list[Column]:
    """The columns for a display where not all fit, the most important first."""
    return sorted((c for c in columns if c.key in BRIEFLY), key=lambda column: BRIEFLY.index(column.key))


def _coupled(analysis: AnalysisRecord) -> list[str]:
    """Sentences on the couplings; none for a single block, or if not all columns were made."""
    found = analysis.coupling
    if found is None or len(found.blocks) < 2 or math.isnan(found.off_diagonal_share):
        return []
    share = share_with_error(found.off_diagonal_share, found.share_error)
    refused = [s.name for s in analysis.blocks.values() if s.name not in found.blocks]
    if not analysis.uncovered and not refused:
        return [
            f"Coupling: {share} of ||A||_F^2 lies off the block diagonal: so much is left out by block-diagonal "
            "thinking."
        ]
    left_out = [f"{some(analysis.uncovered)} in no block"] if analysis.uncovered else []
    left_out += [f"{some(refused)} refused"] if refused else []
    return [
        f"Coupling: among the blocks analysed {share} of ||A||_F^2 lies off the block diagonal. It says nothing about "
        f"the rest of the model ({'; '.join(left_out)})."
    ]


def _drawn(analysis: AnalysisRecord) -> list[str]:
    """How the densities were made; they are shown as figures, not in the table."""
    found = [s for s in analysis.spectra() if s.density is not None]
    if not found:
        return []
    made = counted(len(found), "spectral density", "spectral densities")
    sampled = [s.density for s in found if s.density is not None and s.density.probes]
    how = []
    if sampled:
        steps, probes = max(d.steps for d in sampled), counted(sampled[0].probes, "random vector")
        how.append(f"{counted(steps, 'Lanczos step')} from {probes}")
    if whole := len(found) - len(sampled):
        how.append(f"{whole} from whole spectra")
    return [f'{made} ({"; ".join(how)}): the report draws them, to_frame("density") has their values.']


def _asked(spectrum: Spectrum) -> bool:
    estimated = any(part is not None for part in (spectrum.trace, spectrum.density, spectrum.diagonal))
    return estimated or any(not math.isnan(error) for error in spectrum.sampling_errors)


def _line(spectrum: Spectrum) -> Line:
    found = derive(spectrum)
    trace = spectrum.trace
    sampled = float(spectrum.sampling_errors[0]) if len(spectrum.sampling_errors) else math.nan
    of_trace = trace.sampling_error if trace is not None else math.nan
    return Line(
        name="full model" if spectrum.name == FULL_NAME else plain(spectrum.name),
        cells={
            "trace": "-" if trace is None else _figure(found.trace),
            "mean": _figure(found.mean_curvature),
            "diagonal": _diagonal(spectrum),
            "top_sum": _figure(found.top_sum) if spectrum.end.count("top") > 1 else "-",
            "top_share": share_with_error(found.top_share.value, found.top_share.error),
            "top_condition": _figure(found.top_condition),
            "stable_rank": _figure(found.stable_rank),
            "effective_rank": _figure(found.effective_rank),
            "damping": _damping(found.damping),
            "sampling_top": number(sampled, 2),
            "sampling_trace": number(of_trace, 2),
        },
        ok=spectrum.ok or not spectrum.solved,
    )


def _diagonal(spectrum: Spectrum) -> str:
    if spectrum.diagonal is None:
        return "-"
    norms = [
        math.sqrt(sum(float(part.square().sum()) for part in parts.values()))
        for parts in (spectrum.diagonal.value, spectrum.diagonal.standard_error)
    ]
    return _estimate(*norms)


def _damping(figure: Figure) -> str:
    """The bound is part of the value already: with this damping no eigenvalue can be negative."""
    return f"≥ {rounded_up(figure.value)}" if figure.value > 0.0 else number(figure.value)


def _figure(figure: Figure) -> str:
    return _estimate(figure.value, figure.error) if figure.known else "-"


def _estimate(value: float, error: float) -> str:
    return number(value) if error == 0.0 else with_bound(value, error)

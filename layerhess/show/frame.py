"""An analysis as a pandas table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from layerhess.errors import InputError
from layerhess.linalg.estimates import DensityEstimate
from layerhess.results.data_frame import data_frame
from layerhess.results.derived import Derived, derive
from layerhess.results.spectrum import AnalysisRecord, Spectrum
from layerhess.show.summary import operator_of

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "block",
    "operator",
    "numel",
    "index",
    "end",
    "eigenvalue",
    "error_bound",
    "lower",
    "upper",
    "conditional_bound",
    "converged",
    "complete",
    "status",
    "sampling_error",
    "weight_norm_squared",
)
BLOCK_COLUMNS = (
    "block",
    "operator",
    "numel",
    "lambda_max",
    "lambda_max_bound",
    "lambda_max_upper",
    "lambda_min",
    "lambda_min_bound",
    "lambda_min_lower",
    "trace",
    "trace_standard_error",
    "trace_low",
    "trace_high",
    "trace_sampling_error",
    *(f"{item.name}{suffix}" for item in fields(Derived) if item.name != "trace" for suffix in ("", "_error")),
    "status",
)
DENSITY_COLUMNS = ("block", "operator", "eigenvalue", "density", "low", "high")
DIAGONAL_COLUMNS = ("block", "operator", "parameter", "index", "value", "standard_error")
COUPLING_COLUMNS = ("block", "other", "operator", "norm", "standard_error", "divergence", "divergence_error")
_NUMBERS = ("eigenvalue", "error_bound", "lower", "upper", "conditional_bound", "sampling_error")
TABLES = {
    "eigenvalues": COLUMNS,
    "blocks": BLOCK_COLUMNS,
    "density": DENSITY_COLUMNS,
    "diagonal": DIAGONAL_COLUMNS,
    "coupling": COUPLING_COLUMNS,
}


def to_frame(analysis: AnalysisRecord, table: str = "eigenvalues") -> pd.DataFrame:
    """One row per eigenvalue, block, ..., blocks in model order and then the full model ("(full)").

    A spectrum without eigenvalues (refused) has one row with NaN, so that it is not overlooked.

    Args:
        analysis: the result to tabulate.
        table: "eigenvalues"; "blocks" for traces and all that is derived from eigenvalues, trace and density;
            "density", a row per point of each density's grid (of a logarithmic one: per decade, for either sign);
            "diagonal", a row per entry (``index`` in the flattened
            parameter); "coupling", a row per pair of blocks. Empty if that was not asked for.

    Returns:
        A frame with the columns of :data:`TABLES`; all numbers are float64 and absolute.

    Raises:
        InputError: unknown table; pandas is not installed.
    """
    if table not in TABLES:
        raise InputError(
            f"there is no table {table!r}",
            where="Analysis.to_frame",
            what_to_do="use " + " or ".join(repr(name) for name in TABLES),
        )
    makers = {
        "eigenvalues": _eigenvalues, "blocks": _blocks, "density": _densities, "diagonal": _diagonals,
        "coupling": _couplings,
    }  # fmt: skip
    otherwise = "read analysis.blocks[name].eigenvalues directly"
    return data_frame(makers[table](analysis), TABLES[table], "Analysis.to_frame", otherwise)


def _blocks(analysis: AnalysisRecord) -> list[dict[str, Any]]:
    return [_block(spectrum) for spectrum in analysis.spectra()]


def _eigenvalues(analysis: AnalysisRecord) -> list[dict[str, Any]]:
    nan = float("nan")
    rows: list[dict[str, Any]] = []
    for spectrum in analysis.spectra():
        common = {
            "block": spectrum.name,
            "operator": spectrum.operator,
            "numel": spectrum.numel,
            "complete": spectrum.complete,
            "status": spectrum.status,
            "weight_norm_squared": spectrum.weight_norm_squared,
        }
        for index in range(len(spectrum.eigenvalues)):
            pair = {
                "index": index,
                "end": spectrum.end[index],
                "eigenvalue": float(spectrum.eigenvalues[index]),
                "error_bound": float(spectrum.error_bounds[index]),
                "lower": float(spectrum.interval[index, 0]),
                "upper": float(spectrum.interval[index, 1]),
                "conditional_bound": float(spectrum.conditional_bounds[index]),
                "converged": bool(spectrum.converged[index]),
                "sampling_error": float(spectrum.sampling_errors[index]),
            }
            rows.append(common | pair)
        if not len(spectrum.eigenvalues):
            nothing = dict.fromkeys(_NUMBERS, nan)
            rows.append(common | {"index": 0, "end": "", "converged": False} | nothing)
    return rows


def _densities(analysis: AnalysisRecord) -> list[dict[str, Any]]:
    return [
        dict(zip(DENSITY_COLUMNS, (s.name, s.operator, *map(float, point)), strict=True))
        for s in analysis.spectra()
        if (d := s.density) is not None
        for point in _points(d)
    ]


def _points(density: DensityEstimate) -> Iterator[tuple[float, ...]]:
    """The curve's points, eigenvalues ascending; on a logarithmic axis both signs, and densities by decades."""
    if density.axis == "log":
        negative = density.value_negative, density.low_negative, density.high_negative
        yield from zip(-density.grid[::-1], *(curve[::-1] for curve in negative), strict=True)
    yield from zip(density.grid, density.value, density.low, density.high, strict=True)


def _diagonals(analysis: AnalysisRecord) -> dict[str, Any]:
    """Made column by column, since there are many entries."""
    parts = [
        (spectrum, name, value.reshape(-1).numpy(), spectrum.diagonal.standard_error[name].reshape(-1).numpy())
        for spectrum in analysis.spectra()
        if spectrum.diagonal is not None
        for name, value in spectrum.diagonal.value.items()
    ]
    if not parts:
        return {}
    sizes = [len(value) for _, _, value, _ in parts]
    return {
        "block": np.repeat([spectrum.name for spectrum, *_ in parts], sizes),
        "operator": np.repeat([spectrum.operator for spectrum, *_ in parts], sizes),
        "parameter": np.repeat([name for _, name, *_ in parts], sizes),
        "index": np.concatenate([np.arange(size) for size in sizes]),
        "value": np.concatenate([value for *_, value, _ in parts]),
        "standard_error": np.concatenate([error for *_, error in parts]),
    }


def _couplings(analysis: AnalysisRecord) -> list[dict[str, Any]]:
    found = analysis.coupling
    if found is None:
        return []
    unknown = np.full_like(found.value, np.nan)
    tables = [
        found.value,
        found.standard_error,
        unknown if found.divergence is None else found.divergence,
        unknown if found.divergence_error is None else found.divergence_error,
    ]
    operator = operator_of(analysis)
    return [
        dict(zip(COUPLING_COLUMNS, (block, other, operator, *(float(table[b, c]) for table in tables)), strict=True))
        for b, block in enumerate(found.blocks)
        for c, other in enumerate(found.blocks)
    ]


def _block(spectrum: Spectrum) -> dict[str, Any]:
    nan = float("nan")
    top, bottom, trace = spectrum.top or (nan, nan), spectrum.bottom or (nan, nan), spectrum.trace
    found = derive(spectrum)
    row: dict[str, Any] = {
        "block": spectrum.name,
        "operator": spectrum.operator,
        "numel": spectrum.numel,
        "lambda_max": top[0],
        "lambda_max_bound": top[1],
        "lambda_max_upper": spectrum.highest,
        "lambda_min": bottom[0],
        "lambda_min_bound": bottom[1],
        "lambda_min_lower": spectrum.deepest,
        "trace": nan if trace is None else trace.value,
        "trace_standard_error": nan if trace is None else trace.standard_error,
        "trace_low": nan if trace is None else trace.low,
        "trace_high": nan if trace is None else trace.high,
        "trace_sampling_error": nan if trace is None else trace.sampling_error,
        "status": spectrum.status,
    }
    for item in fields(Derived)[1:]:  # the trace has columns of its own
        figure = getattr(found, item.name)
        row[item.name], row[f"{item.name}_error"] = figure.value, figure.error
    return row

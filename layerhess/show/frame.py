"""An analysis as a pandas table."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from layerhess.derived import Derived, derive
from layerhess.errors import InputError
from layerhess.results import Analysis, Spectrum

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
    "lambda_min",
    "lambda_min_bound",
    "trace",
    "trace_standard_error",
    "trace_low",
    "trace_high",
    "trace_sampling_error",
    *(f"{item.name}{suffix}" for item in fields(Derived) for suffix in ("", "_error")),
    "status",
)
TABLES = ("eigenvalues", "blocks")


def to_frame(analysis: Analysis, table: str = "eigenvalues") -> pd.DataFrame:
    """One row per eigenvalue or per block, blocks in model order and then the full model ("(full)").

    A spectrum without eigenvalues (refused) has one row with NaN in it, so that it cannot be overlooked.

    Args:
        analysis: the result to tabulate.
        table: "eigenvalues", or "blocks" for traces and all that is derived from eigenvalues, trace and density.

    Returns:
        A frame with the columns of ``COLUMNS`` or ``BLOCK_COLUMNS``; all numbers are float64 and absolute.

    Raises:
        InputError: unknown table; pandas is not installed.
    """
    if table not in TABLES:
        raise InputError(
            f"there is no table {table!r}", where="Analysis.to_frame", what_to_do="use 'eigenvalues' or 'blocks'"
        )
    try:
        import pandas as pd
    except ImportError as error:
        raise InputError(
            "to_frame() makes a pandas table, and pandas is not installed",
            where="Analysis.to_frame",
            what_to_do="pip install pandas, or read analysis.blocks[name].eigenvalues directly",
        ) from error
    if table == "blocks":
        return pd.DataFrame([_block(s) for s in analysis.spectra()], columns=list(BLOCK_COLUMNS))
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
                "conditional_bound": float(spectrum.conditional_bounds[index]),
                "converged": bool(spectrum.converged[index]),
                "sampling_error": float(spectrum.sampling_errors[index]),
            }
            rows.append(common | pair)
        if not len(spectrum.eigenvalues):
            nothing = dict.fromkeys(("eigenvalue", "error_bound", "conditional_bound", "sampling_error"), nan)
            rows.append(common | {"index": 0, "end": "", "converged": False} | nothing)
    return pd.DataFrame(rows, columns=list(COLUMNS))


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
        "lambda_min": bottom[0],
        "lambda_min_bound": bottom[1],
        "trace": nan if trace is None else trace.value,
        "trace_standard_error": nan if trace is None else trace.standard_error,
        "trace_low": nan if trace is None else trace.low,
        "trace_high": nan if trace is None else trace.high,
        "trace_sampling_error": nan if trace is None else trace.sampling_error,
        "status": spectrum.status,
    }
    for item in fields(Derived):
        figure = getattr(found, item.name)
        row[item.name], row[f"{item.name}_error"] = figure.value, figure.error
    return row

"""An analysis as a pandas table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerhess.errors import InputError
from layerhess.results import Analysis

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
    "weight_norm_squared",
)


def to_frame(analysis: Analysis) -> pd.DataFrame:
    """One row per eigenvalue, blocks in model order and then the full model ("(full)").

    A spectrum without eigenvalues (refused) has one row with NaN in it, so that it cannot be overlooked.

    Args:
        analysis: the result to tabulate.

    Returns:
        A frame with the columns of ``COLUMNS``; eigenvalues and bounds are float64 and absolute.

    Raises:
        InputError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise InputError(
            "to_frame() makes a pandas table, and pandas is not installed",
            where="Analysis.to_frame",
            what_to_do="pip install pandas, or read analysis.blocks[name].eigenvalues directly",
        ) from error
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
            }
            rows.append(common | pair)
        if not len(spectrum.eigenvalues):
            nothing = dict.fromkeys(("eigenvalue", "error_bound", "conditional_bound"), float("nan"))
            rows.append(common | {"index": 0, "end": "", "converged": False} | nothing)
    return pd.DataFrame(rows, columns=list(COLUMNS))

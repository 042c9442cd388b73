"""Comparisons as a pandas table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from layerhess.results.comparison import BlockComparison, ComparisonRecord
from layerhess.results.data_frame import data_frame

if TYPE_CHECKING:
    import pandas as pd

PLAIN = (
    "log_ratio", "error_bound", "standard_error", "freedom", "paired", "p_value", "significant", "scale_free_log_ratio",
    "scale_free_significant", "overlap", "angle_bound", "divergence", "divergence_error", "spaces", "status",
)  # fmt: skip
COLUMNS = ("block", "first", "second", "first_lambda_max", "second_lambda_max", *PLAIN, "largest_angle")


def to_frame(pairs: Sequence[ComparisonRecord]) -> pd.DataFrame:
    """One row per block and pair of analyses, in their order.

    Args:
        pairs: comparisons of other analyses with the same first one.

    Raises:
        InputError: pandas is not installed.
    """
    rows = [_row(pair, block) for pair in pairs for block in pair.blocks.values()]
    return data_frame(rows, COLUMNS, "Comparison.to_frame", "read comparison.blocks[name] directly")


def _row(pair: ComparisonRecord, block: BlockComparison) -> dict[str, Any]:
    return {
        "block": block.name,
        "first": pair.first,
        "second": pair.second,
        "first_lambda_max": block.first,
        "second_lambda_max": block.second,
        **{name: getattr(block, name) for name in PLAIN},
        "largest_angle": float(block.angles[-1]),
    }

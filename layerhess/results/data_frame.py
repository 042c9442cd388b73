"""Tables of results as pandas frames; pandas is optional."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from layerhess.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def data_frame(data: Any, columns: Sequence[str], where: str, otherwise: str) -> pd.DataFrame:
    """A frame of these rows, or of arrays by column.

    Args:
        where: the method that was called. otherwise: what to do without pandas.

    Raises:
        InputError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise InputError(
            "to_frame() makes a pandas table, and pandas is not installed",
            where=where,
            what_to_do=f"pip install 'layerhess[pandas]', or {otherwise}",
        ) from error
    return pd.DataFrame(data, columns=list(columns))

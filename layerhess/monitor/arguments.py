"""Checks the arguments of a monitor before the training begins."""

from __future__ import annotations

import math
import os
from numbers import Real
from pathlib import Path
from typing import Any

from layerhess.errors import InputError
from layerhess.results.result_folder import ANALYSIS, PLAN


def checked_overhead(overhead: Any) -> float | None:
    """The share of the training's time, or None.

    Raises:
        InputError: not a number above 0.
    """
    if overhead is None:
        return None
    if isinstance(overhead, bool) or not isinstance(overhead, Real) or not 0.0 < float(overhead) < math.inf:
        raise InputError(
            f"overhead is {overhead!r}",
            where="overhead",
            what_to_do="use a share above 0, such as 0.05 for 5 % of the training's time, or None",
        )
    return float(overhead)


def check_data(data: Any) -> None:
    """Refuse a loader whose iterator may be the training's own.

    Raises:
        InputError: its workers are persistent.
    """
    if getattr(data, "persistent_workers", False):
        raise InputError(
            "the data is a loader with persistent workers: to read it while the training does would start its epoch "
            "anew",
            where="data",
            what_to_do="give the monitor a list of batches, or a loader of its own without persistent_workers",
        )


def usable_folder(path: str | Path) -> Path:
    """The folder for results, made if it is missing.

    Raises:
        InputError: no path; it cannot be made or written; it holds an analysis or a plan, whose page would be replaced.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"out is {path!r}", where="out", what_to_do="give the path of a folder")
    folder = Path(path).expanduser().absolute()
    held = next((kind for kind in (ANALYSIS, PLAN) if (folder / kind.numbers).exists()), None)
    if held is not None:
        raise InputError(
            f"the results folder holds {held.article} {held.noun}, whose page the monitor would replace",
            where=str(folder),
            what_to_do="choose another out=",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the results folder cannot be made ({error.strerror})", where=str(folder), what_to_do="choose another out="
        ) from error
    if not os.access(folder, os.W_OK):
        raise InputError("the results folder cannot be written", where=str(folder), what_to_do="choose another out=")
    return folder

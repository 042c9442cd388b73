"""Takes NumPy arrays in batches as tensors, and says what to pass instead of data frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerhess.errors import InputError
from layerhess.objective.containers import tree_map

NUMBERS = "biufc"  # kinds of NumPy's dtypes that tensors have


def as_tensors(batch: Any) -> Any:
    """The batch with NumPy arrays of numbers as tensors of the same dtype, which may share their memory.

    Raises:
        InputError: it holds a data frame, or a column of one.
    """
    return tree_map(lambda tensor: tensor, batch, _taken)


def refuse_frame(value: Any, where: str = "data") -> None:
    """Refuse a data frame, or a column of one.

    Raises:
        InputError: with the spelling that makes tensors of it.
    """
    if type(value).__module__.split(".")[0] in ("pandas", "polars") and hasattr(value, "to_numpy"):
        kind = f"{type(value).__module__.split('.')[0]} {type(value).__name__}"
        raise InputError(
            f"a {kind} is given, and its columns may be of any kind",
            where=where,
            what_to_do="pass tensors: x = torch.tensor(frame[names].to_numpy(dtype='float32')), likewise the target y, "
            "and (x, y) as the data",
        )


def _taken(leaf: Any) -> Any:
    refuse_frame(leaf)
    if not isinstance(leaf, np.ndarray) or leaf.dtype.kind not in NUMBERS:
        return leaf
    usable = leaf.flags.writeable and leaf.dtype.isnative and all(step >= 0 for step in leaf.strides)
    return _tensor(leaf if usable else np.array(leaf, dtype=leaf.dtype.newbyteorder("=")))


def _tensor(array: Any) -> Tensor | Any:
    try:
        return torch.from_numpy(array)
    except TypeError:  # a number format that torch does not have
        return array

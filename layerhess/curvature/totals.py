"""Adds up over batches: every sum over the data, of losses, products or matrices, is made by the loop here."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from layerhess.linalg.eigen.row_sum import RowSum

Part = TypeVar("Part")
WHOLE = slice(None)


class Totals:
    """Sums over batches, each under its own key.

    Three kinds: sums of numbers and tensors (:meth:`add`), lists with one entry per batch or group, in the order of the
    data (:meth:`append`), and matrices R' D R from their rows (:meth:`add_rows`).

    Attributes:
        dropped: keys that have no sum because some batch could not contribute -> why.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._sums: dict[Hashable, Any] = {}
        self._lists: dict[Hashable, list[Any]] = {}
        self._rows: dict[Hashable, RowSum] = {}
        self.dropped: dict[Hashable, str] = {}

    def open(self, key: Hashable, *shape: int) -> None:
        """Begin a float64 sum of this shape with zeros, unless there is one already."""
        if key not in self._sums:
            self._sums[key] = torch.zeros(shape, dtype=torch.float64, device=self._device)

    def add(self, key: Hashable, value: Tensor | float, rows: slice = WHOLE, columns: slice | None = None) -> None:
        """Add a number or a tensor; with ``columns``, to that part of an opened (s, n) sum.

        Does nothing for a key that was dropped.
        """
        if key in self.dropped:
            return
        if columns is not None:
            self._sums[key][rows, columns] += value
        elif key in self._sums:
            self._sums[key] = self._sums[key] + value
        else:
            self._sums[key] = value

    def append(self, key: Hashable, *values: Any) -> None:
        """Append these to the key's list."""
        if key not in self.dropped:
            self._lists.setdefault(key, []).extend(values)

    def add_rows(self, key: Hashable, n: int, rows: Iterable[tuple[Tensor, Tensor]], room: int) -> bool:
        """Add R' D R, (n, n), for pairs (R, signs of D); False once all rows take more than ``room`` bytes."""
        own = self._rows.setdefault(key, RowSum(n, self._device or torch.device("cpu")))
        for piece, signs in rows:
            own.add(piece, signs)
            if self.row_bytes > room:
                return False
        return True

    def drop(self, key: Hashable, why: str) -> None:
        """Delete what this key has, and ignore what is added to it later."""
        self._sums.pop(key, None)
        self._lists.pop(key, None)
        self._rows.pop(key, None)
        self.dropped[key] = why

    def total(self, key: Hashable) -> Any:
        """The sum; 0.0 if nothing was added."""
        return self._sums.get(key, 0.0)

    def totals(self, kind: str) -> dict[Any, Any]:
        """All sums whose key is (kind, name), by name."""
        return {key[1]: value for key, value in self._sums.items() if isinstance(key, tuple) and key[0] == kind}

    def listed(self, key: Hashable) -> list[Any]:
        """The key's list, in order."""
        return self._lists.get(key, [])

    def rows(self) -> dict[Any, RowSum]:
        """The sums of rows, by key."""
        return self._rows

    @property
    def row_bytes(self) -> int:
        """Bytes that the rows take."""
        return sum(rows.nbytes for rows in self._rows.values())


def add_up(
    parts: Iterable[Part],
    share: Callable[[Part, Totals], None],
    *,
    checkpoint: Callable[[], None] = lambda: None,
    device: torch.device | None = None,
) -> Totals:
    """Call ``share`` for every part of the data, in order.

    No other code adds up over the data. Several processes would exchange their sums here, and a pass could be saved and
    resumed here.

    Args:
        parts: batches, or what was made of them. share: adds what one part contributes. checkpoint: called before each
            part; raises to stop (on an interrupt). device: of the sums.
    """
    totals = Totals(device)
    for part in parts:
        checkpoint()
        share(part, totals)
    return totals

"""What is added up over batches: the one loop whose sums all results are made of."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from layerhess.linalg.eigen.row_sum import RowSum

Part = TypeVar("Part")
WHOLE = slice(None)


class Totals:
    """What batches add up to, each sum under a key of its own.

    Three kinds of sums: numbers and tensors (:meth:`add`), lists of what is kept apart by batch or by group, in the
    order of the data (:meth:`append`), and matrices R' D R from their rows (:meth:`add_rows`).

    Attributes:
        dropped: keys that some batch could not serve -> why; there is no sum of those.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._sums: dict[Hashable, Any] = {}
        self._lists: dict[Hashable, list[Any]] = {}
        self._rows: dict[Hashable, RowSum] = {}
        self.dropped: dict[Hashable, str] = {}

    def open(self, key: Hashable, *shape: int) -> None:
        """A float64 sum of this shape that begins with zeros, unless there is one."""
        if key not in self._sums:
            self._sums[key] = torch.zeros(shape, dtype=torch.float64, device=self._device)

    def add(self, key: Hashable, value: Tensor | float, rows: slice = WHOLE, columns: slice | None = None) -> None:
        """Add a number or a tensor; with ``columns``, to that part of an (s, n) sum that was opened.

        What is dropped takes nothing more.
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
        """Keep these apart, after those of earlier batches."""
        if key not in self.dropped:
            self._lists.setdefault(key, []).extend(values)

    def add_rows(self, key: Hashable, n: int, rows: Iterable[tuple[Tensor, Tensor]], room: int) -> bool:
        """Add R' D R, (n, n), for pieces (R, signs of D); False once all rows take more than ``room`` bytes."""
        own = self._rows.setdefault(key, RowSum(n, self._device or torch.device("cpu")))
        for piece, signs in rows:
            own.add(piece, signs)
            if self.row_bytes > room:
                return False
        return True

    def drop(self, key: Hashable, why: str) -> None:
        """There will be no sum under this key; what there was of it is gone."""
        self._sums.pop(key, None)
        self._lists.pop(key, None)
        self._rows.pop(key, None)
        self.dropped[key] = why

    def total(self, key: Hashable) -> Any:
        """What was added; 0.0 where nothing was."""
        return self._sums.get(key, 0.0)

    def totals(self, kind: str) -> dict[Any, Any]:
        """All sums whose key is (kind, name), by name."""
        return {key[1]: value for key, value in self._sums.items() if isinstance(key, tuple) and key[0] == kind}

    def listed(self, key: Hashable) -> list[Any]:
        """What was kept apart, in order."""
        return self._lists.get(key, [])

    def rows(self) -> dict[Any, RowSum]:
        """The sums of rows, by key."""
        return self._rows

    @property
    def row_bytes(self) -> int:
        """What the rows take."""
        return sum(rows.nbytes for rows in self._rows.values())


def add_up(
    parts: Iterable[Part],
    share: Callable[[Part, Totals], None],
    *,
    checkpoint: Callable[[], None] = lambda: None,
    device: torch.device | None = None,
) -> Totals:
    """Let every part of the data add its share, in order.

    Nothing that is made of all the data is added up anywhere else: many processes would exchange their sums here, and a
    pass could be saved and gone on with here.

    Args:
        parts: batches, or what was made of them. share: adds what one part contributes. checkpoint: called before each
            part; raises to stop (an interrupt that waited). device: of the sums.
    """
    totals = Totals(device)
    for part in parts:
        checkpoint()
        share(part, totals)
    return totals

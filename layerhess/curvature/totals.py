"""Adds up over batches: every sum over the data, of losses, products or matrices, is made by the loop here."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from layerhess.errors import InputError
from layerhess.linalg.eigen.row_sum import RowOutline, RowSum
from layerhess.objective.group import ALONE, Group
from layerhess.objective.interrupts import safe_point

Part = TypeVar("Part")
WHOLE = slice(None)
ALIGNED = 64  # bytes, of what torch allocates
LARGE = 1 << 16  # numbers of a sum, from which on it is exchanged where it lies, not copied beside others
SUMS = "sums"  # a kind of exchange
ENTRIES = "entries"  # a kind of sums: the (number, ...) entries of a list


@dataclass
class Listing:
    """How what is listed for each part of the data becomes the entries of a list.

    Attributes:
        joined: so many parts in a row are added up in one entry; ranks have entries of their own. number: where it is
            known how many entries there are, what is listed is added to entry number ``place``, on all ranks.
    """

    joined: int = 1
    number: int = 0
    place: int = 0


@dataclass(frozen=True)
class _Own:
    """What a rank tells of its share before the sums themselves are exchanged.

    Attributes:
        asked: digest of what is asked of all. shapes: of its sums; None for a number. lists, rows, dropped: as in
            :class:`Totals`.
    """

    asked: str
    shapes: dict[Hashable, tuple[int, ...] | None]
    lists: dict[Hashable, list[Any]]
    rows: dict[Hashable, RowOutline]
    dropped: dict[Hashable, str]


class Totals:
    """Sums over batches, each under its own key.

    Three kinds: sums of numbers and tensors (:meth:`add`), lists with one entry per batch in the order of the data, or
    as a :class:`Listing` has it (:meth:`append`), and matrices R' D R from their rows (:meth:`add_rows`).

    Attributes:
        dropped: keys that have no sum because some batch could not contribute -> why.
    """

    def __init__(self, device: torch.device | None = None, listing: Listing | None = None) -> None:
        self._device = device
        self._listing = Listing() if listing is None else listing
        self._appended: dict[Hashable, int] = {}
        self._sums: dict[Hashable, Any] = {}
        self._lists: dict[Hashable, list[Any]] = {}
        self._rows: dict[Hashable, RowSum] = {}
        self.dropped: dict[Hashable, str] = {}

    def open(self, key: Hashable, *shape: int, device: torch.device | None = None) -> None:
        """Begin a float64 sum of this shape with zeros, unless there is one already."""
        if key not in self._sums:
            self._sums[key] = torch.zeros(shape, dtype=torch.float64, device=device or self._device)

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
        """Append these to the key's list, or add them to its entries; see :class:`Listing`."""
        if key in self.dropped:
            return
        if entries := self._listing.number:
            for value in values:
                part = torch.as_tensor(value, dtype=torch.float64, device="cpu")
                self._sums.setdefault((ENTRIES, key), torch.zeros((entries, *part.shape), dtype=torch.float64))
                self._sums[ENTRIES, key][self._listing.place] += part
            return
        own, number = self._lists.setdefault(key, []), self._appended.get(key, 0)
        for place, value in enumerate(values, number):
            if place % self._listing.joined:
                own[-1] = own[-1] + value
            else:
                own.append(value)
        self._appended[key] = number + len(values)

    def add_rows(
        self,
        key: Hashable,
        n: int,
        rows: Iterable[tuple[Tensor, Tensor]],
        room: int,
        device: torch.device | None = None,
    ) -> bool:
        """Add R' D R, (n, n), for pairs (R, signs of D); False once all rows take more than ``room`` bytes."""
        own = self._rows.setdefault(key, RowSum(n, device or self._device or torch.device("cpu")))
        for piece, signs in rows:
            own.add(piece, signs)
            if self.row_bytes > room:
                return False
        return True

    def drop(self, key: Hashable, why: str) -> None:
        """Delete what this key has, and ignore what is added to it later."""
        self._sums.pop(key, None)
        self._sums.pop((ENTRIES, key), None)
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
        """The key's list, in order; of entries that were added up, numbers or tensors on the CPU."""
        if (own := self._sums.get((ENTRIES, key))) is not None and key not in self.dropped:
            return own.tolist() if own.ndim == 1 else list(own.cpu())
        return self._lists.get(key, [])

    def rows(self) -> dict[Any, RowSum]:
        """The sums of rows, by key."""
        return self._rows

    def lay_out(self) -> None:
        """Give every tensor the memory it has after :meth:`of`: last digits of products may depend on alignment."""
        self._sums = {key: _laid_out(value) for key, value in self._sums.items()}
        self._lists = {key: [_laid_out(value) for value in values] for key, values in self._lists.items()}
        for key, rows in self._rows.items():
            state = {k: _each(_laid_out, v) for k, v in rows.state().items()}
            self._rows[key] = RowSum.of(state, self._device or torch.device("cpu"))

    def content(self) -> tuple[dict[str, Any], list[Tensor]]:
        """Everything in JSON types, and the tensors that it refers to by their places; :meth:`of` is the way back."""
        tensors: list[Tensor] = []

        def plain(value: Any) -> Any:
            if isinstance(value, Tensor):
                tensors.append(value)
                return {"tensor": len(tensors) - 1, "here": value.device.type != "cpu"}
            return value

        def listed(values: list[Any]) -> Any:
            if values and all(type(value) is float for value in values):  # one a batch, of which there may be many
                return plain(torch.tensor(values, dtype=torch.float64))
            return [plain(value) for value in values]

        kept = {
            "sums": [[_spelled(key), plain(value)] for key, value in self._sums.items()],
            "lists": [[_spelled(key), listed(values)] for key, values in self._lists.items()],
            "rows": [[_spelled(key), {k: _each(plain, v) for k, v in rows.state().items()}]
                     for key, rows in self._rows.items()],
            "dropped": [[_spelled(key), why] for key, why in self.dropped.items()],
        }  # fmt: skip
        return kept, tensors

    @classmethod
    def of(cls, kept: dict[str, Any], tensors: Sequence[Tensor], device: torch.device | None = None) -> Totals:
        """The totals with this :meth:`content`; what was not on the CPU goes to ``device``."""
        made = cls(device)

        def whole(value: Any) -> Any:
            if not isinstance(value, dict):
                return value
            tensor = tensors[value["tensor"]]
            return tensor.to(device) if value["here"] else tensor

        made._sums = {_read(key): whole(value) for key, value in kept["sums"]}
        made._lists = {
            _read(key): whole(values).tolist() if isinstance(values, dict) else [whole(value) for value in values]
            for key, values in kept["lists"]
        }
        for key, state in kept["rows"]:
            made._rows[_read(key)] = RowSum.of(
                {k: _each(whole, v) for k, v in state.items()}, device or torch.device("cpu")
            )
        made.dropped = {_read(key): why for key, why in kept["dropped"]}
        return made

    @property
    def row_bytes(self) -> int:
        """Bytes that the rows take."""
        return sum(rows.nbytes for rows in self._rows.values())

    def complete(self, group: Group, failure: BaseException | None, asked: str = "") -> None:
        """Add what the other ranks have, so that every rank holds the sums over all data; lists are joined by rank.

        Args:
            failure: what this rank's share ended with, if it failed. asked: digest of the question, the same on all.

        Raises:
            InputError: the ranks were asked different things. BaseException: see
            :meth:`layerhess.objective.group.Group.gathered`.
        """
        if group.size == 1:
            return
        lists = {key: [_sent(value) for value in values] for key, values in self._lists.items()}
        shapes = {k: tuple(v.shape) if isinstance(v, Tensor) else None for k, v in self._sums.items()}
        outlines = {key: rows.outline for key, rows in self._rows.items()}
        told = group.gathered(_Own(asked, shapes, lists, outlines, self.dropped), SUMS, failure)
        differ = [rank for rank, own in enumerate(told) if own.asked != told[0].asked]
        if differ or any(
            own.shapes.get(key, shape) != shape for own in told for other in told for key, shape in other.shapes.items()
        ):
            raise InputError(
                "the ranks ask for products of different vectors",
                where=f"rank 0 and rank {differ[0]}" if differ else "",
                what_to_do="give all ranks the same vectors, seeds and other arguments, and the same number of threads",
            )
        for own in told:
            for key, why in own.dropped.items():
                self.drop(key, why)
        self._lists = {k: [v for own in told for v in own.lists.get(k, [])] for own in told for k in own.lists}
        self._add_others({key: shape for own in told for key, shape in own.shapes.items()}, group)
        for key in dict.fromkeys(key for own in told for key in own.rows):
            if key not in self.dropped:
                every = [own.rows.get(key) for own in told]
                n = next(one.n for one in every if one is not None)
                mine = self._rows.setdefault(key, RowSum(n, self._device or torch.device("cpu")))
                mine.join(every, group.rank, group.add_up)
        for key in self.dropped:
            self._lists.pop(key, None)

    def _add_others(self, shapes: dict[Hashable, tuple[int, ...] | None], group: Group) -> None:
        """One exchange of all small sums together, and one of each large one."""
        asked = {key: shape for key, shape in shapes.items() if key not in self.dropped}
        sums = {
            key: torch.as_tensor(
                own := self._sums.get(key, 0.0), dtype=torch.float64, device=getattr(own, "device", self._device)
            ).expand(shape or ())
            for key, shape in asked.items()
        }
        small = {key: None for key, total in sums.items() if total.numel() < LARGE}
        flat = torch.cat([torch.zeros(0, dtype=torch.float64), *(sums[key].reshape(-1).cpu() for key in small)])
        parts = torch.split(group.add_up(flat), [sums[key].numel() for key in small])
        for key, part in zip(small, parts, strict=True):
            shape = asked[key]
            self._sums[key] = float(part) if shape is None else part.reshape(shape).to(sums[key])
        for key in [key for key in sums if key not in small]:
            self._sums[key] = group.add_up(sums[key])


def _sent(value: Any) -> Any:
    """A list's entry, in main memory."""
    return value.cpu() if isinstance(value, Tensor) else value


def _laid_out(value: Any) -> Any:
    if not isinstance(value, Tensor) or (value.is_contiguous() and value.data_ptr() % ALIGNED == 0):
        return value
    return value.clone(memory_format=torch.contiguous_format)


def _each(function: Callable[[Any], Any], value: Any) -> Any:
    return [function(item) for item in value] if isinstance(value, list) else function(value)


def _spelled(key: Hashable) -> Any:
    return list(map(_spelled, key)) if isinstance(key, tuple) else key


def _read(key: Any) -> Hashable:
    return tuple(map(_read, key)) if isinstance(key, list) else key


def add_up(
    parts: Iterable[Part],
    share: Callable[[Part, Totals], None],
    *,
    group: Group = ALONE,
    checkpoint: Callable[[], None] = safe_point,
    device: torch.device | None = None,
    listing: Listing | None = None,
    asked: str = "",
) -> Totals:
    """Call ``share`` for every part of the data, in order.

    No other code adds up over the data; the ranks of a group exchange their sums here.

    Args:
        parts: batches, or what was made of them. share: adds what one part contributes. group: the processes whose
            parts are all the data. checkpoint: called before each part; raises to stop (on an interrupt). device: of
            the sums. listing: how lists are made. asked: digest of the question, see :meth:`Totals.complete`.

    Raises:
        BaseException: of this rank's share, or of another's; see :meth:`layerhess.objective.group.Group.gathered`.
    """
    totals = Totals(device, listing)
    failure: BaseException | None = None
    try:
        for part in parts:
            checkpoint()
            share(part, totals)
    except BaseException as error:
        if group.size == 1:
            raise
        failure = error
    try:
        totals.complete(group, failure, asked)
    finally:
        del failure  # it holds what this frame does
    return totals

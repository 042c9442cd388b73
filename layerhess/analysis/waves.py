"""Which operators are solved at once, and how their solvers hold their vectors, so that a budget of memory holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from layerhess.analysis.paths.exact import LARGEST_WHOLE
from layerhess.curvature.data_pass import FULL
from layerhess.curvature.device import KEPT_SHARE, Budget
from layerhess.errors import InputError
from layerhess.linalg.eigen.krylov_basis import comfortable_basis
from layerhess.linalg.eigen.lanczos import BEYOND_LOCKED
from layerhess.linalg.eigen.process import Wanted

SOLVER_SHARE = 0.3  # of a budget, for the vectors of the solvers that run at once and the pairs that were found
LARGEST_SHARE = 0.6  # of it, at most: as much as the largest operator alone needs; kept graphs then have less
SOLVERS_AND_GRAPHS = 0.65  # of it, for both: the rest is for the graph at hand, estimates and rounding
WHOLE_SHARE = 0.1  # of it, for small operators that are kept whole
LEAST = 12  # rows: a restarted search for one pair takes a few percent more products than one with 160
ENOUGH = 40  # rows where something is to be excluded: with fewer a second search does that, at twice the price
IN_FLIGHT = 32  # bytes a number of a vector that is multiplied: product, what is left of it, a draw, the next vector


@dataclass(frozen=True)
class Held:
    """How a solver holds its basis: so many rows, each with its product, of this dtype, cut into slices for ranks."""

    rows: int
    dtype: torch.dtype
    ranks: int = 1

    def nbytes(self, n: int, width: int) -> int:
        """Of a solver of dimension n that asks for ``width`` products at a time; these are whole on every rank."""
        return 2 * self.rows * self.dtype.itemsize * -(-n // self.ranks) + n * width * (self.dtype.itemsize + IN_FLIGHT)


@dataclass(frozen=True)
class Waves:
    """The plan of an analysis.

    Attributes:
        waves: names of the operators that are solved at once, wave by wave. held: by name. nbytes: what the largest
            wave holds, with the pairs found in all of them. roomy: bases are comfortable, and can stay for estimates.
    """

    waves: tuple[tuple[str, ...], ...]
    held: Mapping[str, Held]
    nbytes: int
    roomy: bool = False

    def of(self, name: str) -> int:
        """The number of an operator's wave."""
        return next(i for i, wave in enumerate(self.waves) if name in wave)


def whole_rows(count: int, memory: Budget) -> int:
    """Dimension up to which each of ``count`` searches may keep as many rows as that, and so read the whole matrix."""
    return min(LARGEST_WHOLE, int((WHOLE_SHARE * memory.room / (16 * max(1, count))) ** 0.5))


def waves(
    sizes: Mapping[str, int],
    wanted: Wanted,
    memory: Budget,
    dtype: torch.dtype,
    *,
    exclude: float | None = None,
    width: int = 1,
    ranks: int = 1,
) -> Waves:
    """Divide operators into waves; depends on the arguments alone.

    Where float64 bases of a comfortable size fit for all of them together, there is one wave. Else each rank holds a
    slice of every row, if there are several; and where that is not enough, rows have the model's dtype (float32 at
    least), and there are as few waves as :data:`LEAST` rows need (:data:`ENOUGH`, where something is to be excluded and
    they fit); each wave's bases then get as many rows as there is room for.

    Args:
        sizes: name -> dimension. wanted: eigenpairs of each. dtype: of the model. width: products at a time. ranks:
            processes that may share the rows.

    Raises:
        InputError: not even the largest operator alone fits.
    """
    whole = whole_rows(sum(n <= LARGEST_WHOLE for n in sizes.values()), memory)
    held = {name: Held(n, torch.float64) for name, n in sizes.items() if n <= whole}
    small = sum(held[name].nbytes(sizes[name], width) for name in held)
    large = {name: n for name, n in sizes.items() if name not in held}
    comfortable = Held(comfortable_basis(wanted), torch.float64)
    share = SOLVER_SHARE * memory.room
    nbytes = small + comfortable.nbytes(sum(large.values()), width) + _pairs(sizes, wanted, comfortable)
    if nbytes <= share or not large:
        return Waves((tuple(sizes),), held | dict.fromkeys(large, comfortable), nbytes, roomy=True)
    if ranks > 1:
        comfortable = replace(comfortable, ranks=ranks)
        nbytes = small + comfortable.nbytes(sum(large.values()), width) + _pairs(sizes, wanted, comfortable)
        if nbytes <= share:
            return Waves((tuple(sizes),), held | dict.fromkeys(large, comfortable), nbytes)
    least = Held(max(LEAST, wanted.total + BEYOND_LOCKED), dtype if dtype == torch.float64 else torch.float32, ranks)
    found = _pairs(sizes, wanted, least) + small
    alone = least.nbytes(max(large.values(), default=0), width)
    if found + alone > LARGEST_SHARE * memory.room:
        raise _refusal(large, least, width, found, memory)
    room = max(share - found, alone)
    rows = least.rows if exclude is None else max(ENOUGH, least.rows)
    for name, n in large.items():
        held[name] = replace(least, rows=min(rows, _rows(n, room, least, width)))
    groups = groups_within({name: held[name].nbytes(n, width) for name, n in large.items()}, room)
    for group in groups:
        _widen(group, held, large, room, width, comfortable.rows)
    groups[0] += [name for name in sizes if name not in large]
    order = list(sizes)
    ordered = tuple(tuple(sorted(group, key=order.index)) for group in groups)
    return Waves(ordered, held, int(found + room))


def graphs_may_keep(graphs: Budget, memory: Budget, solvers: int) -> float:
    """Bytes of graphs that are kept between passes beside solvers that hold so much."""
    return max(0.0, min(KEPT_SHARE * graphs.room, SOLVERS_AND_GRAPHS * memory.room - solvers))


def groups_within(sizes: Mapping[str, int], room: float) -> list[list[str]]:
    """Divide names into groups whose sizes fit together: the largest first, each where it fits first."""
    groups: list[list[str]] = []
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        for group in groups:
            if sizes[name] + sum(sizes[other] for other in group) <= room:
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _pairs(sizes: Mapping[str, int], wanted: Wanted, held: Held) -> int:
    """Bytes of the eigenvectors of all operators."""
    return sum(sizes.values()) * wanted.total * held.dtype.itemsize


def _rows(n: int, room: float, least: Held, width: int) -> int:
    """How many rows of length n fit."""
    return int((room / n - width * (least.dtype.itemsize + IN_FLIGHT)) * least.ranks // (2 * least.dtype.itemsize))


def _widen(
    group: list[str], held: dict[str, Held], sizes: Mapping[str, int], room: float, width: int, most: int
) -> None:
    """Give all bases of a wave as many more rows as fit."""
    left = room - sum(held[name].nbytes(sizes[name], width) for name in group)
    one = held[group[0]]
    more = int(left * one.ranks // (2 * one.dtype.itemsize * sum(sizes[name] for name in group)))
    for name in group:
        rows = held[name].rows
        held[name] = replace(held[name], rows=max(rows, min(rows + more, most)))


def size(nbytes: float) -> str:
    """In words.

    >>> size(3.2e9), size(5e6)
    ('2.98 GiB', '4.77 MiB')
    """
    return f"{nbytes / 2**30:.3g} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.3g} MiB"


def _refusal(sizes: Mapping[str, int], least: Held, width: int, found: int, memory: Budget) -> InputError:
    name = max(sizes, key=lambda name: sizes[name])
    alone = least.nbytes(sizes[name], width)
    most = LARGEST_SHARE * memory.room
    fits = max(0, int((most - found) // least.nbytes(1, width)))
    needed = (found + alone) / LARGEST_SHARE / 2**20
    asked = f"{math.ceil(needed / 1024)}GiB" if needed > 1024 else f"{math.ceil(needed)}MiB"
    return InputError(
        f"the solvers' vectors do not fit into memory: {name!r} has {sizes[name]:,} parameters, and {least.rows} rows "
        f"with their products take {size(found + alone)} of the {size(most)} that solvers may have",
        where="memory",
        what_to_do=f"give memory='{asked}', or use {'full=False, ' if FULL in sizes else ''}fewer eigenvalues"
        + (f", or blocks of at most {fits:,} parameters" if fits else ""),
    )

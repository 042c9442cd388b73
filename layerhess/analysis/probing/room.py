"""How many vectors estimators may hold at a time, by the memory there is; refusals where it is too little."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from layerhess.analysis.estimate_options import EstimateOptions
from layerhess.analysis.waves import SOLVER_SHARE, size
from layerhess.curvature.device import Budget
from layerhess.errors import InputError
from layerhess.linalg.stochastic.density import Density

ROOM_SHARE = 0.1  # of the budget, for estimators beside the solvers' bases; where those were dropped, their share too
ROW = 8  # bytes of a number
PROBE = 5 * ROW  # of a full product: signs, their projection, all blocks joined, the product, what is made of it
DENSITY = 6 * ROW  # of a Lanczos step: two vectors, the product, its rest, the next vector, a copy
REUSED = 2 * ROW  # of a first product that is kept for other estimates
DIAGONAL = 8 * ROW  # moments of the samples, of blocks' own products and of full ones
SKETCH = 3 * ROW  # of a vector of XTrace and its kin: the most that is kept for each product
SMALL_BASES = 256 << 20  # bytes
MOST_PROBES = 64  # in one pass
LEAST_PRODUCTS = 32  # of a method that keeps its vectors: with fewer it says nothing
SHARED_METHODS = ("auto", "hutchinson")  # whose probes can be shared by all blocks


@dataclass(frozen=True)
class Room:
    """What estimators may hold, in bytes.

    Attributes:
        nbytes: in all. share: of the budget.
    """

    nbytes: float
    share: float = 1.0

    def rows(self, n: int, most: int) -> int:
        """How many whole columns of length n, each with what is made of it, fit."""
        return int(min(most, max(1, self.nbytes // (2 * ROW * n))))

    def probes(self, n: int, diagonal: bool = False, kinds: str = "") -> int:
        """How many probes of length n fit a pass; ``kinds``: of estimates that were asked for and need them.

        Raises:
            InputError: not even one.
        """
        left = self.nbytes - (DIAGONAL * n if diagonal else 0)
        if left < PROBE * n:
            raise self._refusal("random probes", n, PROBE + (DIAGONAL if diagonal else 0), kinds)
        return int(min(MOST_PROBES, left // (PROBE * n)))

    def densities(self, sizes: Mapping[str, int], probes: int, reused: bool) -> dict[str, int] | None:
        """How many probes of each density fit at a time; None if all of all densities do.

        Args:
            reused: the first products are kept for other estimates, where all fit.

        Raises:
            InputError: not even one of some density.
        """
        if sum(sizes.values()) * probes * (DENSITY + REUSED * reused) <= self.nbytes:
            return None
        together = {name: int(min(probes, self.nbytes // self.density(n, 1))) for name, n in sizes.items()}
        for name, number in together.items():
            if not number:
                raise self._refusal(f"one vector of the density of {name!r}", sizes[name], DENSITY, "density")
        return together

    @staticmethod
    def density(n: int, together: int) -> int:
        """Bytes of so many probes of a density."""
        return DENSITY * n * together

    def products(self, n: int, most: int, least: int, kind: str) -> int:
        """Of ``most`` products of a method that keeps what it made, as many as fit.

        Raises:
            InputError: fewer than ``least``.
        """
        fits = int(self.nbytes // (SKETCH * max(1, n)))
        if fits < least:
            raise self._refusal(f"{least} products of a method that keeps them", n, SKETCH * least, kind)
        return min(most, fits)

    def _refusal(self, what: str, n: int, each: int, kinds: str) -> InputError:
        needed = math.ceil(each * n / self.share / 2**20)
        return InputError(
            f"the vectors of {what} do not fit into memory: for {n:,} parameters they take {size(each * n)}, and "
            f"{size(self.nbytes)} are left",
            where="memory",
            what_to_do=f"give memory='{needed}MiB'" + (f", or leave out: {kinds}" if kinds else ""),
        )


def room_of(memory: Budget, beside: bool) -> Room:
    """The room in a budget.

    Args:
        beside: the solvers' bases are kept at the same time.
    """
    share = ROOM_SHARE if beside else ROOM_SHARE + SOLVER_SHARE
    return Room(share * memory.room, share)


def refuse_estimates(asked: EstimateOptions, sizes: Mapping[str, int], numel: int, room: Room) -> None:
    """Whether the least that the estimates hold fits, which the numbers of parameters alone decide.

    Args:
        sizes: name -> dimension, of the operators that are not read whole. numel: of all parameters that take part.

    Raises:
        InputError: it does not.
    """
    alone = [
        (kind, options)
        for kind, options in (("trace", asked.trace), ("diagonal", asked.diagonal))
        if options is not None and options.method not in SHARED_METHODS
    ]
    for kind, options in alone:
        room.products(sum(sizes.values()), options.probes or options.max_probes, options.probes or LEAST_PRODUCTS, kind)
    if asked.density is not None:
        room.densities(sizes, asked.density.probes, reused=False)
    kinds = dict(alone)
    given = {"trace": asked.trace, "diagonal": asked.diagonal, "coupling": asked.coupling}
    probed = [kind for kind, options in given.items() if options is not None and kind not in kinds]
    if probed:
        room.probes(numel, "diagonal" in probed, ", ".join(probed))


def keeps_bases(numel: int, options: Density, nbytes: float = SMALL_BASES) -> bool:
    """Whether densities of so many parameters in all keep their bases: where these are next to nothing.

    Args:
        nbytes: of them, at most; never more than :data:`SMALL_BASES`.
    """
    return ROW * options.steps * options.probes * numel <= min(SMALL_BASES, nbytes)


def finds_pairs(sizes: Mapping[str, int], options: Density, nbytes: float = SMALL_BASES) -> set[str]:
    """Of which operators the first vector's basis is kept, for the eigenpairs in it: the smallest, as many as fit.

    Args:
        nbytes: as for :func:`keeps_bases`.
    """
    left, found = min(SMALL_BASES, nbytes), set()
    for name, numel in sorted(sizes.items(), key=lambda item: item[1]):
        left -= 2 * ROW * min(options.steps, numel) * numel  # the vectors, and a copy when they are turned
        if left < 0:
            break
        found.add(name)
    return found

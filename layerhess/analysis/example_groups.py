"""Groups of examples whose spread gives sampling errors: dealt by content, or whole batches."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from layerhess.checks.survey import Survey
from layerhess.curvature.totals import Listing, Totals, add_up
from layerhess.objective import batches
from layerhess.objective.containers import bytes_of, outline, tree_map
from layerhess.objective.example_digests import Digests, by_example, of_copies
from layerhess.objective.objective import Objective

GROUPS = 16  # wanted: the standard error of a standard error from g groups is 1 / sqrt(2 g) of it
SINGLE = 64  # examples up to which each is its own group
DEALT = 4096  # examples up to which they are dealt into groups, however many batches there are
FEWEST = 4  # groups below which nothing is said
MOST_GROUPS = 1024  # more batches than that are joined: a hundred thousand groups would say no more
DIGEST, KIND = "digest", "kind"  # kinds of sums
UNREAD = 0  # for the digest of a batch whose bytes cannot be read

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Groups:
    """Groups of examples that are, together, the data.

    Attributes:
        objective: the data in batches that lie in one group each. number: of groups. listing: makes lists with an
            entry for each group. dealing: where examples are dealt; None where groups are whole batches.
        fingerprint: two results whose fingerprints are equal have the same examples in the same groups.
    """

    objective: Objective
    number: int
    listing: Listing
    fingerprint: str
    dealing: Dealing | None = None

    def placed(self, given: Iterator[Any]) -> Iterator[tuple[Any, Places | None]]:
        """Batches as they are given, with the group of each example, or None for one of the batch's own."""
        return ((batch, None) for batch in given) if self.dealing is None else self.dealing.placed(given)

    def append(self, totals: Totals, key: Any, each: Tensor, places: Places | None) -> None:
        """List what every example of a placed batch has, (n, ...), added up over groups."""
        if places is None:
            totals.append(key, each.sum(dim=0))
            return
        for self.listing.place in np.unique(places).tolist():
            totals.append(key, each[torch.from_numpy(places == self.listing.place)].sum(dim=0))


class Dealing:
    """Deals examples into groups by their content, so that neither batches nor ranks play a part.

    A hash of the content puts all examples in an order, which is as good as random, and cut into equal parts. Of an
    example that occurs more than once every copy has a hash of its own: all in one group would be too large a spread,
    a fixed number in each too small a one.

    Args:
        digests: of all examples, rank by rank. rank: whose examples are dealt here. groups: how many.

    Attributes:
        listing: says of each piece in which group it lies.
    """

    def __init__(self, digests: Sequence[Digests], rank: int, groups: int) -> None:
        every = np.concatenate(digests)
        kinds, numbers = np.unique(every, return_counts=True)
        self._repeated = kinds[numbers > 1]
        earlier = np.concatenate([every[:0], *digests[:rank]])
        self._earlier = Counter(earlier[np.isin(earlier, self._repeated)].tolist())
        self._order = np.sort(self._hashes(every, Counter()))
        self.listing = Listing(number=groups)
        self.fingerprint = _fingerprint(self._order, groups)

    def placed(self, given: Iterator[Any]) -> Iterator[tuple[Any, Places]]:
        """All batches of this rank, in any order, each with the (n,) groups of its examples."""
        seen, n = self._earlier.copy(), len(self._order)
        for batch in given:
            found = np.searchsorted(self._order, self._hashes(by_example(batch), seen))
            yield batch, np.minimum(found, n - 1) * self.listing.number // n

    def pieces(self, given: Iterator[Any], size: int) -> Iterator[Any]:
        """The same examples in batches of at most ``size`` (none given is larger), each of examples of one group."""
        held: dict[tuple[int, str], list[Any]] = {}

        def whole(key: tuple[int, str]) -> Any:
            own, self.listing.place = held.pop(key), key[0]
            return own[0] if len(own) == 1 else batches.joined(own)

        for batch, places in self.placed(given):
            kind = outline(batch)
            for place in np.unique(places).tolist():
                part = batches.take(batch, torch.from_numpy(np.flatnonzero(places == place)))
                key = place, kind
                if sum(map(_size, held.get(key, []))) + _size(part) > size:
                    yield whole(key)
                held.setdefault(key, []).append(part)
            while sum(map(batches.nbytes, held.values())) > batches.HELD:
                yield whole(max(held, key=lambda key: batches.nbytes(held[key])))
        yield from map(whole, list(held))

    def _hashes(self, digests: Digests, seen: Counter[int]) -> Digests:
        """(n,) a hash of each example; ``seen``: copies that came before, which is carried on."""
        copies = np.zeros_like(digests)
        for index in np.flatnonzero(np.isin(digests, self._repeated)).tolist():
            digest = int(digests[index])
            copies[index] = seen[digest]
            seen[digest] += 1
        return of_copies(digests, copies)


def groups_of(
    objective: Objective, surveyed: Survey, uncut: str, size: int | None, checkpoint: Callable[[], None]
) -> Groups:
    """The groups of the data (in session); where its examples are dealt, they are read once for it.

    Args:
        uncut: why batches must not be cut, "" if they may be. size: the most examples to process at once, if that is
            less than the largest batch.
    """
    few = surveyed.batches < GROUPS
    if surveyed.examples and not uncut and (few or surveyed.examples <= DEALT):
        number = surveyed.examples if surveyed.examples <= SINGLE else GROUPS
        if (dealing := _dealing(objective, number, few, checkpoint)) is not None:
            most = min(surveyed.largest, size or surveyed.largest)
            return Groups(
                objective.resized(most, dealing.pieces), number, dealing.listing, dealing.fingerprint, dealing
            )
    joined = math.ceil(surveyed.batches / MOST_GROUPS)
    fingerprint = _of_batches(objective, joined, checkpoint) if surveyed.batches >= FEWEST else ""
    return Groups(objective, surveyed.batches, Listing(joined), fingerprint)


def _dealing(objective: Objective, number: int, few: bool, checkpoint: Callable[[], None]) -> Dealing | None:
    """None where batches are many and not alike, as sequences padded to other lengths: pieces would be too small."""
    group = objective.group

    def share(batch: Any, totals: Totals) -> None:
        digests = by_example(batch)
        totals.append((DIGEST, group.rank), digests)
        if len(digests):
            totals.add((KIND, outline(batch)), 1)

    totals = add_up(objective.batches(), share, group=group, checkpoint=checkpoint)
    if len(totals.totals(KIND)) > 1 and not few and number == GROUPS:
        return None
    nothing = np.zeros(0, dtype=np.uint64)
    told = [np.concatenate([nothing, *totals.listed((DIGEST, rank))]) for rank in range(group.size)]
    return Dealing(told, group.rank, number)


def _of_batches(objective: Objective, joined: int, checkpoint: Callable[[], None]) -> str:
    """The fingerprint of groups that are whole batches, so many in a row; the data is read once for it.

    "" where a batch has tensors whose bytes cannot be read: such results are never taken for the same.
    """

    def share(batch: Any, totals: Totals) -> None:
        own = hashlib.sha256()

        def read(tensor: Tensor) -> Tensor:
            for part in tensor.unbind() if tensor.is_nested else [tensor]:
                own.update(f"{tuple(part.shape)} {part.dtype}".encode() + bytes(bytes_of(part)))
            return tensor

        if len(digests := by_example(batch)):
            own.update(np.sort(digests).tobytes())  # a group's sums do not depend on the order in it
        else:
            try:
                tree_map(read, batch, lambda leaf: own.update(repr(leaf).encode()))
            except (RuntimeError, NotImplementedError):
                totals.append(DIGEST, UNREAD)
                return
        totals.append(DIGEST, int.from_bytes(own.digest()[:8], "little"))

    totals = add_up(objective.batches(), share, group=objective.group, checkpoint=checkpoint)
    told = totals.listed(DIGEST)
    return "" if UNREAD in told else _fingerprint(np.array(told, dtype=np.uint64), joined)


def _fingerprint(digests: Digests, number: int) -> str:
    return hashlib.sha256(digests.tobytes() + number.to_bytes(8, "little")).hexdigest()


def _size(batch: Any) -> int:
    return batches.leading_size(batch, sparse=True) or 0

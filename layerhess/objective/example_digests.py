"""What tells examples apart: a digest of each one's content, whatever batch it lies in."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from layerhess.objective.batches import leading_size
from layerhess.objective.containers import bytes_of, tensors

Digests = npt.NDArray[np.uint64]
_MIX = np.uint64(0x9E3779B97F4A7C15)


def by_example(batch: Any) -> Digests:
    """(n,) a digest of each example of a batch that can be cut along dimension 0."""
    found = np.zeros(leading_size(batch, sparse=True) or 0, dtype=np.uint64)
    if len(found):
        for place, part in enumerate(tensors(batch)):
            found = mixed(found * _MIX + _rows(part, place))
    return found


def of_copies(digests: Digests, copies: Digests) -> Digests:
    """Another digest for each, that tells an example's first, second, ... copy apart (their numbers, from 0)."""
    return mixed(digests + copies * _MIX)


def drawn(digests: Digests, number: int, seed: int) -> npt.NDArray[np.int64]:
    """The places, in order, of so many examples: by their content, so that neither batches nor ranks play a part."""
    order = np.argsort(digests, kind="stable")
    ranked = digests[order]
    copies = np.empty_like(digests)
    copies[order] = np.arange(len(ranked)) - np.searchsorted(ranked, ranked)
    own = np.random.default_rng(seed).integers(1 << 63, dtype=np.uint64)
    return np.sort(np.argsort(of_copies(mixed(digests ^ own), copies), kind="stable")[:number])


def mixed(bits: Digests) -> Digests:
    """Splitmix64, which lets no two kinds of differences cancel."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _rows(tensor: Tensor, place: int) -> Digests:
    """(n,) a digest of each row's bytes."""
    content = np.frombuffer(bytes_of(tensor), dtype=np.uint8).reshape(len(tensor), -1)
    content = np.pad(content, ((0, 0), (0, -content.shape[1] % 8))).view(np.uint64)
    weights = np.random.default_rng(place).integers(1, 1 << 63, size=content.shape[1], dtype=np.uint64)
    digests: Digests = mixed(content * (2 * weights + np.uint64(1))).sum(axis=1, dtype=np.uint64)
    return digests

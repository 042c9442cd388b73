"""Eigenpairs that a density's first vector finds: eigenpairs they are, and no more is kept than memory allows."""

from __future__ import annotations

import numpy as np
import torch

from layerhess.analysis.probing.room import finds_pairs
from layerhess.linalg.random_vectors import random_unit
from layerhess.linalg.stochastic.density import Density, StochasticLanczos
from references.spectra import rotated

VALUES = np.concatenate([np.geomspace(-8.0, -2.0, 5), np.linspace(-0.5, 1.0, 180), np.geomspace(3.0, 50.0, 15)])


def run(together: int | None, keep: bool, probes: int = 5, pairs: bool = True) -> StochasticLanczos:
    matrix = torch.from_numpy(rotated(VALUES, 1))
    draw = lambda number: random_unit(200, 0, "test", number)  # noqa: E731
    process = StochasticLanczos(200, Density(probes=probes), draw, together, keep, pairs=pairs)
    while not process.done:
        process.tell(process.ask() @ matrix)
    return process


def test_they_are_eigenpairs_and_overlaps_are_the_vectors_own() -> None:
    found = run(None, keep=False).result()
    values, vectors = np.linalg.eigh(rotated(VALUES, 1))
    assert 12 <= len(found.known) <= 30
    for value, bound, overlaps in zip(found.known, found.known_bounds, found.overlaps.T, strict=True):
        near = int(np.argmin(np.abs(values - value)))
        assert abs(values[near] - value) <= bound + 1e-12 and bound <= 1e-2 * abs(value)
        own = [float(vectors[:, near] @ random_unit(200, 0, "test", i).numpy()) ** 2 for i in range(5)]
        np.testing.assert_allclose(overlaps, own, atol=0.03 * max(own) + 1e-6)


def test_they_do_not_depend_on_who_steps_together_and_change_no_node() -> None:
    alone, kept = run(2, keep=False).result(), run(None, keep=True).result()
    np.testing.assert_allclose(alone.known, kept.known, rtol=1e-9)
    np.testing.assert_allclose(alone.overlaps, kept.overlaps, atol=1e-9)
    plain = run(None, keep=False, pairs=False).result()
    assert not len(plain.known)
    ours = run(None, keep=False).result()
    np.testing.assert_allclose(plain.nodes[1:], ours.nodes[1:], rtol=1e-12)
    np.testing.assert_allclose(plain.mean, ours.mean, rtol=1e-12)


def test_of_two_vectors_none_is_spent_on_them() -> None:
    assert not len(run(None, keep=False, probes=2).result().known)


def test_a_basis_is_kept_where_it_fits() -> None:
    sizes, options = {"large": 10**6, "small": 10**3, "other": 10**4}, Density()
    assert finds_pairs(sizes, options, 1 << 30) == {"small", "other"}
    assert finds_pairs(sizes, options, 2 * 8 * 30 * 10**4) == {"small"}
    assert finds_pairs(sizes, options, 0.0) == set()

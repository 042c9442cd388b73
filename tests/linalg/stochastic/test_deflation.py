"""A known part of a matrix: what it is, what is left of it, and what probes of the rest make of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from layerhess.errors import InputError
from layerhess.linalg.stochastic.deflation import DEPENDENT, Deflation, orthonormal_rows
from layerhess.linalg.stochastic.diagonal import DiagonalSamples
from layerhess.linalg.stochastic.trace import Trace, TraceSamples
from references.probe_stages import FLAT, N, drawn, units


@pytest.mark.parametrize("m", [0, 1, 6])
def test_a_deflation_knows_its_part_of_the_matrix(m: int) -> None:
    q = np.linalg.qr(np.random.default_rng(m).standard_normal((N, max(m, 1))))[0].T[:m]
    known = Deflation(torch.from_numpy(q), torch.from_numpy(q @ FLAT))
    p = np.eye(N) - q.T @ q
    hat = FLAT - p @ FLAT @ p
    assert (known.size, known.n) == (m, N)
    assert known.trace == pytest.approx(np.trace(hat), abs=1e-10)
    assert known.nuclear == pytest.approx(np.abs(np.linalg.eigvalsh(q @ FLAT @ q.T)).sum(), abs=1e-10)
    np.testing.assert_allclose(known.diagonal(), np.diag(hat), atol=1e-12)
    np.testing.assert_allclose(known.project(torch.from_numpy(FLAT)), FLAT @ p, atol=1e-12)
    np.testing.assert_allclose(known.project(torch.from_numpy(FLAT[0])), FLAT[0] @ p, atol=1e-12)


@pytest.mark.parametrize(("off", "fine"), [(0.9e-6, True), (1.1e-6, False)])
def test_a_basis_is_orthonormal_to_one_millionth(off: float, fine: bool) -> None:
    q = torch.eye(3, 5).double()
    q[0, 1] = off
    if fine:
        assert Deflation(q, q).size == 3
    else:
        with pytest.raises(InputError, match="not orthonormal"):
            Deflation(q, q)
    for shape in ((3, 4), (2, 5)):
        with pytest.raises(InputError, match="shape"):
            Deflation(torch.eye(3, 5).double(), torch.zeros(shape).double())
    with pytest.raises(InputError, match="shape"):
        Deflation(torch.zeros(5).double(), torch.zeros(5).double())


def test_orthonormal_rows_span_what_was_given_and_stay_apart_from_what_was_there() -> None:
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.standard_normal((4, 9)) * np.array([[1.0], [1e-3], [1e3], [1.0]]))
    rows = torch.cat([rows, rows[:1] + rows[1:2]])  # dependent
    against = torch.from_numpy(np.linalg.qr(rng.standard_normal((9, 2)))[0].T.copy())
    made = orthonormal_rows(rows, against)
    both = torch.cat([against, made]).numpy()
    assert made.shape == (4, 9) and made.is_contiguous()
    np.testing.assert_allclose(both @ both.T, np.eye(6), atol=1e-13)
    np.testing.assert_allclose(rows.numpy() @ both.T @ both, rows, atol=1e-9)
    alone = orthonormal_rows(rows).numpy()
    np.testing.assert_allclose(rows.numpy() @ alone.T @ alone, rows, atol=1e-9)


def test_what_is_dependent_is_judged_against_the_longest_row_or_a_given_length() -> None:
    rows = torch.diag(torch.tensor([1.0, 2.0 * DEPENDENT, 0.5 * DEPENDENT]).double())
    assert len(orthonormal_rows(rows)) == 2
    assert len(orthonormal_rows(rows, scale=3.0)) == 1 and len(orthonormal_rows(rows, scale=0.1)) == 2
    assert len(orthonormal_rows(torch.zeros(2, 3).double())) == 0 and orthonormal_rows(rows[:0]).shape == (0, 3)
    steep = torch.eye(3).double()
    against = torch.tensor([[1.0, 0.0, 0.0]]).double()
    nearly = steep[:1] + 1e-9 * steep[1:2]  # all but a billionth of it is known
    left = orthonormal_rows(nearly, against)
    np.testing.assert_allclose(left.abs(), steep[1:2], atol=1e-12)
    assert abs(float(left[0] @ against[0])) < 1e-15


def test_the_size_of_a_cancelling_operator_is_held_from_its_products() -> None:
    """||B||_F^3 / ||B||_4^2 with both norms as means over the probes."""
    q = orthonormal_rows(torch.from_numpy(drawn(2, units)))
    known = Deflation(q, q @ torch.from_numpy(FLAT))
    samples = TraceSamples(known, Trace(rel=0.1))
    v = torch.from_numpy(drawn(6))
    x = known.project(v)
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        samples.add(v[part], x[part], x[part] @ torch.from_numpy(FLAT))
    ax = x.numpy() @ FLAT
    frobenius = math.sqrt((ax**2).sum() / 6)
    fourth = (np.einsum("ij,ij->i", ax[1:], ax[:-1]) ** 2).sum() / 5
    nuclear = known.nuclear + frobenius**3 / math.sqrt(fourth)
    assert samples.nuclear == pytest.approx(nuclear, rel=1e-10)
    forms = np.einsum("ij,ij->i", x.numpy(), ax)
    tolerated = max(0.1 * abs(known.trace + forms.mean()), 0.1 * 0.1 * nuclear)
    assert samples.excess == pytest.approx(forms.std(ddof=1) / math.sqrt(6) / tolerated)
    samples.nuclear_elsewhere = 2.0 * nuclear
    assert samples.nuclear == pytest.approx(2.0 * nuclear)


def test_a_deflated_diagonal_is_its_known_part_and_the_mean_of_the_rest() -> None:
    q = orthonormal_rows(torch.from_numpy(drawn(2, units)))
    known = Deflation(q, q @ torch.from_numpy(FLAT))
    samples = DiagonalSamples(known)
    v = torch.from_numpy(drawn(5))
    samples.add(v, known.project(v), known.project(v) @ torch.from_numpy(FLAT))
    p = np.eye(N) - q.numpy().T @ q.numpy()
    terms = v.numpy() * (v.numpy() @ p @ FLAT @ p)
    known_part = np.diag(FLAT - p @ FLAT @ p)
    np.testing.assert_allclose(samples.mean, known_part + terms.mean(axis=0), atol=1e-11)
    wider = np.maximum(1.0, 2.0 * np.abs(stats.skew(terms, axis=0)) / math.sqrt(5))
    np.testing.assert_allclose(samples.standard_error, wider * terms.std(axis=0, ddof=1) / math.sqrt(5), atol=1e-11)
    assert samples.estimate().method == "deflated" and samples.count == 5

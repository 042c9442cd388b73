"""How many products go where, and what is made of them: every stage worked out by hand with NumPy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats

from layerhess.linalg.random_vectors import random_signs
from layerhess.linalg.stochastic.deflation import Deflation, orthonormal_rows
from layerhess.linalg.stochastic.diagonal import Diagonal
from layerhess.linalg.stochastic.hutchinson import Adaptive, Hutchinson, HutchPP
from layerhess.linalg.stochastic.trace import Trace
from layerhess.linalg.stochastic.xtrace import XDiag, XTrace
from references.probe_stages import FLAT, STEEP, N, drawn, signs, stages, units
from references.spectra import Matrix, rotated

# -- Hutchinson --------------------------------------------------------------------------------------------------------


def test_plain_probes_are_the_draws_and_their_mean_and_error_are_numpys() -> None:
    process = Hutchinson(N, Trace(probes=20), signs)
    asked = stages(process, FLAT)
    np.testing.assert_array_equal(torch.cat(asked), drawn(20))
    forms = np.einsum("ij,jk,ik->i", drawn(20), FLAT, drawn(20))
    found = process.estimate()
    assert found.value == pytest.approx(forms.mean(), rel=1e-12) and found.probes == 20
    error = forms.std(ddof=1) / math.sqrt(20)
    assert found.standard_error == pytest.approx(error, rel=1e-12) and found.method == "hutchinson"
    half = error * stats.t.ppf(0.975, 19) + found.rounding
    assert found.high - found.value == pytest.approx(half) and found.value - found.low == pytest.approx(half)


def test_a_first_draw_a_deflation_and_what_was_spent_are_respected() -> None:
    q = orthonormal_rows(torch.from_numpy(drawn(3, units)))
    process = Hutchinson(
        N, Trace(probes=20), signs, deflation=Deflation(q, q @ torch.from_numpy(FLAT)), first=7, spent=5, method="mine"
    )
    asked = torch.cat(stages(process, FLAT)).numpy()
    basis = q.numpy()
    projected = drawn(15, first=7) @ (np.eye(N) - basis.T @ basis)
    np.testing.assert_allclose(asked, projected, atol=1e-12)
    forms = np.einsum("ij,jk,ik->i", projected, FLAT, projected)
    found = process.estimate()
    assert found.value == pytest.approx(np.trace(basis @ FLAT @ basis.T) + forms.mean(), rel=1e-10)
    assert (found.probes, found.method) == (15, "mine")


def test_what_was_spent_never_leaves_less_than_two_probes() -> None:
    process = Hutchinson(N, Trace(probes=6), signs, spent=100)
    assert sum(map(len, stages(process, FLAT))) == 2


def test_the_error_is_looked_at_after_sixteen_and_then_where_the_variance_says() -> None:
    """Targets from the forms themselves: five per cent more than needed, at most four times what there is."""
    goal = Trace(rel=0.02, absolute=4.0, max_probes=120)
    process = Hutchinson(N, goal, signs)
    asked = [len(rows) for rows in stages(process, FLAT)]
    forms = np.einsum("ij,jk,ik->i", drawn(120), FLAT, drawn(120))
    count, expected = 16, [16]
    while True:
        excess = forms[:count].std(ddof=1) / math.sqrt(count) / max(0.02 * abs(forms[:count].mean()), 4.0)
        if excess <= 1.0 or count >= 120:
            break
        needed = math.ceil(1.05 * count * excess**2)
        target = min(max(needed, min(count + 1, 120)), 4 * count, 120)
        while count < target:
            expected.append(min(64, target - count))
            count += expected[-1]
    assert asked == expected and count > 16
    assert process.samples.excess == pytest.approx(excess)


@pytest.mark.parametrize(("n", "read"), [(16, True), (17, False)])
def test_no_more_dimensions_than_probes_are_read_at_once(n: int, read: bool) -> None:
    matrix = rotated(np.linspace(1.0, 30.0, n), seed=1)
    process = Hutchinson(n, Trace(rel=1e-3), lambda number: random_signs(n, 0, "t", number))
    first = process.ask()
    assert (process.unit is not None) is read and torch.equal(first, torch.eye(16).double()) is read
    stages(process, matrix)
    found = process.estimate()
    assert (found.method, found.probes) == ("exact", 0)  # the larger one is read after its sixteen probes
    assert found.value == pytest.approx(np.trace(matrix), rel=1e-13)


def test_reading_is_chosen_where_the_probes_still_to_come_are_as_many_as_dimensions() -> None:
    """Every sample is off by 1, so the error after k probes is known: with 16 there, n more are needed or are not."""

    def excess_for(extra: int) -> tuple[bool, int]:
        n = 40
        process = Hutchinson(n, Diagonal(rel=1.0), lambda number: random_signs(n, 0, "t", number))
        process.ask()
        needed = 16 + extra
        process.samples = Fixed(math.sqrt((needed - 0.5) / (1.05 * 16)))  # type: ignore[assignment]
        process.tell(torch.zeros((16, n)).double())
        return process.unit is not None, process._target

    assert excess_for(40)[0] and not excess_for(39)[0]
    assert excess_for(39)[1] == 55


class Fixed:
    """Samples that count and have the standard error they were given."""

    def __init__(self, excess: float) -> None:
        self.count, self.excess = 0, excess

    def add(self, v: torch.Tensor, x: torch.Tensor, ax: torch.Tensor) -> None:
        self.count += len(v)


def test_products_without_a_question_are_refused() -> None:
    with pytest.raises(RuntimeError, match="ask"):
        Hutchinson(N, Trace(), signs).tell(torch.zeros((1, N)).double())


# -- Hutch++ -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probes", [6, 30, 32, 75])
def test_fixed_products_go_to_thirds(probes: int) -> None:
    process = HutchPP(N, Trace(probes=probes), signs)
    asked = stages(process, STEEP)
    third = probes // 3
    sketch = drawn(third)
    rows = torch.cat(asked).numpy()
    np.testing.assert_array_equal(rows[:third], sketch)
    q = rows[third : 2 * third]
    np.testing.assert_allclose(q @ q.T, np.eye(third), atol=1e-9)
    products = sketch @ STEEP
    np.testing.assert_allclose(products @ q.T @ q, products, atol=1e-9 * np.abs(products).max())
    fresh = drawn(probes - 2 * third, first=third) @ (np.eye(N) - q.T @ q)
    np.testing.assert_allclose(rows[2 * third :], fresh, atol=1e-8)
    found = process.estimate()
    value = np.trace(q @ STEEP @ q.T) + np.einsum("ij,jk,ik->i", fresh, STEEP, fresh).mean()
    assert found.value == pytest.approx(value, rel=1e-9) and found.probes == probes - 2 * third == process.count
    assert found.method == "hutch++"


@pytest.mark.parametrize(("most", "sketch"), [(30, 10), (48, 16), (1000, 16)])
def test_without_fixed_products_the_sketch_is_sixteen_or_a_third_of_all_there_are(most: int, sketch: int) -> None:
    process = HutchPP(N, Trace(rel=1e-9, max_probes=most), signs)
    assert len(process.ask()) == sketch and not process.done and process.count == 0
    assert process.estimate().standard_error == math.inf


def test_what_is_no_larger_than_three_sketches_is_read() -> None:
    for n, read in ((48, True), (49, False)):
        process = HutchPP(n, Trace(), lambda number, n=n: random_signs(n, 0, "t", number))
        assert (len(process.ask()) == 48) is read


def test_a_sketch_of_nothing_leaves_plain_probes() -> None:
    process = HutchPP(N, Trace(probes=30), signs)
    asked = stages(process, np.zeros((N, N)))
    assert [len(rows) for rows in asked] == [10, 20] and process.estimate().value == 0.0


def test_few_probes_that_would_need_many_more_become_the_sketch() -> None:
    process = Adaptive(N, Trace(rel=1e-3, max_probes=400), signs)
    asked = [len(rows) for rows in stages(process, STEEP)]
    assert asked[:3] == [16, 16, 16]
    found = process.estimate()
    assert found.method == "deflated" and found.probes == sum(asked) - 32
    assert found.value == pytest.approx(np.trace(STEEP), abs=max(6 * found.standard_error, 1e-6))


def test_few_probes_that_suffice_stay_plain_and_so_do_fixed_ones() -> None:
    plain = Adaptive(N, Trace(rel=0.5, absolute=50.0), signs)
    assert [len(rows) for rows in stages(plain, STEEP)] == [16] and plain.estimate().method == "hutchinson"
    fixed = Adaptive(N, Trace(rel=1e-6, probes=40), signs)
    assert sum(len(rows) for rows in stages(fixed, STEEP)) == 40 and fixed.estimate().method == "hutchinson"


def test_small_operators_are_rather_read_than_sketched() -> None:
    n = 100
    matrix = rotated(2.0 ** -np.arange(n), seed=1)
    process = Adaptive(n, Trace(rel=1e-9), lambda number: random_signs(n, 0, "t", number))
    assert sum(len(rows) for rows in stages(process, matrix)) == 16 + n
    assert process.estimate().method == "exact" and process.estimate().value == pytest.approx(np.trace(matrix))


def test_before_two_fresh_probes_the_plain_ones_are_the_answer() -> None:
    process = Adaptive(N, Trace(rel=1e-6), signs)
    process.tell(torch.from_numpy(process.ask().numpy() @ STEEP))
    process.tell(torch.from_numpy(process.ask().numpy() @ STEEP))
    forms = np.einsum("ij,jk,ik->i", drawn(16), STEEP, drawn(16))
    assert process.estimate().value == pytest.approx(forms.mean()) and not process.done


# -- XTrace ------------------------------------------------------------------------------------------------------------


def left_out(matrix: Matrix, draws: Matrix) -> Matrix:
    """(k,) estimates, each from scratch: Q of all other products, and the one vector that is left."""
    n, terms = len(matrix), []
    for i in range(len(draws)):
        q = np.linalg.qr((np.delete(draws, i, axis=0) @ matrix).T)[0]
        x = draws[i] - q @ (q.T @ draws[i])
        terms.append(np.trace(q.T @ matrix @ q) + (n - q.shape[1]) * (x @ matrix @ x) / (x @ x))
    return np.array(terms)


def test_xtrace_is_the_mean_over_what_each_vector_sees_of_the_rest() -> None:
    process = XTrace(N, Trace(probes=25, method="xtrace"), units)
    asked = torch.cat(stages(process, FLAT)).numpy()
    assert len(asked) == 24
    np.testing.assert_array_equal(asked[:12], drawn(12, units))
    terms, found = left_out(FLAT, drawn(12, units)), process.estimate()
    assert found.value == pytest.approx(terms.mean(), rel=1e-9) and (found.probes, found.method) == (12, "xtrace")
    assert found.standard_error == pytest.approx(math.sqrt(2.0) * terms.std(ddof=1) / math.sqrt(12), rel=1e-8)


def test_xdiag_is_the_mean_over_what_each_vector_sees_of_the_rest() -> None:
    process = XDiag(N, Diagonal(probes=20, method="xdiag"), signs)
    stages(process, FLAT)
    terms = []
    for i, w in enumerate(drawn(10)):
        q = np.linalg.qr((np.delete(drawn(10), i, axis=0) @ FLAT).T)[0]
        inside = q @ (q.T @ FLAT)
        terms.append(np.diag(inside) + w * (FLAT @ w - inside @ w))
    found = process.estimate()
    np.testing.assert_allclose(found.value, np.mean(terms, axis=0), atol=1e-9)
    error = math.sqrt(2.0) * np.std(terms, axis=0, ddof=1) / math.sqrt(10)
    np.testing.assert_allclose(found.standard_error, error, rtol=1e-6)
    assert (found.probes, found.method) == (10, "xdiag")


@pytest.mark.parametrize("make", [XTrace, XDiag])
def test_exchangeable_vectors_grow_by_half_until_the_error_or_the_products_are_reached(make: type) -> None:
    goal = Trace(rel=1e-9, method="xtrace", max_probes=100) if make is XTrace else Diagonal(1e-9, None, "xdiag", 100)
    process = make(N, goal, units if make is XTrace else signs)
    sizes = [len(rows) for rows in stages(process, FLAT)]
    assert sizes == [16, 16, 8, 8, 12, 12, 14, 14]  # 16, half as many again each time, 50 pairs in all
    loose = make(N, dataclasses.replace(goal, rel=100.0), units if make is XTrace else signs)
    assert [len(rows) for rows in stages(loose, STEEP)] == [16, 16]

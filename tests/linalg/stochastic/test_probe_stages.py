"""How many products go where, and what is made of them: every stage worked out by hand with NumPy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats

from layerhess.errors import InputError
from layerhess.linalg.random_vectors import random_signs, random_unit
from layerhess.linalg.stochastic.deflation import DEPENDENT, Deflation, orthonormal_rows
from layerhess.linalg.stochastic.diagonal import Diagonal, DiagonalSamples
from layerhess.linalg.stochastic.hutchinson import Adaptive, Hutchinson, HutchPP
from layerhess.linalg.stochastic.methods import diagonal_process, trace_process
from layerhess.linalg.stochastic.options import check_common, is_number
from layerhess.linalg.stochastic.probe_statistics import Running
from layerhess.linalg.stochastic.rounding import RELATIVE, coarser, entry_scales
from layerhess.linalg.stochastic.stopping import excess_of, next_target, probes_needed, rows_at_a_time
from layerhess.linalg.stochastic.trace import Trace, TraceSamples, rounded
from layerhess.linalg.stochastic.unit_vectors import UnitVectors
from layerhess.linalg.stochastic.xtrace import XDiag, XTrace
from references.spectra import Matrix, rotated

N = 150
FLAT = rotated(np.linspace(1.0, 2.0, N) * np.where(np.arange(N) % 2, 1.0, -1.0), seed=2)  # no method can save much
STEEP = rotated(2.0 ** -np.arange(N), seed=3)


def signs(number: int) -> torch.Tensor:
    return random_signs(N, 0, "stages", number)


def units(number: int) -> torch.Tensor:
    return random_unit(N, 0, "stages", number)


def stages(process: object, matrix: Matrix) -> list[torch.Tensor]:
    """Everything that was asked for, in order."""
    asked = []
    while not process.done:  # type: ignore[attr-defined]
        rows = process.ask()  # type: ignore[attr-defined]
        assert rows.dtype == torch.float64 and len(rows)
        asked.append(rows)
        process.tell(torch.from_numpy(rows.numpy() @ matrix))  # type: ignore[attr-defined]
        assert len(asked) < 100
    return asked


def drawn(count: int, source: object = signs, first: int = 0) -> Matrix:
    return torch.stack([source(first + i) for i in range(count)]).numpy()  # type: ignore[operator]


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


# -- deflation ---------------------------------------------------------------------------------------------------------


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


# -- small formulas ----------------------------------------------------------------------------------------------------


def test_stopping_formulas() -> None:
    assert [probes_needed(16, e) for e in (0.5, 1.0, 1.01, 3.0)] == [16, 16, 18, 152]
    assert probes_needed(16, 2e6) == 1 << 62 and probes_needed(16, 1e6) < 1 << 62
    assert next_target(16, 1.2, 1000) == 25 and next_target(16, 1.2, 20) == 20
    assert next_target(16, 1.0, 1000) == 17 and next_target(16, math.inf, 1000) == 64
    assert rows_at_a_time(1) == 64 and rows_at_a_time((1 << 28) // 8 // 5) == 5 and rows_at_a_time(1 << 40) == 1
    assert excess_of(0.0, 0.0) == 0.0 and excess_of(1.0, 0.0) == math.inf and excess_of(1.0, 4.0) == 0.25


def test_unit_vectors_read_the_diagonal_and_the_lengths_of_the_columns() -> None:
    process = UnitVectors(N)
    sizes = [len(rows) for rows in stages(process, FLAT)]
    assert sizes == [64, 64, 22]
    np.testing.assert_allclose(process.diagonal, np.diag(FLAT), rtol=0, atol=0)
    np.testing.assert_allclose(process.lengths, np.linalg.norm(FLAT, axis=0), rtol=1e-13)


def test_rounding_is_three_times_that_of_a_product() -> None:
    assert pytest.approx(6 * np.finfo(np.float64).eps, rel=1e-9, abs=0) == RELATIVE
    assert coarser(1e-7) == pytest.approx(3e-7 / RELATIVE) and coarser(0.0) == 1.0
    diagonal, lengths = torch.tensor([1.0, -5.0, 0.0, 2.0]).double(), torch.tensor([8.0, 6.0, 2.0, 4.0]).double()
    assert entry_scales(diagonal, lengths).tolist() == [4.0, 5.0, 1.0, 2.0]
    assert entry_scales(diagonal, None).tolist() == [1.0, 5.0, 0.0, 2.0]


def test_running_moments_of_one_sample_and_of_tensors() -> None:
    one = Running(0.0)
    assert one.variance == math.inf and one.standard_error == math.inf
    one.add(3.0)
    assert (one.mean, one.count) == (3.0, 1) and one.variance == math.inf and one.standard_error == math.inf
    samples = np.random.default_rng(0).standard_normal((5, 4))
    many = Running(torch.zeros(4).double())
    for row in samples:
        many.add(torch.from_numpy(row))
    np.testing.assert_allclose(many.variance, samples.var(axis=0, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(many.standard_error, samples.std(axis=0, ddof=1) / math.sqrt(5), rtol=1e-12)


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


def test_a_trace_says_how_far_it_is_from_what_was_asked() -> None:
    goal = Trace(rel=0.1)
    reached = goal.estimate(-50.0, 4.0, probes=16, method="hutchinson", nuclear=60.0)
    assert reached.converged and "8 % of the value from 16 random vectors" in reached.status
    assert "small against" not in reached.status and "above" not in reached.status
    missed = goal.estimate(-50.0, 5.1, probes=16, method="hutchinson", nuclear=60.0)
    assert not missed.converged and "above the 5 asked for" in missed.status
    cancelling = goal.estimate(1.0, 4.0, probes=16, method="hutchinson", nuclear=500.0)
    assert cancelling.converged and "small against the absolute error" in cancelling.status
    assert goal.estimate(0.0, 0.3, probes=4, method="x", nuclear=100.0).status.startswith("standard error 0.3 from 4")
    for given, scale in (
        (cancelling, 500.0), (reached, 60.0),
        (goal.estimate(3.0, 0.0, probes=4, method="x", nuclear=1.0, scale=9.0), 9.0),
        (goal.estimate(-7.0, 0.0, probes=4, method="x", nuclear=1.0, scale=2.0), 7.0),
    ):  # fmt: skip
        assert given.rounding == pytest.approx(RELATIVE * scale, rel=1e-9, abs=0)
    assert Trace(rel=0.1, absolute=7.0).tolerance(-50.0, 1e9) == 7.0 and Trace(rel=0.2).tolerance(-50.0, 1.0) == 10.0


def test_rounding_widens_an_interval_where_nothing_else_does() -> None:
    found = Trace().estimate(1.0, 0.0, probes=4, method="hutchinson", nuclear=1e15)
    assert found.rounding == pytest.approx(RELATIVE * 1e15) and found.rounding > 1.0
    assert (found.high, found.low) == (pytest.approx(1.0 + found.rounding), pytest.approx(1.0 - found.rounding))


def test_coarser_products_widen_an_interval_by_their_rounding_alone() -> None:
    found = Trace().estimate(10.0, 1.0, probes=16, method="hutchinson", nuclear=20.0)
    wide = rounded(found, 1e-6)
    assert wide.rounding == pytest.approx(3e-6 * 20.0) and wide.standard_error == 1.0 and wide.value == 10.0
    assert found.low - wide.low == pytest.approx(wide.rounding - found.rounding) == wide.high - found.high


def test_a_known_trace_is_rounded_by_what_was_added_up() -> None:
    found = Trace().exact(torch.tensor([1.0, -3.0]).double(), torch.tensor([5.0, 2.0]).double())
    scale = 5.0 / math.sqrt(2) + 3.0
    assert (found.value, found.probes, found.standard_error) == (-2.0, 0, 0.0) and found.converged
    assert found.rounding == pytest.approx(RELATIVE * scale, rel=1e-9, abs=0)
    assert found.high - found.value == pytest.approx(found.rounding, rel=0.1, abs=0)
    assert found.value - found.low == pytest.approx(found.rounding, rel=0.1, abs=0)
    assert "all 2 diagonal" in found.status and "only" in Trace().exact(torch.ones(1).double()).status


def test_a_diagonal_says_how_far_it_is_from_what_was_asked() -> None:
    value, error = torch.tensor([3.0, -4.0]).double(), torch.tensor([0.3, 0.4]).double()
    goal = Diagonal(rel=0.1)
    found = goal.estimate(value, error, probes=9, method="hutchinson")
    assert goal.excess(value, error) == pytest.approx(1.0) and "10 % of the diagonal's norm from 9" in found.status
    lengths = np.sqrt(np.array([9.0, 16.0]) + 9 * np.array([0.09, 0.16]))
    assert found.rounding == pytest.approx(RELATIVE * lengths.max(), rel=1e-6, abs=0)
    wide = goal.estimate(value, 2.0 * error, probes=9, method="hutchinson")
    assert not wide.converged and wide.required and "above the 10 % asked for" in wide.status
    for relaxed in (Diagonal(rel=0.1, required=False), Diagonal(rel=0.1, probes=9)):
        free = relaxed.estimate(value, 2.0 * error, probes=9, method="hutchinson")
        assert not free.converged and not free.required and "asked for" not in free.status
    assert goal.estimate(value, error, probes=1, method="x").rounding == math.inf
    assert "all of" in goal.estimate(0.0 * value, error, probes=9, method="x").status
    assert "0 % of" in goal.estimate(0.0 * value, 0.0 * error, probes=9, method="x").status
    exact = goal.exact(value, torch.tensor([8.0, 4.0]).double())
    assert (
        exact.rounding == pytest.approx(RELATIVE * 8.0 / math.sqrt(2), rel=1e-9, abs=0)
        and exact.converged
        and exact.probes == 0
    )
    assert not exact.standard_error.any() and "all 2 entries" in exact.status


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
    np.testing.assert_allclose(samples.standard_error, terms.std(axis=0, ddof=1) / math.sqrt(5), atol=1e-11)
    assert samples.estimate().method == "deflated" and samples.count == 5


LEAST = {"auto": 2, "other": 4}


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ((0.0, None, 10, "auto"), "rel"),
        ((-1.0, None, 10, "auto"), "rel"),
        ((math.inf, None, 10, "auto"), "rel"),
        ((math.nan, None, 10, "auto"), "rel"),
        ((True, None, 10, "auto"), "rel"),
        (("1", None, 10, "auto"), "rel"),
        ((0.1, 1, 10, "auto"), "probes"),
        ((0.1, 3, 10, "other"), "probes"),
        ((0.1, None, 1, "auto"), "max_probes"),
        ((0.1, None, 3, "other"), "max_probes"),
        ((0.1, None, 10, "third"), "method"),
        ((0.1, None, 10, None), "method"),
        ((0.1, None, 10, []), "method"),
    ],
)
def test_common_options_are_refused_by_name(arguments: tuple[object, ...], where: str) -> None:
    with pytest.raises(InputError) as caught:
        check_common(*arguments, LEAST)  # type: ignore[arg-type]
    assert where in caught.value.where


def test_common_options_that_are_fine() -> None:
    check_common(0.1, 2, 2, "auto", LEAST)
    check_common(1, None, 4, "other", LEAST)
    check_common(0.0, None, 4, "other", LEAST, zero=True)
    assert is_number(1) and is_number(np.float32(1)) and not is_number(True) and not is_number("1")


@pytest.mark.parametrize(
    ("make", "goal", "kind"),
    [
        (trace_process, Trace(method="xtrace"), XTrace),
        (trace_process, Trace(method="hutch++"), HutchPP),
        (trace_process, Trace(method="hutchinson"), Hutchinson),
        (trace_process, Trace(), Adaptive),
        (diagonal_process, Diagonal(method="xdiag"), XDiag),
        (diagonal_process, Diagonal(method="hutchinson"), Hutchinson),
        (diagonal_process, Diagonal(), Adaptive),
    ],
)
def test_the_process_is_the_one_that_was_named(make: object, goal: Trace | Diagonal, kind: type) -> None:
    sources = (signs, units) if isinstance(goal, Trace) else (signs,)
    q = torch.from_numpy(np.eye(N)[:2])
    known = Deflation(q, q @ torch.from_numpy(FLAT))
    for deflation in (None, Deflation.none(N), known):
        process = make(N, goal, *sources, deflation=deflation)  # type: ignore[operator]
        deflated = deflation is known and goal.method == "auto"
        assert type(process) is (Hutchinson if deflated else kind)
        if isinstance(process, Hutchinson):
            assert process.samples.deflation.size == (2 if deflated else 0)  # type: ignore[attr-defined]

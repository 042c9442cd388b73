"""Spectral densities by stochastic Lanczos quadrature, on matrices whose spectra were put in."""

from __future__ import annotations

import dataclasses
import inspect
import re
from functools import cache

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

from layerhess.errors import InputError
from layerhess.linalg.estimates import DensityEstimate
from layerhess.linalg.random_vectors import random_unit
from layerhess.linalg.stochastic import density as module
from layerhess.linalg.stochastic.density import Density, StochasticLanczos, check_moments, exact_density
from layerhess.linalg.stochastic.density_grid import bandwidth_of, compressed, gaussians
from references.spectra import Matrix, rotated

N = 240


def goe(n: int, rng: np.random.Generator) -> Matrix:
    a = rng.standard_normal((n, n))
    return np.linalg.eigvalsh((a + a.T) / np.sqrt(2 * n))


SPECTRA: dict[str, Matrix] = {
    "uniform": np.linspace(0.0, 1.0, N),
    "semicircle": goe(N, np.random.default_rng(0)),
    "spike and outliers": np.concatenate([np.zeros(N - 40), np.linspace(0.5, 3, 35), [20.0, 30, 50, 80, 100]]),
    "indefinite": np.concatenate([-np.random.default_rng(1).exponential(size=80), np.linspace(0.0, 9.0, 160)]),
    "ten decades": 10.0 ** np.linspace(-9, 1, N),
    "multiple": np.random.default_rng(2).choice([-2.0, -1.0, 0.0, 1.0, 3.0], N),
    "identity": np.ones(N),
    "zero": np.zeros(N),
    "fewer dimensions than steps": np.linspace(-1.0, 2.0, 9) ** 3,
    "one dimension": np.array([-3.0]),
}
CONTINUOUS = ["uniform", "semicircle", "spike and outliers", "indefinite", "ten decades", "multiple"]


def run(matrix: Matrix, options: Density, seed: int = 0, limit: int = 1000) -> StochasticLanczos:
    n = len(matrix)
    process = StochasticLanczos(n, options, lambda number: random_unit(n, seed, "test", number))
    while not process.done and limit:
        asked = process.ask()
        assert asked.dtype == torch.float64 and asked.shape[1] == n
        process.tell(torch.from_numpy(asked.numpy() @ matrix))
        limit -= 1
    return process


@cache
def matrix_of(name: str) -> Matrix:
    return rotated(SPECTRA[name], seed=7)


@cache
def estimates(name: str, seeds: int) -> list[DensityEstimate]:
    return [run(matrix_of(name), Density(), seed).result() for seed in range(seeds)]


def smoothed_truth(values: Matrix, found: DensityEstimate) -> Matrix:
    return gaussians(values, np.full(len(values), 1.0 / len(values)), found.grid, found.bandwidth)


# -- moments and mass --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SPECTRA))
def test_the_mass_is_one_and_every_node_lies_well_inside_the_grid(name: str) -> None:
    for found in (estimates(name, 2)[0], exact_density(SPECTRA[name], Density())):
        assert trapezoid(found.value, found.grid) == pytest.approx(1.0, abs=1e-6)
        assert (np.diff(found.grid) > 0).all() and len(found.grid) < 4000
        there = found.weights > 0
        assert found.nodes[there].min() >= found.grid[0] + 5.9 * found.bandwidth
        assert found.nodes[there].max() <= found.grid[-1] - 5.9 * found.bandwidth
        np.testing.assert_allclose(found.weights.sum(axis=1), 1.0, rtol=1e-10)
        assert np.isfinite([found.value, found.low, found.high]).all() and (found.low >= 0).all()
        assert (found.low <= found.value).all() and (found.value <= found.high).all()


@pytest.mark.parametrize("name", list(SPECTRA))
def test_moments_of_each_probe_are_its_exact_quadratic_forms(name: str) -> None:
    matrix = matrix_of(name)
    found = run(matrix, Density(probes=3), 5).result()
    probes = np.array([random_unit(len(matrix), 5, "test", i).numpy() for i in range(3)])
    first, second = np.einsum("ij,jk,ik->i", probes, matrix, probes), np.sum((probes @ matrix) ** 2, axis=1)
    size = np.abs(SPECTRA[name]).max()
    np.testing.assert_allclose((found.weights * found.nodes).sum(axis=1), first, atol=1e-12 * size)
    np.testing.assert_allclose((found.weights * found.nodes**2).sum(axis=1), second, atol=1e-12 * size**2)
    assert found.mean == pytest.approx(first.mean(), abs=1e-12 * size)
    assert found.mean_error >= first.std(ddof=1) / np.sqrt(3) - 1e-12 * size


@pytest.mark.parametrize("name", CONTINUOUS)
def test_moments_are_unbiased_over_seeds_and_their_errors_are_their_scatter(name: str) -> None:
    values, found = SPECTRA[name], estimates(name, 40)
    for moment, error, truth in (("mean", "mean_error", values.mean()), ("second", "second_error", (values**2).mean())):
        samples = np.array([getattr(f, moment) for f in found])
        stated = np.sqrt(np.mean([getattr(f, error) ** 2 for f in found]))
        assert abs(samples.mean() - truth) < 4 * samples.std(ddof=1) / np.sqrt(len(found))
        assert 0.6 < stated / samples.std(ddof=1) < 1.6


@pytest.mark.parametrize("values", [(3.0,), (3.0, -2.0), (-3.0, 0.5)], ids=str)
def test_errors_cover_what_all_vectors_have_little_of(values: tuple[float, ...]) -> None:
    """One or two eigenvalues carry the moments of 60: in many runs, ten vectors' own spread says far too little."""
    spectrum = np.zeros(60)
    spectrum[: len(values)] = values
    matrix, off, plain = rotated(spectrum, seed=3), [], []
    for seed in range(200):
        found = run(matrix, Density(steps=4), seed).result()
        for power, value, error in ((1, found.mean, found.mean_error), (2, found.second, found.second_error)):
            rows = (found.weights * found.nodes**power).sum(axis=1)
            miss = abs(value - np.mean(spectrum**power))
            plain.append(miss / (rows.std(ddof=1) / np.sqrt(len(rows))))
            off.append(miss / error)
    assert max(plain) > 5.0 and max(off) < 4.0


@pytest.mark.parametrize("name", ["identity", "zero", "one dimension"])
def test_a_multiple_of_the_identity_is_one_node_without_any_error(name: str) -> None:
    value = SPECTRA[name][0]
    process = run(matrix_of(name), Density())
    found = process.result()
    assert found.mean == pytest.approx(value, rel=1e-12) and found.mean_error <= 1e-12
    assert found.second == pytest.approx(value**2, rel=1e-12) and found.second_error <= 1e-12
    np.testing.assert_allclose(found.nodes[found.weights > 1e-12], value, rtol=1e-12)
    assert found.grid[np.argmax(found.value)] == pytest.approx(value, abs=found.bandwidth)


# -- the band ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_band_covers_the_smoothed_spectrum(name: str) -> None:
    """Nominally 95 %; where the density is above a thousandth of its peak (below, it is the Gaussian's own tail)."""
    covered, plain = [], []
    for found in estimates(name, 40):
        truth = smoothed_truth(SPECTRA[name], found)
        seen = truth > 1e-3 * truth.max()
        covered.append(np.mean(((found.low <= truth) & (truth <= found.high))[seen]))
        high = truth > 0.05 * truth.max()
        plain.append(np.median((found.high - found.low)[high] / found.value[high]))
    assert np.mean(covered) >= 0.90
    assert np.mean(plain) < 3.0  # no band covers everything by being useless


def test_more_probes_narrow_the_band() -> None:
    matrix = matrix_of("semicircle")
    few, many = (run(matrix, Density(probes=p, bandwidth=0.1)).result() for p in (6, 60))
    middle = np.abs(few.grid) < 1.0, np.abs(many.grid) < 1.0
    widths = [np.mean((f.high - f.low)[m]) for f, m in zip((few, many), middle, strict=True)]
    assert widths[1] < 0.5 * widths[0]


def test_a_single_probe_has_no_band_and_says_so() -> None:
    found = run(matrix_of("uniform"), Density(probes=1)).result()
    assert np.isnan(found.low).all() and np.isnan(found.high).all() and np.isfinite(found.value).all()
    assert np.isnan(found.mean_error) and "single vector gives no band" in found.status


# -- bandwidth and grid ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uniform", "semicircle"])
def test_nodes_do_not_look_like_outliers_in_the_bulk(name: str) -> None:
    """One probe alone has as many separate nodes as steps; its density has one hill, give or take the edges."""
    found = run(matrix_of(name), Density(probes=1), 3).result()
    inside = found.value > 0.05 * found.value.max()
    hills = np.sum(np.diff(np.sign(np.diff(found.value[inside]))) < 0)
    assert hills <= 8  # one probe's weights are random
    narrow = run(matrix_of(name), Density(probes=1, bandwidth=found.bandwidth / 8), 3).result()
    assert np.sum(np.diff(np.sign(np.diff(narrow.value))) < 0) >= 20  # what the rule prevents


def test_outliers_do_not_blur_the_bulk() -> None:
    bulk = np.linspace(0.0, 1.0, N - 3)
    alone = run(rotated(np.linspace(0.0, 1.0, N), 1), Density()).result()
    beside = run(rotated(np.concatenate([bulk, [100.0, 300.0, 1000.0]]), 1), Density()).result()
    assert beside.bandwidth < 4 * alone.bandwidth
    for outlier in (100.0, 300.0, 1000.0):  # each peak is resolved by the grid, and separate
        near = np.abs(beside.grid - outlier) < 5 * beside.bandwidth
        assert near.sum() >= 10
        mass = trapezoid(np.where(near, beside.value, 0.0), beside.grid)
        assert 0.05 / N < mass < 5.0 / N


def test_the_bandwidth_scales_with_the_matrix_and_does_not_shift() -> None:
    base = run(matrix_of("indefinite"), Density()).result()
    scaled = run(2.0**-23 * matrix_of("indefinite"), Density()).result()
    shifted = run(matrix_of("indefinite") + 5.0 * np.eye(N), Density()).result()
    assert scaled.bandwidth == pytest.approx(2.0**-23 * base.bandwidth, rel=1e-12)
    assert shifted.bandwidth == pytest.approx(base.bandwidth, rel=0.1)


def test_a_bandwidth_of_ones_own_is_used_down_to_what_float64_can_draw() -> None:
    assert run(matrix_of("uniform"), Density(bandwidth=0.3)).result().bandwidth == 0.3
    found = run(matrix_of("uniform"), Density(bandwidth=1e-300)).result()
    assert found.bandwidth >= 1e-10 and trapezoid(found.value, found.grid) == pytest.approx(1.0, abs=1e-6)


# -- exact -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SPECTRA))
def test_a_known_spectrum_gives_its_density_without_error(name: str) -> None:
    values = SPECTRA[name]
    found = exact_density(values[::-1], Density())
    np.testing.assert_array_equal(found.low, found.high)
    np.testing.assert_allclose(found.value, smoothed_truth(values, found), rtol=1e-10, atol=1e-300)
    assert found.probes == 0 and found.mean_error == found.second_error == 0.0 and "exact" in found.status
    assert found.mean == pytest.approx(values.mean(), abs=1e-14) and found.second == pytest.approx((values**2).mean())
    again = run(matrix_of(name), Density()).result(spectrum=values)
    np.testing.assert_array_equal(again.value, found.value)


@pytest.mark.parametrize("name", ["uniform", "semicircle", "indefinite"])
def test_exact_and_estimated_densities_have_about_the_same_bandwidth(name: str) -> None:
    ratio = exact_density(SPECTRA[name], Density()).bandwidth / estimates(name, 2)[0].bandwidth
    assert 0.7 < ratio < 1.4


def test_a_compressed_spectrum_is_a_gauss_quadrature() -> None:
    values = SPECTRA["semicircle"]
    nodes, weights = compressed(values, 6)
    for power in range(12):  # degree 2 * 6 - 1
        assert weights @ nodes**power == pytest.approx((values**power).mean(), rel=1e-9, abs=1e-12)
    assert weights @ nodes**12 != pytest.approx((values**12).mean(), rel=1e-9)


# -- ghosts ------------------------------------------------------------------------------------------------------------


def test_nodes_contain_ghost_copies_and_nothing_offers_them_as_eigenvalues() -> None:
    values = np.concatenate([[100.0], np.linspace(0.0, 1.0, N - 1)])
    found = run(rotated(values, 2), Density(probes=2, steps=60)).result()
    copies = [int(np.sum(np.abs(row - 100.0) < 1e-6)) for row in found.nodes]
    assert max(copies) >= 2  # 100 is a simple eigenvalue
    for row, weight in zip(
        found.nodes, found.weights, strict=True
    ):  # the copies share one weight, about chi-square / n
        assert weight[np.abs(row - 100.0) < 1e-6].sum() < 10.0 / N
    # The density does not mind: its moments are exact, and the bandwidth does not take the copies for a resolution.
    assert found.bandwidth > 1e-4
    # An estimate has no field, and the module no function, that hands out eigenvalues.
    names = [field.name for field in dataclasses.fields(DensityEstimate)]
    names += [name for name, _ in inspect.getmembers(module)] + [
        name for name, _ in inspect.getmembers(StochasticLanczos)
    ]
    assert not [name for name in names if re.search(r"eigen|ritz|top|largest|lambda", name, re.IGNORECASE)]
    assert "Never read top eigenvalues" in inspect.getdoc(StochasticLanczos)  # type: ignore[operator]


def test_with_bases_kept_there_are_no_ghosts_and_rounding_changes_nothing() -> None:
    values = np.concatenate([[100.0], np.linspace(0.0, 1.0, N - 1)])
    matrix = torch.from_numpy(rotated(values, 2))
    found = []
    for noise in (0.0, 1e-15):
        process = StochasticLanczos(
            N, Density(probes=2, steps=40), lambda number: random_unit(N, 0, "test", number), keep=True
        )
        while not process.done:
            rows = process.ask()
            process.tell(rows @ matrix * (1.0 + noise * torch.sign(rows)))
        found.append(process.result())
    for nodes in found[0].nodes:
        assert np.sum(np.abs(nodes - 100.0) < 1e-6) == 1
    assert np.abs(found[0].value - found[1].value).max() < 1e-10 * found[0].value.max()
    assert np.abs(found[0].nodes - found[1].nodes).max() < 1e-8


def test_bandwidth_ignores_ghosts() -> None:
    nodes, weights = np.array([[0.0, 1.0, 2.0, 3.0]]), np.array([[0.7, 0.1, 0.1, 0.1]])
    ghosts = np.array([[0.0, 1e-14, 2e-14, 1.0, 2.0, 3.0]]), np.array([[0.3, 0.2, 0.2, 0.1, 0.1, 0.1]])
    assert bandwidth_of(*ghosts, steps=4) == pytest.approx(bandwidth_of(nodes, weights, steps=4))


# -- ask and tell ------------------------------------------------------------------------------------------------------


def test_all_unfinished_probes_are_asked_for_at_once_and_finished_ones_drop_out() -> None:
    n = 6
    starts = [torch.eye(n, dtype=torch.float64)[0], torch.full((n,), n**-0.5, dtype=torch.float64)]
    matrix = torch.diag(torch.arange(1.0, n + 1, dtype=torch.float64))
    process = StochasticLanczos(n, Density(probes=2, steps=4), lambda number: starts[number])
    widths = []
    while not process.done:
        asked = process.ask()
        widths.append(len(asked))
        process.tell(asked @ matrix)
    assert widths == [2, 1, 1, 1]  # the first start is an eigenvector
    found = process.result()
    assert found.nodes[0, 0] == 1.0 and found.weights[0].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_steps_shrink_to_the_dimension_and_the_status_says_so() -> None:
    found = run(matrix_of("fewer dimensions than steps"), Density(probes=2)).result()
    assert found.steps == 9 and "9 allows" in found.status
    assert run(np.diag([1.0, 2.0, 4.0]), Density(probes=2)).result().nodes == pytest.approx(np.array([[1, 2, 4]] * 2))


def test_what_was_told_before_an_interrupt_is_a_result() -> None:
    process = StochasticLanczos(N, Density(), lambda number: random_unit(N, 0, "test", number))
    assert not process.started
    with pytest.raises(RuntimeError, match="before the first product"):
        process.result()
    process = run(matrix_of("uniform"), Density(), limit=5)
    assert process.started and not process.done
    found = process.result()
    assert found.steps == 5 and found.status.startswith("stopped early")
    assert trapezoid(found.value, found.grid) == pytest.approx(1.0, abs=1e-6)
    one = run(matrix_of("uniform"), Density(), limit=1).result()
    assert one.steps == 1 and np.isfinite(one.high).all()


def test_products_in_float32_change_nothing_that_is_seen() -> None:
    matrix = matrix_of("spike and outliers")
    process = StochasticLanczos(N, Density(bandwidth=0.3), lambda number: random_unit(N, 0, "test", number))
    while not process.done:
        process.tell(torch.from_numpy(process.ask().numpy().astype(np.float32) @ matrix.astype(np.float32)).double())
    exact, rounded = run(matrix, Density(bandwidth=0.3)).result(), process.result()
    assert rounded.mean == pytest.approx(exact.mean, rel=1e-5)
    on_grid = np.interp(exact.grid, rounded.grid, rounded.value)
    assert np.abs(on_grid - exact.value).max() < 0.03 * exact.value.max()


# -- moments held against others ---------------------------------------------------------------------------------------


def test_moments_are_held_against_a_trace_and_a_norm_from_elsewhere() -> None:
    values, found = SPECTRA["semicircle"] + 1.0, run(matrix_of("semicircle") + np.eye(N), Density()).result()
    trace, norm = values.sum(), (values**2).sum()
    agree, sentence = check_moments(found, trace=(trace, 0.0), frobenius2=(norm, 0.01 * norm), n=N)
    assert agree and sentence.startswith("the moments agree") and "standard errors apart" in sentence
    wrong = trace + 20 * N * found.mean_error
    agree, sentence = check_moments(found, trace=(wrong, 0.0), frobenius2=None, n=N)
    assert not agree and sentence.startswith("the moments disagree") and "mean square" not in sentence
    assert check_moments(found, trace=(wrong, abs(wrong)), frobenius2=None, n=N)[0]  # a trace that is not known
    assert not check_moments(found, trace=None, frobenius2=(3 * norm, 0.0), n=N)[0]
    assert check_moments(found, trace=None, frobenius2=None, n=N) == (
        True,
        "there is nothing to compare the moments with",
    )


def test_exact_moments_are_compared_up_to_arithmetic() -> None:
    found = exact_density(SPECTRA["uniform"], Density())
    assert check_moments(found, trace=(found.mean * N * (1 + 1e-8), 0.0), frobenius2=None, n=N)[0]
    assert not check_moments(found, trace=(found.mean * N * 1.001, 0.0), frobenius2=None, n=N)[0]


def test_a_single_probe_is_not_held_against_anything() -> None:
    found = run(matrix_of("uniform"), Density(probes=1)).result()
    agree, sentence = check_moments(found, trace=(1e9, 0.0), frobenius2=None, n=N)
    assert agree and "no standard error to judge by" in sentence


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": 1}, "at least 2 Lanczos steps"),
        ({"steps": 0}, "at least 2 Lanczos steps"),
        ({"steps": 24.0}, "steps is 24.0"),
        ({"steps": True}, "use an integer >= 2"),
        ({"probes": 0}, "probes is 0"),
        ({"probes": True}, "probes is True"),
        ({"points": 3}, "points is 3"),
        ({"bandwidth": 0.0}, "bandwidth is 0.0"),
        ({"bandwidth": -1}, "bandwidth is -1"),
        ({"bandwidth": float("nan")}, "bandwidth is nan"),
        ({"bandwidth": "auto"}, "bandwidth is 'auto'"),
    ],
)
def test_options_that_cannot_be_meant(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        Density(**arguments)  # type: ignore[arg-type]
    assert caught.value.what_to_do


def test_the_recurrence_is_carried_out_in_float64() -> None:
    """Its first vectors are orthogonal; with lengths rounded to float32 they are so to 1e-8 only."""
    matrix, asked = matrix_of("uniform"), []
    process = StochasticLanczos(N, Density(probes=1, steps=5), lambda number: random_unit(N, 0, "test", number))
    while not process.done:
        asked.append(process.ask()[0].numpy())
        process.tell(torch.from_numpy(asked[-1][None] @ matrix))
    np.testing.assert_allclose(np.array(asked) @ np.array(asked).T, np.eye(5), atol=1e-13)

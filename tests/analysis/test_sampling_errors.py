"""Sampling errors through ``analyze``: against the groups' own dense matrices, and the spread of fresh data sets."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import layerhess as lh
from grouped_batches import flat, grouped_problem, own_matrices, whole_batches
from layerhess.analysis.sampling_errors import ratio_error, shared_error


@cache
def sixteen(reduction: str) -> lh.Analysis:
    """Both ends of every block's spectrum on sixteen batches."""
    model, batches = grouped_problem()
    objective = lh.Objective(model, batches[:16], nn.CrossEntropyLoss(reduction=reduction))
    with whole_batches():
        return lh.analyze(objective, bottom=1, sampling=True, tol=1e-9)


def test_sampling_errors_are_those_of_the_groups_own_matrices() -> None:
    """v'A_g v and tr A_g of every batch from its own dense Hessian, put into the ratio estimator by hand."""
    model, batches = grouped_problem()
    with whole_batches():
        analysis = lh.analyze(lh.Objective(model, batches, nn.CrossEntropyLoss()), top=2, trace=True, sampling=True)
    counts = np.array([float(len(y)) for _, y in batches])
    own = own_matrices()
    start = 0
    for name, spectrum in analysis.blocks.items():
        place = slice(start, start + spectrum.numel)
        start += spectrum.numel
        for index, vector in enumerate(spectrum.eigenvectors):
            v = flat(vector)
            forms = np.array([v @ matrix[place, place] @ v for matrix in own])
            rest = forms - forms.sum() / counts.sum() * counts
            expected = math.sqrt(len(own) / (len(own) - 1) * (rest**2).sum()) / counts.sum()
            assert spectrum.sampling_errors[index] == pytest.approx(expected, rel=1e-6), name
        traces = np.array([np.trace(matrix[place, place]) for matrix in own])
        assert spectrum.trace is not None
        assert 0.5 <= spectrum.trace.sampling_error / ratio_error(traces, counts) <= 2.0, name
    assert any("would halve it" in note for note in analysis.notes)


def test_eigenvalues_of_a_block_read_whole_take_no_products_beside_its_trace() -> None:
    """16 groups: two eigenvectors of each of the larger blocks and the full model, the small ones whole, 8 probes."""
    model, batches = grouped_problem()
    objective = lh.Objective(model, batches[:16], nn.CrossEntropyLoss())
    with whole_batches():
        analysis = lh.analyze(objective, bottom=1, trace=True, sampling=True, tol=1e-9, path="exact")
    sizes = {name: s.numel for name, s in analysis.blocks.items()}
    assert sizes == {"0.weight": 60, "0.bias": 12, "2.weight": 36, "2.bias": 3}
    assert analysis.counts.by_phase["sampling"]["products"] == 16 * (3 * 2 + 12 + 3 + 8)
    alone = sixteen("mean")
    for one, other in zip(analysis.spectra(), alone.spectra(), strict=True):
        assert one.sampling_errors == pytest.approx(other.sampling_errors, rel=1e-6)


def test_one_large_batch_is_cut_into_groups() -> None:
    model, batches = grouped_problem()
    whole = (torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))
    analysis = lh.analyze(lh.Objective(model, whole, nn.CrossEntropyLoss()), sampling=True)
    assert all(np.isfinite(s.sampling_errors).all() for s in analysis.spectra())
    assert analysis.counts.by_phase["sampling"]["forwards"] >= 16


def test_sampling_errors_need_groups() -> None:
    """BatchNorm in train mode: the two batches cannot be cut, and two are too few."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    batches = [(torch.randn(9, 4), torch.randint(3, (9,))) for _ in range(2)]
    analysis = lh.analyze(lh.Objective(model, batches, nn.CrossEntropyLoss()), sampling=True)
    assert all(np.isnan(s.sampling_errors).all() for s in analysis.spectra())
    assert any("not measured" in note and "BatchNorm" in note for note in analysis.notes)


def test_a_sum_has_a_sampling_error_of_its_own() -> None:
    """The error of a sum over n groups is n times that of their mean."""
    sums = np.array([1.0, 2.0, 4.0, 3.0])
    assert 4 * ratio_error(sums, np.ones(4)) == pytest.approx(4 * sums.std(ddof=1) / 2)
    for one, other in zip(sixteen("mean").spectra(), sixteen("sum").spectra(), strict=True):
        assert other.sampling_errors[0] / other.eigenvalues[0] == pytest.approx(
            one.sampling_errors[0] / one.eigenvalues[0], rel=1e-3
        )


def test_probes_do_not_make_a_sampling_error() -> None:
    """Groups that are all alike: what differs is the probes only, and drops out."""
    rng = np.random.default_rng(0)
    probes = rng.standard_normal(8)
    same = np.tile(probes, (12, 1))
    assert shared_error(same, np.ones(12)) <= 1e-12
    data = rng.standard_normal(4000)
    noisy = data[:, None] + 3.0 * rng.standard_normal((4000, 8))
    assert shared_error(noisy, np.ones(4000)) == pytest.approx(1.0 / math.sqrt(4000), rel=0.1)


@pytest.mark.slow
def test_sampling_errors_cover_the_spread_between_fresh_data_sets() -> None:
    """The same weights, 40 data sets: never much too small, too large where neighbours are close.

    docs/explanation/uncertainty.md has the figures.
    """
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    values: dict[str, list[np.ndarray]] = {"0.weight": [], "(full)": []}
    stated: dict[str, list[np.ndarray]] = {"0.weight": [], "(full)": []}
    for seed in range(40):
        rng = torch.Generator().manual_seed(seed)
        x = torch.randn(256, 10, generator=rng).double()
        y = torch.multinomial((3 * teacher(x)).softmax(1), 1, generator=rng)[:, 0]
        objective = lh.Objective(model, (x, y), nn.CrossEntropyLoss())
        analysis = lh.analyze(objective, blocks={"0.weight": "0.weight"}, top=3, sampling=True)
        for spectrum in analysis.spectra():
            values[spectrum.name].append(spectrum.eigenvalues)
            stated[spectrum.name].append(spectrum.sampling_errors)
    ratios = {name: np.mean(stated[name], axis=0) / np.std(values[name], axis=0, ddof=1) for name in values}
    # A spread of 40 values is known to 11 %; 0.7 is three times that below 1.
    assert all((ratio >= 0.7).all() for ratio in ratios.values()), ratios
    assert (ratios["(full)"] <= 1.8).all() and (ratios["0.weight"] <= 3.5).all(), ratios
    assert ratios["0.weight"].min() >= 1.5

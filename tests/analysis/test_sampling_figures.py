"""Sampling errors worked out once more from every group's dense matrix, with and without eigenvectors."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import layerhess as lh
from grouped_batches import dealt, flat, grouped_problem, jackknifed, own_matrices, whole_batches
from layerhess.analysis.sampling_errors import ratio_error, shared_error
from layerhess.linalg.random_vectors import random_signs

CE = nn.CrossEntropyLoss()
Matrix = np.ndarray[Any, np.dtype[np.float64]]


@pytest.mark.parametrize("groups", [4, 5, 18])
def test_the_error_of_a_ratio_knows_the_sizes_of_its_groups(groups: int) -> None:
    rng = np.random.default_rng(groups)
    counts = rng.integers(1, 30, groups).astype(float)
    sums = counts * rng.standard_normal(groups)
    assert ratio_error(sums, counts) == pytest.approx(jackknifed(sums, counts), rel=1e-12)
    assert ratio_error(3.0 * counts, counts) == pytest.approx(0.0, abs=1e-12)  # sizes alone are no spread
    mean = sums / counts
    equal = np.full(groups, 7.0)
    assert ratio_error(7.0 * mean, equal) == pytest.approx(mean.std(ddof=1) / math.sqrt(groups), rel=1e-12)


@pytest.mark.parametrize("probes", [2, 8])
def test_the_error_shared_by_probes_is_their_mean_covariance(probes: int) -> None:
    rng = np.random.default_rng(probes)
    counts = rng.integers(1, 30, 12).astype(float)
    common = counts * rng.standard_normal(12)
    sums = common[:, None] + 0.3 * counts[:, None] * rng.standard_normal((12, probes))
    rest = sums - np.outer(counts, sums.sum(axis=0)) / counts.sum()
    pairs = [rest[:, i] @ rest[:, j] for i in range(probes) for j in range(probes) if i != j]
    expected = math.sqrt(12 / 11 * np.mean(pairs)) / counts.sum()
    assert np.mean(pairs) > 0.5 * (rest.mean(axis=1) ** 2).sum()
    assert shared_error(sums, counts) == pytest.approx(expected, rel=1e-12)
    alone = counts[:, None] * rng.standard_normal((12, probes))  # nothing in common: half the spread of the mean
    alone -= alone.mean(axis=1, keepdims=True) * 0.9
    rest = alone - np.outer(counts, alone.sum(axis=0)) / counts.sum()
    least = math.sqrt(12 / 11 * (rest.mean(axis=1) ** 2).sum() / 2) / counts.sum()
    assert shared_error(alone, counts) == pytest.approx(least, rel=1e-12)


@cache
def problem() -> tuple[nn.Module, list[Any], list[Matrix], Matrix]:
    """The model, its batches, every batch's own dense Hessian times its size, and the sizes."""
    model, batches = grouped_problem()
    return model, batches, own_matrices(), np.array([float(len(y)) for _, y in batches])


@cache
def analysed(top: int) -> lh.Analysis:
    model, batches, _, _ = problem()
    objective = lh.Objective(model, batches, CE)
    with whole_batches():
        return lh.analyze(objective, top=top, trace=True, sampling=True, path="exact", tol=1e-8)


@pytest.mark.parametrize("top", [0, 2])
def test_traces_have_the_errors_of_the_groups_own_traces(top: int) -> None:
    """Small blocks whole; the larger ones from what their eigenvectors have and eight probes beside them."""
    _, _, own, counts = problem()
    analysis = analysed(top)
    size = own[0].shape[0]
    signs = torch.stack([random_signs(size, 0, "(sampling)", i) for i in range(8)]).numpy()
    projected, known_sum, start = signs.copy(), np.zeros(len(own)), 0
    places, known = {}, {}
    for name, spectrum in analysis.blocks.items():
        places[name] = slice(start, start + spectrum.numel)
        start += spectrum.numel
        vectors = np.array([flat(v) for v in spectrum.eigenvectors]).reshape(-1, spectrum.numel)
        place = places[name]
        projected[:, place] -= projected[:, place] @ vectors.T @ vectors
        known[name] = np.array([np.trace(vectors @ matrix[place, place] @ vectors.T) for matrix in own])
        known_sum = known_sum + known[name]
    for name, place in places.items():
        trace = analysis.blocks[name].trace
        assert trace is not None
        if place.stop - place.start <= 32:
            expected = jackknifed(np.array([np.trace(matrix[place, place]) for matrix in own]), counts)
        else:
            # Of one product with all parameters every block takes its own components.
            forms = np.array([((projected @ matrix) * projected)[:, place].sum(axis=1) for matrix in own])
            expected = shared_error(known[name][:, None] + forms, counts)
        assert trace.sampling_error == pytest.approx(expected, rel=1e-6), name
    assert analysis.full is not None and analysis.full.trace is not None
    forms = np.array([np.einsum("ij,jk,ik->i", projected, matrix, projected) for matrix in own])
    expected = shared_error(known_sum[:, None] + forms, counts)
    assert analysis.full.trace.sampling_error == pytest.approx(expected, rel=1e-6)


def test_every_pair_has_the_error_of_its_forms_over_the_groups() -> None:
    _, _, own, counts = problem()
    analysis, start = analysed(2), 0
    places = {}
    for name, spectrum in analysis.blocks.items():
        places[name] = slice(start, start + spectrum.numel)
        start += spectrum.numel
    places["(full)"] = slice(0, start)
    for spectrum in analysis.spectra():
        place = places[spectrum.name]
        assert len(spectrum.eigenvalues) == 2 and not np.isnan(spectrum.sampling_errors).any()
        for vector, error in zip(spectrum.eigenvectors, spectrum.sampling_errors, strict=True):
            v = flat(vector)
            forms = np.array([v @ matrix[place, place] @ v for matrix in own])
            assert error == pytest.approx(jackknifed(forms, counts), rel=1e-6), spectrum.name


@pytest.mark.parametrize(
    ("examples", "groups"),
    [(4, 4), (5, 5), (47, 47), (64, 64), (65, 16), (79, 16), (80, 16)],
)
def test_one_batch_is_cut_into_its_examples_or_sixteen_groups(examples: int, groups: int) -> None:
    model, batches, _, _ = problem()
    x, y = (torch.cat(parts)[:examples] for parts in zip(*batches, strict=True))
    analysis = lh.analyze(lh.Objective(model, (x, y), CE), blocks={"b": "2.bias"}, full=False, sampling=True)
    said = [int(n) for note in analysis.notes for n in re.findall(r"between (\d+) groups of", note)]
    assert said == [groups]
    cuts = dealt(x, y, groups)
    counts = np.array([float(len(part)) for _, part in cuts])
    assert counts.max() - counts.min() <= 1.0
    block = analysis.blocks["b"]
    v = flat(block.eigenvectors[0])
    own = [
        lh.Hessian(lh.Objective(model, (a, b), CE), {"b": "2.bias"}, check=False).block("b").to_dense().numpy() * len(b)
        for a, b in cuts
    ]
    forms = np.array([v @ matrix @ v for matrix in own])
    assert block.sampling_errors[0] == pytest.approx(jackknifed(forms, counts), rel=1e-6)


def test_fewer_than_four_groups_say_nothing() -> None:
    model, batches, _, _ = problem()
    x, y = (torch.cat(parts)[:3] for parts in zip(*batches, strict=True))
    analysis = lh.analyze(lh.Objective(model, (x, y), CE), blocks={"b": "2.bias"}, full=False, sampling=True)
    assert np.isnan(analysis.blocks["b"].sampling_errors).all()
    assert any("3 examples are too few to compare" in note for note in analysis.notes)


def test_a_block_without_curvature_is_left_out_and_the_others_are_not() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        model[0].bias.fill_(-1e3)  # nothing passes
    data = [(torch.randn(6, 4).double(), torch.arange(6) % 3) for _ in range(5)]
    analysis = lh.analyze(lh.Objective(model, data, CE), full=False, sampling=True)
    errors = {name: block.sampling_errors for name, block in analysis.blocks.items()}
    assert np.isnan(errors["0.weight"]).all() and np.isnan(errors["0.bias"]).all()
    assert errors["2.bias"].shape == (1,) and not np.isnan(errors["2.bias"]).any()

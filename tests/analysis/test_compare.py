"""``compare`` on real analyses: found where weights changed, quiet where only the examples did; refusals."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fabricated
import layerhess as lh
from commands import quick_report
from compared_networks import analysed, examples, network, scaled
from grouped_batches import flat, grouped_problem, own_matrices, whole_batches
from references import dense
from zoo_losses import cross_entropy_totals


def share_called_different(seeds: range, number: int) -> tuple[float, int]:
    analyses = [analysed(seed, number) for seed in seeds]
    found = [b for a, c in itertools.combinations(analyses, 2) for b in lh.compare([a, c]).blocks.values()]
    assert not any(block.paired for block in found) and all(math.isfinite(block.p_value) for block in found)
    return sum(block.significant for block in found) / len(found), len(found)


def test_of_the_same_weights_on_other_examples_few_layers_are_called_different() -> None:
    share, number = share_called_different(range(10), 128)
    assert number == 45 * 4 and share <= 0.05, share


@pytest.mark.slow
@pytest.mark.parametrize("number", [40, 64, 128, 512, 2048])
def test_few_layers_are_called_different_over_many_pairs(number: int) -> None:
    share, pairs = share_called_different(range(100, 140), number)
    assert pairs == 780 * 4 and share <= 0.05, share


@pytest.mark.parametrize("layer", [0, 3, 6])
def test_a_layer_whose_weights_were_scaled_by_a_tenth_is_found_and_no_other(layer: int) -> None:
    """Behind it is a normalisation: its curvature is 1.1^-2 of what it was, exactly, and all others' is the same."""
    found = lh.compare([scaled(0, 1.0), scaled(layer)]).blocks
    name = f"{layer}.weight"
    assert found[name].paired and found[name].significant and found[name].status.startswith("different")
    assert found[name].log_ratio == pytest.approx(-2.0 * math.log(1.1), abs=1e-5)
    assert found[name].scale_free_log_ratio == pytest.approx(0.0, abs=1e-5)
    assert not found[name].scale_free_significant
    assert found[name].overlap == pytest.approx(1.0, abs=1e-4)
    others = {key for key, block in found.items() if block.significant} - {name, "(full)"}
    assert not others
    quiet = [block for key, block in found.items() if key not in (name, "(full)")]
    assert all(block.log_ratio == pytest.approx(0.0, abs=block.error_bound) for block in quiet) and len(quiet) == 3


def test_a_scaled_layer_is_found_on_other_examples_too_where_there_are_enough() -> None:
    """Twice the last layer of a plain network, 2000 examples each: the standard errors are a few per cent."""
    model = network()
    with torch.no_grad():
        model[4].weight *= 2.0  # type: ignore[operator]
    other = lh.analyze(lh.Objective(model, examples(51, 2000), nn.CrossEntropyLoss()), "weight", sampling=True)
    found = lh.compare([analysed(50, 2000), other]).blocks
    assert found["2.weight"].significant and not found["2.weight"].paired
    assert found["2.weight"].log_ratio > 0.2


def test_paired_standard_errors_are_those_of_the_groups_own_matrices() -> None:
    """From every batch's own dense Hessian at two sets of weights, put together by hand."""
    model, batches = grouped_problem()
    with torch.no_grad():
        model[0].weight *= 1.3  # type: ignore[operator]
    second = [dense.reference_for(model, [b], cross_entropy_totals).matrix * len(b[1]) for b in batches]
    with whole_batches():
        a = lh.analyze(lh.Objective(grouped_problem()[0], batches, nn.CrossEntropyLoss()), sampling=True, tol=1e-8)
        b = lh.analyze(lh.Objective(model, batches, nn.CrossEntropyLoss()), sampling=True, tol=1e-8)
    counts = np.array([float(len(y)) for _, y in batches])
    found, start = lh.compare([a, b]), 0
    for name, spectrum in a.blocks.items():
        place = slice(start, start + spectrum.numel)
        start += spectrum.numel
        shifts = np.zeros(len(batches))
        for sign, own, matrices in ((-1, spectrum, own_matrices()), (1, b.blocks[name], second)):
            v = flat(own.eigenvectors[0])
            forms = np.array([v @ matrix[place, place] @ v for matrix in matrices])
            assert own.sampling_sums[0] == pytest.approx(forms, rel=1e-6)
            shifts += sign * (forms - own.eigenvalues[0] * counts) / (own.eigenvalues[0] * counts.sum())
        expected = math.sqrt(len(shifts) / (len(shifts) - 1) * float((shifts**2).sum()))
        assert found.blocks[name].paired and found.blocks[name].freedom == 17.0
        assert found.blocks[name].standard_error == pytest.approx(expected, rel=1e-5), name


@pytest.mark.slow
def test_paired_standard_errors_are_the_spread_of_fresh_data_sets() -> None:
    """Two fixed sets of weights on 40 data sets: never much too small, too large where neighbours are close."""
    one, other = network(), network()
    rng = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=rng)
    ratios: dict[str, list[float]] = {}
    stated: dict[str, list[float]] = {}
    for seed in range(1000, 1040):
        pair = [
            lh.analyze(lh.Objective(model, examples(seed), nn.CrossEntropyLoss()), "weight", sampling=True)
            for model in (one, other)
        ]
        for name, block in lh.compare(pair).blocks.items():
            assert block.paired
            ratios.setdefault(name, []).append(block.log_ratio)
            stated.setdefault(name, []).append(block.standard_error)
    found = {name: np.sqrt(np.mean(np.square(stated[name]))) / np.std(ratios[name], ddof=1) for name in ratios}
    # A spread of 40 values is known to 11 %; 0.7 is three times that below 1.
    assert len(found) == 4 and all(0.7 <= ratio <= 2.5 for ratio in found.values()), found


def test_without_sampling_errors_nothing_is_significant() -> None:
    objective = lh.Objective(network(), examples(0), nn.CrossEntropyLoss())
    found = lh.compare([lh.analyze(objective, "weight"), analysed(1)])
    assert not any(block.significant or block.paired for block in found.blocks.values())
    assert all(math.isnan(block.standard_error) for block in found.blocks.values())
    assert all(math.isfinite(block.log_ratio) for block in found.blocks.values())
    assert "sampling=True" in str(found)


def test_saved_analyses_give_the_same_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_report(monkeypatch)
    a, b = analysed(0), analysed(1)
    folders = [a.save(tmp_path / "a"), str(b.save(tmp_path / "b"))]
    one, other = lh.compare(folders), lh.compare([a, b])
    first, second = json.loads(one.to_json()), json.loads(other.to_json())
    assert first["blocks"] == second["blocks"] and first["first"] == str(folders[0])
    assert first["format"] == "layerhess comparison"
    block = first["blocks"]["(full)"]
    assert block["log_ratio"] == other.blocks["(full)"].log_ratio and isinstance(block["angles"], list)


def test_further_analyses_are_compared_with_the_first() -> None:
    a, b, c = (analysed(seed) for seed in range(3))
    found = lh.compare([a, b, c])
    assert found.further[0].blocks["0.weight"].log_ratio == lh.compare([a, c]).blocks["0.weight"].log_ratio
    assert found.blocks["0.weight"].log_ratio == lh.compare([a, b]).blocks["0.weight"].log_ratio
    frame = found.to_frame()
    assert list(frame["second"].unique()) == ["analysis 2", "analysis 3"] and set(frame["first"]) == {"analysis 1"}
    assert len(frame) == 2 * 4 and frame["log_ratio"].notna().all() and frame["largest_angle"].notna().all()
    assert "1 further" in repr(found)


def test_an_analysis_does_not_differ_from_itself() -> None:
    found = lh.compare([analysed(0), analysed(0)])
    for block in found.blocks.values():
        assert (block.log_ratio, block.scale_free_log_ratio, block.p_value) == (0.0, 0.0, 1.0)
        assert block.overlap == pytest.approx(1.0) and block.angles[-1] <= block.angle_bound
        assert block.paired and block.status == "within bounds"


def _of(**changes: Any) -> lh.Analysis:
    return fabricated.analysis(**changes)


@pytest.mark.parametrize(
    ("analyses", "said"),
    [
        ([], "two analyses or more, and none was given"),
        ([_of()], "two analyses or more, and 1 was given"),
        (_of(), "not a list"),
        ("results", "not a list"),
        ([_of(), 3], "number 2 is int, not an analysis"),
        ([_of(), "/nowhere/at all"], "no such folder"),
        ([_of(), _of(blocks={"x": fabricated.spectrum("x")}, full=None)], "no block in common"),
        ([_of(), _of(blocks={"x": fabricated.spectrum("x")})], "no block in common"),
        ([_of(), fabricated.one(fabricated.spectrum("fc", operator="gauss_newton"))], "different matrices"),
        ([_of(), _of(settings={"stop_gradients": "constant"})], "different matrices"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_a_sentence(analyses: Any, said: str) -> None:
    with pytest.raises(lh.InputError) as caught:
        lh.compare(analyses)
    assert said in str(caught.value) and caught.value.what_to_do and "\n" not in str(caught.value)

"""Eigenvalues, bounds, eigenvectors and statuses of ``analyze`` against dense float64 spectra, over the whole zoo."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import layerhess as lh
from references import dense
from zoo import BY_NAME, CASES, Case, twins

TOP, BOTTOM = 3, 2

SMALL = [case for case in CASES if "large" not in case.tags]

# Every case under one of the schemes, each of them in turn; the whole table is slow.
SCHEMES_OF_CASES = [
    pytest.param(case, scheme, id=f"{case}-{scheme}", marks=() if now else pytest.mark.slow)
    for number, case in enumerate(SMALL)
    for scheme in dense.SCHEMES
    for now in [scheme == dense.SCHEMES[number % len(dense.SCHEMES)] and case not in twins(1)]
]


def expected_values(matrix: NDArray[np.float64], top: int = TOP, bottom: int = BOTTOM) -> NDArray[np.float64]:
    """The ``top`` largest and ``bottom`` smallest eigenvalues, descending; all of them where there are fewer."""
    values = np.linalg.eigvalsh(matrix)[::-1]
    return values if len(values) <= top + bottom else np.concatenate([values[:top], values[len(values) - bottom :]])


def flat_vectors(result: Any, members: list[str]) -> NDArray[np.float64]:
    """The eigenvectors of a result as columns (P_b, k) in the order of the model."""
    columns = []
    for vector in result.eigenvectors:
        assert list(vector) == members
        columns.append(torch.cat([part.reshape(-1) for part in vector.values()]).double().numpy())
    return np.stack(columns, axis=1)


def slack_of(case: Case, reference: dense.Reference) -> float:
    """What no bound of ours can cover: the reference's own rounding, and what the loss itself leaves out."""
    return reference.uncertainty + case.inherent * reference.norm


def assert_values_within_bounds(result: Any, matrix: NDArray[np.float64], slack: float) -> None:
    """Every eigenvalue is within its bound of the true one; ``slack`` is what the reference itself leaves open."""
    truth = expected_values(matrix)
    assert result.eigenvalues.dtype == np.float64
    assert result.eigenvalues.shape == result.error_bounds.shape == truth.shape
    assert len(result.converged) == len(truth) and all(result.converged), result.status
    assert (np.diff(result.eigenvalues) <= 0).all()
    assert (np.abs(result.eigenvalues - truth) <= result.error_bounds + slack).all()
    assert isinstance(result.status, str) and result.status
    assert result.numel == len(matrix)


def assert_eigenvectors(result: Any, matrix: NDArray[np.float64], members: list[str], slack: float) -> None:
    """Unit norm, positive largest component, small residual, and at most residual / gap outside the eigenspace."""
    vectors = flat_vectors(result, members)
    spectrum, basis = np.linalg.eigh(matrix)
    accuracy = 1e-5 if next(iter(result.eigenvectors[0].values())).dtype == torch.float32 else 1e-10
    assert np.abs(np.linalg.norm(vectors, axis=0) - 1).max() <= accuracy
    assert (vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])] > 0).all()
    assert np.abs(vectors.T @ vectors - np.eye(vectors.shape[1])).max() <= 100 * accuracy
    residuals = np.linalg.norm(matrix @ vectors - vectors * result.eigenvalues, axis=0)
    assert (residuals <= result.error_bounds + slack).all()
    scale = np.abs(spectrum).max()
    for value, residual, vector in zip(result.eigenvalues, residuals, vectors.T, strict=True):
        distance = np.abs(spectrum - value)
        near = distance <= max(0.02 * scale, 4 * residual)  # the eigenspace, with what lies too close to tell apart
        if near.all():
            continue
        outside = np.linalg.norm(basis[:, ~near].T @ vector)
        assert outside <= (residual + slack) / distance[~near].min() + accuracy


@pytest.mark.parametrize(("case", "scheme"), SCHEMES_OF_CASES)
def test_blocks_of_every_scheme_and_the_whole_model_lie_within_their_bounds(case: Case, scheme: str) -> None:
    reference = dense.of_case(case.name)
    built = case.build(torch.float64, 0)
    blocks = dense.scheme_for(built.model, scheme)
    groups = dense.groups_of(built.model, blocks)
    analysis = lh.analyze(built.objective(), blocks=blocks, top=TOP, bottom=BOTTOM, tol=1e-5)
    assert list(analysis.blocks) == list(groups)
    slack = slack_of(case, reference)
    assert_values_within_bounds(analysis.full, reference.matrix, slack)
    assert_eigenvectors(analysis.full, reference.matrix, list(reference.places), slack)
    for name, members in groups.items():
        matrix, result = reference.block(members), analysis.blocks[name]
        assert_values_within_bounds(result, matrix, slack)
        if not set(members) <= set(case.zero + case.unused):
            assert_eigenvectors(result, matrix, members, slack)
            assert not result.status.startswith("zero")


@pytest.mark.parametrize(
    ("case", "seed"),
    [
        pytest.param(case, seed, id=f"{case}-{seed}", marks=() if now else pytest.mark.slow)
        for number, case in enumerate(SMALL)
        for seed in range(6)
        for now in [seed == number % 3 == 0 and case not in twins(0)]
    ],
)
def test_float32_intervals_contain_the_eigenvalues_of_the_float32_model(case: Case, seed: int) -> None:
    """The truth is the float64 Hessian at the float32 weights and data: what the float32 computation approximates."""
    built = case.build(torch.float32, seed)
    twin = case.build(torch.float32, seed)
    twin.model.double().train(twin.model.training and twin.kwargs.get("mode") != "eval")
    batches = [_doubled(batch) for batch in (twin.data if isinstance(twin.data, list) else [twin.data])]
    reference = dense.reference_for(twin.model, batches, case.totals)
    analysis = lh.analyze(built.objective(), blocks="parameter", top=TOP, bottom=BOTTOM, seed=seed)
    for name in [*reference.places, None]:
        result = analysis.full if name is None else analysis.blocks[name]
        matrix = reference.matrix if name is None else reference.block([name])
        assert_values_within_bounds(result, matrix, reference.uncertainty)


def _doubled(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {key: _doubled(value) for key, value in batch.items()}
    return tuple(_doubled(value) for value in batch)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case), marks=pytest.mark.slow if case in twins(0) else ())
        for case in CASES
        if case.zero or case.unused
    ],
)
def test_zero_blocks_say_so(case: Case) -> None:
    """Eigenvalue 0.0 and status "zero"; a bound of exactly zero only where autograd reports no dependence."""
    built = case.build(torch.float64, 0)
    analysis = lh.analyze(built.objective(), blocks="parameter", top=1, bottom=1, full=False)
    assert analysis.full is None
    norm = dense.of_case(case.name).norm
    level = 1e-4 if "own loss" in case.tags else 1e-12
    for name in case.zero + case.unused:
        result = analysis.blocks[name]
        assert "zero" in result.status.lower()
        assert (result.eigenvalues == 0.0).all()
        assert all(result.converged)
        assert (result.error_bounds <= level * norm).all()
        assert (result.error_bounds == 0.0).all() == (name in case.unused)


@pytest.mark.parametrize("name", ["mlp-tanh-wide", "cnn-relu-wide"])
@pytest.mark.parametrize("tol", [1e-2, 1e-6])
def test_bounds_of_larger_models_are_honest_at_every_tolerance(name: str, tol: float) -> None:
    """A bound contains the truth, meets the tolerance where it says converged, and is tight where it is rounding."""
    reference = dense.of_case(name)
    analysis = lh.analyze(BY_NAME[name].build(torch.float64, 0).objective(), top=TOP, bottom=BOTTOM, tol=tol)
    for result, matrix in [(analysis.full, reference.matrix)] + [
        (analysis.blocks[block], reference.block([block])) for block in reference.places
    ]:
        assert_values_within_bounds(result, matrix, reference.uncertainty)
        allowed = tol * np.maximum(np.abs(result.eigenvalues), 0.1 * np.abs(np.linalg.eigvalsh(matrix)).max())
        assert (result.error_bounds <= allowed * (1 + 1e-9)).all()


def test_complete_blocks_carry_their_whole_spectrum() -> None:
    """A block with fewer parameters than eigenvalues asked for is complete: its spectrum is the dense one."""
    reference = dense.of_case("root-parameters")
    built = BY_NAME["root-parameters"].build(torch.float64, 0)
    analysis = lh.analyze(built.objective(), blocks="parameter", top=TOP, bottom=BOTTOM)
    for name in ("shift", "temperature", "layer.bias"):
        result, truth = analysis.blocks[name], np.linalg.eigvalsh(reference.block([name]))[::-1]
        assert result.complete
        assert result.spectrum is not None and len(result.spectrum) == len(truth)
        assert np.abs(np.sort(result.spectrum)[::-1] - truth).max() <= reference.uncertainty + 1e-13
        assert len(result.eigenvalues) == min(len(truth), TOP + BOTTOM)


def test_stopped_early_is_said_and_the_bounds_still_hold() -> None:
    """Too few passes: not converged, and what there is lies within its bounds of some eigenvalue."""
    name = "mlp-tanh-wide"
    spectrum = np.linalg.eigvalsh(dense.of_case(name).matrix)
    analysis = lh.analyze(BY_NAME[name].build(torch.float64, 0).objective(), top=2, max_passes=8, tol=1e-10)
    assert not all(analysis.full.converged)
    assert "not converged" in analysis.full.status.lower()
    for value, bound in zip(analysis.full.eigenvalues, analysis.full.error_bounds, strict=True):
        assert np.abs(spectrum - value).min() <= bound


def test_the_same_seed_gives_the_same_numbers() -> None:
    runs = [
        lh.analyze(BY_NAME["mlp-tanh-wide"].build(torch.float64, 0).objective(), top=2, seed=3).full for _ in range(2)
    ]
    assert (runs[0].eigenvalues == runs[1].eigenvalues).all()
    assert (runs[0].error_bounds == runs[1].error_bounds).all()


def test_power_iteration_finds_the_eigenvalue_largest_in_magnitude() -> None:
    """Kept for teaching: one pair for each block, its bound as honest as any other."""
    name = "mlp-tanh-mse"
    reference = dense.of_case(name)
    analysis = lh.analyze(BY_NAME[name].build(torch.float64, 0).objective(), method="power", top=1, full=False)
    for block in reference.places:
        spectrum = np.linalg.eigvalsh(reference.block([block]))
        result = analysis.blocks[block]
        assert np.abs(spectrum - result.eigenvalues[0]).min() <= result.error_bounds[0] + reference.uncertainty
        if all(result.converged):
            largest = np.abs(spectrum).max()
            assert abs(abs(result.eigenvalues[0]) - largest) <= result.error_bounds[0] + reference.uncertainty

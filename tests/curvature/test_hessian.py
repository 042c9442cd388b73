"""Products with the Hessian are those of the dense float64 Hessian, on every case of the zoo and for every scheme."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import layerhess as lh
from products_compared import FLOOR, distance, random_vector
from references import dense
from zoo import BY_NAME, CASES, Case, batches_of

# Moving a padding row shows although autograd holds it constant; a model's own loss has a twin here with its logits.
MOVABLE = [case for case in CASES if not case.tags & {"padding", "own loss"}]

# One test of every case knocks at the door with its checks; the products behind it are the same without.
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.mark.parametrize("case", MOVABLE, ids=str)
def test_the_finite_differences_of_gradients_agree_with_the_dense_reference(case: Case) -> None:
    """The reference itself is checked first: by first derivatives of the model moved in place."""
    reference = dense.of_case(case.name)
    built = case.build(torch.float64, 0)
    built.model.train(built.model.training and built.kwargs.get("mode") != "eval")
    directions = random_vector(6 * len(reference.matrix), seed=0).view(6, -1)
    directions /= directions.norm(dim=1, keepdim=True)
    found = dense.products_by_differences(built.model, batches_of(built.data), case.totals, directions)
    expected = directions.numpy() @ reference.matrix
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


@every_case
def test_flat_and_named_vectors_give_the_full_product(case: Case) -> None:
    reference = dense.of_case(case.name)
    built = case.build(torch.float64, 0)
    hessian = lh.Hessian(built.objective(), "parameter")
    vector = random_vector(len(reference.matrix), seed=1)
    expected = reference.matrix @ vector.numpy()
    found = hessian.matvec(vector)
    assert found.shape == vector.shape
    assert distance(found, expected) <= case.tolerance * np.linalg.norm(expected)
    shapes = {name: p.shape for name, p in dense.trainable(built.model).items()}
    named = {name: vector[reference.places[name]].view(shape) for name, shape in shapes.items()}
    answer = hessian.matvec(named)
    assert list(answer) == list(shapes)
    assert all(answer[name].shape == shape for name, shape in shapes.items())
    flat = torch.cat([part.reshape(-1) for part in answer.values()])
    assert distance(flat, expected) <= case.tolerance * np.linalg.norm(expected)


@every_case
def test_the_dense_matrix_and_the_scipy_operator_are_the_full_hessian(case: Case) -> None:
    reference = dense.of_case(case.name)
    hessian = lh.Hessian(case.build(torch.float64, 0).objective(), "parameter", check=False)
    operator = hessian.to_scipy()
    assert operator.shape == reference.matrix.shape
    pair = np.random.default_rng(2).standard_normal((len(reference.matrix), 2))
    expected = reference.matrix @ pair
    assert np.linalg.norm(operator @ pair - expected) <= case.tolerance * np.linalg.norm(expected)
    assert np.linalg.norm(operator @ pair[:, 0] - expected[:, 0]) <= case.tolerance * np.linalg.norm(expected[:, 0])
    if len(reference.matrix) > 60:  # column by column it says nothing that the products above did not
        return
    matrix = hessian.to_dense()
    assert distance(matrix, reference.matrix) <= case.tolerance * np.linalg.norm(reference.matrix)


@pytest.mark.parametrize(
    ("case", "scheme"),
    [
        pytest.param(case, scheme, id=f"{case}-{scheme}", marks=() if (number + place) % 3 == 0 else pytest.mark.slow)
        for number, case in enumerate(CASES)
        for place, scheme in enumerate(dense.SCHEMES)
    ],
)
def test_one_call_gives_the_product_of_every_diagonal_block(case: Case, scheme: str) -> None:
    reference = dense.of_case(case.name)
    built = case.build(torch.float64, 0)
    blocks = dense.scheme_for(built.model, scheme)
    groups = dense.groups_of(built.model, blocks)
    hessian = lh.Hessian(built.objective(), blocks, check=False)
    vectors = {
        name: random_vector(len(reference.index(members)), seed) for seed, (name, members) in enumerate(groups.items())
    }
    products = hessian.block_matvec(vectors)
    assert list(products) == list(groups)
    floor = FLOOR * np.linalg.norm(reference.matrix)
    for name, members in groups.items():
        expected = reference.block(members) @ vectors[name].numpy()
        assert products[name].shape == vectors[name].shape
        allowed = case.tolerance * np.linalg.norm(expected) + floor * np.linalg.norm(vectors[name])
        assert distance(products[name], expected) <= allowed, name


@every_case
def test_single_blocks_are_cut_out_of_the_full_hessian(case: Case) -> None:
    reference = dense.of_case(case.name)
    built = case.build(torch.float64, 0)
    scheme = "weight" if "large" in case.tags else "module" if len(reference.matrix) > 150 else "parameter"
    groups = dense.groups_of(built.model, scheme)
    hessian = lh.Hessian(built.objective(), scheme, check=False)
    floor = FLOOR * np.linalg.norm(reference.matrix)
    for name, members in groups.items():
        expected = reference.block(members)
        block = hessian.block(name)
        if len(expected) > 20:
            vector = random_vector(len(expected), seed=3)
            expected = expected @ vector.numpy()
            found = torch.as_tensor(block.matvec(vector))
        else:
            found = torch.as_tensor(block.to_dense())
        assert distance(found, expected) <= case.tolerance * np.linalg.norm(expected) + floor, name


@every_case
def test_blocks_that_are_zero_by_symmetry_or_unused_vanish(case: Case) -> None:
    """The zoo's claims about zero blocks hold in the reference, and in the products."""
    reference = dense.of_case(case.name)
    norm = np.linalg.norm(reference.matrix)
    vanishing = {name for name in reference.places if np.linalg.norm(reference.block([name])) <= 1e-14 * norm}
    assert vanishing == set(case.zero) | set(case.unused)
    hessian = lh.Hessian(case.build(torch.float64, 0).objective(), "parameter", check=False)
    vectors = {name: torch.ones(len(place), dtype=torch.float64) for name, place in reference.places.items()}
    products = hessian.block_matvec(vectors)
    # A model's own loss is computed in float32: there the cancellation is that of float32.
    level = 1e-6 if "own loss" in case.tags else 1e-14
    for name in vanishing:
        assert products[name].norm() <= level * norm * vectors[name].norm(), name
    for name in case.unused:
        assert products[name].abs().max() == 0, name


@every_case
def test_float32_products_are_the_float64_ones_to_single_precision(case: Case) -> None:
    reference = dense.of_case(case.name)
    hessian = lh.Hessian(case.build(torch.float32, 0).objective(), "parameter", check=False)
    vector = random_vector(len(reference.matrix), seed=4).float()
    expected = reference.matrix @ vector.double().numpy()
    assert distance(torch.as_tensor(hessian.matvec(vector)), expected) <= 2e-5 * np.linalg.norm(expected)


def test_a_product_does_not_depend_on_the_size_of_the_vector() -> None:
    case = CASES[0]
    hessian = lh.Hessian(case.build(torch.float64, 0).objective(), "parameter", check=False)
    vector = random_vector(len(dense.of_case(case.name).matrix), seed=5)
    whole = hessian.matvec(vector)
    for scale in (1e-12, 1e12):
        assert distance(hessian.matvec(scale * vector) / scale, whole.numpy()) <= 1e-13 * float(whole.norm())
    assert hessian.matvec(torch.zeros_like(vector)).abs().max() == 0


def test_the_row_of_the_padding_index_is_a_constant() -> None:
    """``nn.Embedding(padding_idx=...)`` takes no gradient there, so its curvature is zero although the row is used."""
    case = BY_NAME["embedding-padding"]
    hessian = lh.Hessian(case.build(torch.float64, 0).objective(), "parameter", check=False)
    only_padding = torch.zeros(len(dense.of_case(case.name).matrix), dtype=torch.float64)
    only_padding[:4] = 1.0
    assert hessian.matvec(only_padding).abs().max() == 0


def test_a_batch_whose_targets_are_all_ignored_changes_nothing() -> None:
    case = BY_NAME["transformer-tied-ignore"]
    built = case.build(torch.float64, 0)
    tokens, target = built.data[0]
    data = [*built.data, (tokens, torch.full_like(target, -100))]
    hessian = lh.Hessian(lh.Objective(built.model, data, built.loss), "parameter", check=False)
    reference = dense.of_case(case.name)
    vector = random_vector(len(reference.matrix), seed=7)
    expected = reference.matrix @ vector.numpy()
    assert distance(hessian.matvec(vector), expected) <= 1e-10 * np.linalg.norm(expected)


def test_frozen_parameters_are_no_part_of_the_vectors() -> None:
    built = BY_NAME["partly-frozen"].build(torch.float64, 0)
    hessian = lh.Hessian(built.objective(), "parameter", check=False)
    moving = {name: p for name, p in built.model.named_parameters() if p.requires_grad}
    products = hessian.block_matvec({n: torch.ones(p.numel(), dtype=torch.float64) for n, p in moving.items()})
    assert list(products) == list(moving)
    assert hessian.to_scipy().shape[0] == sum(p.numel() for p in moving.values())

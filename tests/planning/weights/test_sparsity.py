"""Pruning against explicit loops."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerhess.planning.weights.sparsity import pruned, why_not
from layerhess.results.options import Prune


def by_loop(weight: Tensor, sparsity: float) -> Tensor:
    flat = weight.flatten().tolist()
    order = sorted(range(len(flat)), key=lambda i: (abs(flat[i]), i))
    for i in order[: round(sparsity * len(flat))]:
        flat[i] = 0.0
    return torch.tensor(flat, dtype=weight.dtype).reshape(weight.shape)


def two_of_four_by_loop(weight: Tensor) -> Tensor:
    after = weight.clone()
    for i, *rest in itertools.product(range(weight.shape[0]), *(range(n) for n in weight.shape[2:])):
        for j in range(0, weight.shape[1], 4):
            four = [abs(weight[(i, j + k, *rest)].item()) for k in range(4)]
            for k in sorted(range(4), key=lambda k: (four[k], k))[:2]:
                after[(i, j + k, *rest)] = 0.0
    return after


@given(
    shape=st.sampled_from([(7,), (5, 6), (3, 4, 2), (2, 3, 3, 3)]),
    sparsity=st.floats(0.0, 1.0, exclude_max=True),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_smallest_weights_go_the_first_of_equals_first(
    shape: tuple[int, ...], sparsity: float, seed: int, dtype: torch.dtype
) -> None:
    weight = torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)  # many are equal
    before = weight.clone()
    after = pruned(Prune(sparsity), weight)
    assert torch.equal(after, by_loop(weight, sparsity))
    assert torch.equal(weight, before)
    assert after.data_ptr() != weight.data_ptr()


def test_so_many_are_zero_as_asked_for() -> None:
    weight = torch.randn(10, 10)
    for sparsity, zeros in ((0.0, 0), (0.5, 50), (0.123, 12), (0.999, 100), (0.994, 99)):
        assert (pruned(Prune(sparsity), weight) == 0.0).sum() == zeros


def test_zeros_that_are_there_count_and_more_of_them_stay() -> None:
    weight = torch.randn(4, 5)
    weight[:2] = 0.0
    assert (pruned(Prune(0.5), weight) == 0.0).sum() == 10
    assert torch.equal(pruned(Prune(0.5), weight), weight)
    assert torch.equal(pruned(Prune(0.2), weight), weight)
    assert (pruned(Prune(0.75), weight) == 0.0).sum() == 15


@pytest.mark.parametrize("shape", [(5, 8), (3, 4, 2), (2, 8, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_of_every_four_inputs_are_zero(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for weight in (torch.randn(shape).to(dtype), torch.randint(-2, 3, shape).to(dtype)):
        after = pruned(Prune("2:4"), weight)
        assert torch.equal(after, two_of_four_by_loop(weight))
        assert after.is_contiguous()


def test_torchs_compressed_form_holds_the_pattern() -> None:
    """Two numbers of every four and their places give the weight back; those of a dense one do not."""
    from torch.sparse import _semi_structured_conversions as conversions

    dense = torch.randn(64, 128).half()
    for weight, held in ((pruned(Prune("2:4"), dense), True), (dense, False)):
        numbers, places = conversions.sparse_semi_structured_from_dense_cutlass(weight)
        assert numbers.shape == (64, 64)
        assert torch.equal(conversions.sparse_semi_structured_to_dense_cutlass(numbers, places), weight) == held


@pytest.mark.parametrize(
    ("option", "shape", "reason"),
    [
        (Prune("2:4"), (8,), "two dimensions"),
        (Prune("2:4"), (8, 6), "no multiple of 4"),
        (Prune("2:4"), (8, 3, 4, 4), "no multiple of 4"),
        (Prune(0.5), (0,), "no weights"),
        (Prune("2:4"), (3, 8), ""),
        (Prune(0.5), (3,), ""),
    ],
)
def test_what_a_shape_does_not_allow_is_said(option: Prune, shape: tuple[int, ...], reason: str) -> None:
    said = why_not(option, shape)
    assert reason in said
    assert bool(said) == bool(reason)

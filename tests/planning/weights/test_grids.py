"""Weights that were rounded before are known again; others never are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerhess.planning.weights.applied import changed
from layerhess.planning.weights.grids import rounded_before
from layerhess.results.options import Prune, Quantize


@pytest.mark.parametrize("granularity", ["channel", "tensor", "group:8"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale", ["minmax", "mse"])
def test_rounded_weights_are_known_by_any_option_of_their_blocks(granularity: str, symmetric: bool, scale: str) -> None:
    weight = torch.randn(16, 64)
    for bits in (2, 3, 4, 8):
        after = changed(Quantize(bits, granularity, symmetric, scale), weight)
        for other in (2, 4, 8):
            assert rounded_before(Quantize(other, granularity), after), (bits, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("granularity", ["channel", "tensor", "group:8"])
def test_weights_as_training_leaves_them_are_not(dtype: torch.dtype, granularity: str) -> None:
    for shape in ((4, 16), (64, 64), (16, 8, 3, 3)):
        for seed in range(5):
            weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
            for sparse in (weight, changed(Prune(0.9), weight), nn.functional.normalize(weight)):
                assert not rounded_before(Quantize(4, granularity), sparse)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_few_bits_are_seen_in_half_precision_too(bits: int) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert rounded_before(Quantize(4), changed(Quantize(bits), torch.randn(64, 256).to(dtype)))


def test_initial_values_prove_nothing() -> None:
    for weight in (torch.zeros(8, 64), torch.ones(8, 64), torch.eye(64), 0.1 * torch.randn(8, 64).sign()):
        assert not rounded_before(Quantize(4), weight)
        assert not rounded_before(Quantize(4, "tensor"), weight)
    assert not rounded_before(Quantize(4), torch.arange(12.0).reshape(3, 4))  # too few to be sure


def test_of_a_large_tensor_a_sample_is_enough() -> None:
    weight = torch.randn(300, 500)
    assert rounded_before(Quantize(4, "tensor"), changed(Quantize(4, "tensor"), weight))
    assert rounded_before(Quantize(4), changed(Quantize(4), weight))
    assert not rounded_before(Quantize(4, "tensor"), weight)

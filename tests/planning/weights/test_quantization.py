"""Rounding against torchao's own tensors, NumPy in float64, and a scan by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerhess.planning.weights.quantization import SHRINKING, block_of, bounds, codes, quantized, why_not
from layerhess.planning.weights.torchao_library import torchao
from layerhess.results.options import Quantize

SHAPES = [(12, 64), (6, 32, 3, 3), (5, 32, 1, 1)]
WORD = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def weights(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal ones; a row of zeros, one of positive numbers, one of a single value."""
    made = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    made[0], made[1], made[2] = 0.0, made[1].abs(), -0.3
    return made.to(dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(WORD[a.dtype]), b.view(WORD[b.dtype]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_torchao_stores_the_same_weights_bit_by_bit(
    shape: tuple[int, ...], symmetric: bool, dtype: torch.dtype
) -> None:
    """By its public configuration; a channel of a convolution is a group over all input channels there."""
    library = pytest.importorskip("torchao") and torchao("test")
    mapping = library.MappingType.SYMMETRIC if symmetric else library.MappingType.ASYMMETRIC
    layer = torch.nn.Linear if len(shape) == 2 else torch.nn.Conv2d
    for bits in range(1, 9):
        for granularity, theirs in (
            (f"group:{shape[1]}" if len(shape) == 4 else "channel", library.PerAxis(0)),
            ("group:16", library.PerGroup(16)),
        ):
            module = layer(shape[1], shape[0], *([shape[2]] if len(shape) == 4 else []))
            module.weight = torch.nn.Parameter(weights(shape, dtype, seed=bits))
            option = Quantize(bits, granularity, symmetric)
            expected = quantized(option, module.weight.detach())
            config = library.IntxWeightOnlyConfig(getattr(torch, f"int{bits}"), theirs, mapping)
            library.quantize_(module, config, filter_fn=lambda _, __: True)
            assert same_bits(module.weight.dequantize(), expected), (option, dtype)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_blocks_that_no_configuration_of_torchao_names_are_rounded_alike(granularity: str, symmetric: bool) -> None:
    library = pytest.importorskip("torchao") and torchao("test")
    mapping = library.MappingType.SYMMETRIC if symmetric else library.MappingType.ASYMMETRIC
    for bits in range(1, 9):
        weight = weights((6, 8, 3, 3), seed=bits)
        option = Quantize(bits, granularity, symmetric)
        block = (1, 8, 3, 3) if granularity == "channel" else (6, 8, 3, 3)
        target = getattr(torch, f"int{bits}")
        theirs = library.IntxUnpackedToInt8Tensor.from_hp(weight, block, target, mapping_type=mapping)
        assert same_bits(theirs.dequantize(), quantized(option, weight))


def by_numpy(option: Quantize, weight: Tensor) -> np.ndarray:
    """The definition, block by block, in float64. Its w * (1 / s) matters: the largest weight is half way, 7.5 s."""
    low, high = -(2 ** (option.bits - 1)), 2 ** (option.bits - 1) - 1
    whole = weight.double().numpy()
    out = np.empty_like(whole)
    if option.granularity == "tensor":
        places = [np.s_[:]]
    elif option.granularity == "channel":
        places = [np.s_[i] for i in range(len(whole))]
    else:
        size = int(option.granularity.removeprefix("group:"))
        inner = [tuple(at) for at in np.ndindex(whole.shape[2:])]
        places = [
            (i, slice(j, j + size), *at)
            for i in range(len(whole))
            for j in range(0, whole.shape[1], size)
            for at in inner
        ]
    for place in places:
        w = whole[place]
        if option.symmetric:
            s, zero = np.abs(w).max() / ((high - low) / 2), 0.0
        else:
            s = (max(w.max(), 0.0) - min(w.min(), 0.0)) / (high - low)
            zero = 0.0 if s == 0.0 else np.clip(low - np.round(min(w.min(), 0.0) / s), low, high)
        out[place] = 0.0 if s == 0.0 else (np.clip(np.round(w * (1.0 / s)) + zero, low, high) - zero) * s
    return out


@pytest.mark.parametrize("granularity", ["channel", "tensor", "group:4"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(6, 8), (4, 8, 3), (3, 8, 2, 3)])
def test_float64_weights_are_rounded_as_defined(shape: tuple[int, ...], symmetric: bool, granularity: str) -> None:
    for bits in (1, 2, 3, 4, 8, 12, 16):
        weight = weights(shape, torch.float64, seed=bits)
        option = Quantize(bits, granularity, symmetric)
        np.testing.assert_allclose(quantized(option, weight).numpy(), by_numpy(option, weight), rtol=1e-12, atol=0.0)


@given(
    bits=st.integers(1, 16),
    symmetric=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**31),
    exponent=st.integers(-3, 2),
)
def test_no_weight_moves_further_than_half_a_step_but_where_the_range_is_cut(
    bits: int, symmetric: bool, dtype: torch.dtype, seed: int, exponent: int
) -> None:
    """Symmetric ranges lack half a step at either end, one bit more: [-1, 0] steps of twice the largest."""
    weight = (10.0**exponent * torch.randn(5, 24, generator=torch.Generator().manual_seed(seed))).to(dtype)
    option = Quantize(bits, symmetric=symmetric)
    found = codes(option, weight)
    step = found.scale.double()
    moved = (quantized(option, weight).double() - weight.double()).abs()
    roundoff = 4.0 * torch.finfo(dtype).eps * (weight.double().abs().amax(1, keepdim=True) + step)
    most = step * (1.0 if symmetric and bits == 1 else 0.5) if symmetric else step * (0.5 + 1.0)
    if dtype in (torch.float64, torch.float32) or bits <= 4:
        assert (moved <= most + 2.0**bits * roundoff).all()
    low, high = bounds(bits)
    assert (found.values == found.values.round()).all()
    assert (found.values >= low).all()
    assert (found.values <= high).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["channel", "tensor", "group:8"])
def test_the_mse_range_is_the_best_of_a_scan_by_brute_force(granularity: str, symmetric: bool) -> None:
    """Each block alone, every share of its whole range, the error in float64."""
    for bits in (1, 2, 4, 8):
        weight = weights((4, 16), seed=bits)
        option = Quantize(bits, granularity, symmetric, "mse")
        plain = codes(Quantize(bits, granularity, symmetric), weight)
        low, high = bounds(bits)
        rows = {"channel": weight, "tensor": weight.reshape(1, -1), "group:8": weight.reshape(-1, 8)}[granularity]
        got = quantized(option, weight).reshape(rows.shape)
        for row, after, s, zero in zip(rows, got, plain.scale.flatten(), plain.zero.flatten(), strict=True):
            least = math.inf
            for share in [1.0 - i / 100 for i in range(96)]:
                scale = (s * share).clamp(min=torch.finfo(torch.float32).smallest_normal)
                tried = (torch.clamp(torch.round(row * (1.0 / scale)) + zero, low, high) - zero) * scale
                least = min(least, ((tried.double() - row.double()) ** 2).sum().item())
            assert ((after.double() - row.double()) ** 2).sum().item() == pytest.approx(least, rel=1e-12, abs=0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_mse_range_is_never_worse_than_the_whole_one_and_at_two_bits_much_better(dtype: torch.dtype) -> None:
    weight = weights((6, 256), dtype)
    for bits in (1, 2, 3, 4, 8):
        for symmetric in (True, False):
            error = {
                scale: (quantized(Quantize(bits, "channel", symmetric, scale), weight).double() - weight.double())
                .square()
                .sum(1)
                for scale in ("minmax", "mse")
            }
            assert (error["mse"] <= error["minmax"]).all()
            if bits == 2 and symmetric:
                assert error["mse"][3:].sum() < 0.6 * error["minmax"][3:].sum()
    assert SHRINKING[0] == 1.0


def test_large_tensors_are_searched_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weights((9, 8, 3, 3))
    whole = [
        quantized(Quantize(3, granularity, scale="mse"), weight) for granularity in ("channel", "group:4", "tensor")
    ]
    monkeypatch.setattr("layerhess.planning.weights.quantization.CHUNK", 100)
    pieces = [
        quantized(Quantize(3, granularity, scale="mse"), weight) for granularity in ("channel", "group:4", "tensor")
    ]
    assert all(map(torch.equal, whole, pieces))


def test_rows_of_zeros_stay_zeros_and_a_single_value_stays_near() -> None:
    weight = torch.zeros(3, 8)
    weight[1], weight[2] = 0.7, -0.7
    for symmetric in (True, False):
        for scale in ("minmax", "mse"):
            after = quantized(Quantize(4, symmetric=symmetric, scale=scale), weight)
            assert torch.equal(after[0], torch.zeros(8))
            assert not torch.signbit(after[0]).any()
            assert torch.allclose(after[1:], weight[1:], rtol=0.07)
    exact = quantized(Quantize(4, symmetric=False), weight)
    assert torch.allclose(exact, weight, rtol=1e-6)  # a range from 0 to the value has it at its end


def test_one_bit_is_minus_the_step_or_nothing() -> None:
    weight = torch.tensor([[-1.0, -0.4, 0.3, 0.9]])  # s = 1 / (1 / 2)
    assert quantized(Quantize(1), weight).tolist() == [[0.0, 0.0, 0.0, 0.0]]  # -1/2 is rounded to even: 0
    low, *rest = quantized(Quantize(1, scale="mse"), weight)[0].tolist()
    assert low == pytest.approx(-1.0, abs=0.011)  # the step that leaves only the others' error
    assert rest == [0.0, 0.0, 0.0]


def test_weights_stored_in_another_order_are_rounded_alike() -> None:
    weight = weights((6, 8, 3, 3))
    last = weight.to(memory_format=torch.channels_last)
    for granularity in ("channel", "group:4", "tensor"):
        assert torch.equal(quantized(Quantize(3, granularity), last), quantized(Quantize(3, granularity), weight))
    assert torch.equal(quantized(Quantize(3), weight[:, :, 0, 0]), quantized(Quantize(3), weight[:, :, 0, 0].clone()))


@pytest.mark.parametrize(
    ("option", "shape", "reason"),
    [
        (Quantize(4, "group:5"), (4, 8), "no multiple of the group of 5"),
        (Quantize(4, "group:16"), (4, 8), "no multiple of the group of 16"),
        (Quantize(4), (8,), "two dimensions"),
        (Quantize(4, "group:4"), (8,), "two dimensions"),
        (Quantize(4), (0, 8), "no weights"),
        (Quantize(4), (8, 4), ""),
        (Quantize(4, "tensor"), (8,), ""),
        (Quantize(4, "group:4"), (3, 8, 3, 3), ""),
    ],
)
def test_what_a_shape_does_not_allow_is_said(option: Quantize, shape: tuple[int, ...], reason: str) -> None:
    said = why_not(option, shape)
    assert reason in said
    assert bool(said) == bool(reason)


def test_a_group_is_of_neighbours_along_dimension_one() -> None:
    assert block_of(Quantize(4, "group:4"), (6, 8, 3, 3)) == (1, 4, 1, 1)
    assert block_of(Quantize(4), (6, 8, 3, 3)) == (1, 8, 3, 3)
    assert block_of(Quantize(4, "tensor"), (6, 8)) == (6, 8)

"""Options done to weights: what is left alone, and what is refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from layerhess.errors import InputError
from layerhess.planning.weights.applied import changed, fits
from layerhess.results.options import Function, Option, Prune, Quantize, option_of

OPTIONS = [
    Quantize(4),
    Quantize(2, "tensor", False, "mse"),
    Prune(0.5),
    Prune(0.0),
    Prune("2:4"),
    Function("same", lambda w: w),
]


@pytest.mark.parametrize("option", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_weight_stays_and_a_new_one_of_its_kind_comes_back(option: Option, dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.randn(6, 8).to(dtype))
    before = weight.detach().clone()
    after = changed(option, weight)
    assert (after.shape, after.dtype, after.device) == (weight.shape, weight.dtype, weight.device)
    assert torch.equal(weight, before)
    assert not after.requires_grad
    after.zero_()
    assert torch.equal(weight, before)


def test_a_function_of_ones_own_is_done() -> None:
    weight = torch.randn(3, 4)
    assert torch.equal(changed(option_of(torch.sign), weight), torch.sign(weight))
    assert torch.equal(changed(Function("expanded", lambda w: w[:1].expand(3, 4)), weight), weight[:1].repeat(3, 1))


def raising(weight: Tensor) -> Tensor:
    raise RuntimeError("no luck")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (raising, "raised RuntimeError: no luck"),
        (lambda w: w.clamp_(-0.1, 0.1), "changes its argument in place"),
        (lambda w: w.zero_() + 1.0, "changes its argument in place"),
        (lambda w: w[:2], r"returned the shape \(2, 8\) for a weight of \(6, 8\)"),
        (lambda w: w.double(), "returned torch.float64"),
        (lambda w: w.numpy(), "returned ndarray"),
        (lambda w: None, "returned NoneType"),
        (lambda w: w / 0.0, "infinite or NaN"),
        (lambda w: w * torch.nan, "infinite or NaN"),
    ],
)
def test_a_function_that_goes_wrong_is_named_with_its_layer(function: Callable[[Tensor], Tensor], said: str) -> None:
    weight = nn.Parameter(torch.randn(6, 8))
    before = weight.detach().clone()
    with pytest.raises(InputError, match=said) as caught:
        changed(Function("mine", function), weight, where="fc.weight")
    assert "'mine'" in str(caught.value)
    assert caught.value.where == "fc.weight"
    assert torch.equal(weight, before)


def test_ctrl_c_inside_a_function_reaches_the_user() -> None:
    def interrupted(weight: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        changed(Function("slow", interrupted), torch.ones(2, 2))


@pytest.mark.parametrize("option", OPTIONS, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_refused(option: Option, value: float) -> None:
    weight = torch.randn(6, 8)
    weight[2, 3] = value
    with pytest.raises(InputError, match="infinite or NaN"):
        changed(option, weight, where="fc.weight")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match="cannot be made smaller"):
        changed(Quantize(4), torch.ones(4, 4).to(dtype))


def test_a_range_beyond_the_dtype_is_refused() -> None:
    weight = torch.tensor([[60000.0, -60000.0]], dtype=torch.float16)
    with pytest.raises(InputError, match="leaves weights that are infinite or NaN"):
        changed(Quantize(4, symmetric=False), weight)


def test_what_does_not_fit_the_shape_is_refused_with_the_reason_of_fits() -> None:
    for option, shape in ((Quantize(4, "group:5"), (6, 8)), (Prune("2:4"), (6, 6)), (Quantize(4), (6,))):
        reason = fits(option, shape)
        with pytest.raises(InputError) as caught:
            changed(option, torch.ones(shape), where="fc.weight")
        assert reason
        assert reason in str(caught.value)
    assert fits(Quantize(4), (6, 8)) == fits(Prune("2:4"), (6, 8)) == fits(option_of(torch.sign), (6,)) == ""


def test_a_function_that_was_not_loaded_is_asked_for() -> None:
    with pytest.raises(InputError, match=r"not what it does.*load_plan\(folder, functions"):
        changed(Function("mine", None), torch.ones(2, 2))

"""Convolutions as bilinear maps: values and derivatives at any order, and nothing computed that is not wanted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from layerhess.curvature.double_backward.mode import Rewritten

GEOMETRIES: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": (F.conv2d, (3, 2, 5, 4), (4, 2, 3, 3), {}),
    "padding": (F.conv2d, (3, 2, 5, 4), (4, 2, 3, 3), {"padding": 1}),
    "stride that leaves a rest": (F.conv2d, (2, 2, 6, 7), (3, 2, 3, 2), {"stride": (2, 3), "padding": (1, 0)}),
    "dilation": (F.conv2d, (2, 2, 7, 6), (3, 2, 2, 3), {"dilation": (3, 1)}),
    "groups": (F.conv2d, (2, 4, 5, 5), (6, 2, 3, 3), {"groups": 2, "padding": [1]}),
    "channels apart": (F.conv2d, (2, 3, 5, 5), (3, 1, 3, 3), {"groups": 3}),
    "1 by 1": (F.conv2d, (2, 3, 4, 4), (5, 3, 1, 1), {"stride": 2}),
    "one dimension": (F.conv1d, (3, 2, 9), (4, 2, 3), {"stride": 2, "padding": 1}),
    "three dimensions": (F.conv3d, (2, 2, 4, 3, 4), (2, 2, 2, 2, 3), {"padding": (1, 0, 1)}),
}
every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=list(GEOMETRIES))


def _inputs(geometry: Any, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    _, x, w, _ = geometry
    torch.manual_seed(0)
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in (x, w, w[:1]))  # type: ignore[return-value]


def _rewritten(geometry: Any) -> Callable[..., Tensor]:
    function, _, _, options = geometry

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        with Rewritten():
            made = function(x, w, b, **options)
        assert "_Output" in str(made.grad_fn)
        return made

    return run


def _three_orders(run: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """The value and three derivatives of a function of it that bends, each in all tensors."""
    y = run(*tensors)
    found, value = [y], y.sin().sum()
    for order in range(3):
        parts = torch.autograd.grad(value, tensors, create_graph=True)
        found += parts
        value = sum((part * torch.cos(torch.arange(part.numel()) + order).view_as(part)).sum() for part in parts)  # type: ignore[assignment]
    return [part.detach() for part in found]


@every_geometry
def test_values_and_three_derivatives_are_those_of_torch(geometry: Any) -> None:
    function, _, _, options = geometry
    tensors = _inputs(geometry)
    theirs = _three_orders(lambda x, w, b: function(x, w, b, **options), tensors)
    for ours, right in zip(_three_orders(_rewritten(geometry), tensors), theirs, strict=True):
        assert torch.allclose(ours, right, rtol=1e-10, atol=1e-10)


@every_geometry
def test_derivatives_are_those_of_finite_differences(geometry: Any) -> None:
    x, w, b = _inputs(geometry)
    assert torch.autograd.gradcheck(_rewritten(geometry), (x, w, b), fast_mode=True)
    assert torch.autograd.gradgradcheck(_rewritten(geometry), (x, w, b), fast_mode=True)


@every_geometry
def test_float32_is_as_close_as_torchs_own(geometry: Any) -> None:
    function, _, _, options = geometry
    single = _inputs(geometry, torch.float32)
    double = tuple(part.detach().double().requires_grad_() for part in single)
    right = _three_orders(lambda x, w, b: function(x, w, b, **options), double)
    theirs = _three_orders(lambda x, w, b: function(x, w, b, **options), single)
    for ours, other, exact in zip(_three_orders(_rewritten(geometry), single), theirs, right, strict=True):
        size = float(exact.abs().max())
        assert float((ours - exact).abs().max()) <= max(4.0 * float((other - exact).abs().max()), 1e-6 * size)


def _kernels(run: Callable[[], Any]) -> dict[str, int]:
    with torch.profiler.profile() as profile:
        run()
    names = ("aten::convolution", "aten::convolution_backward", "aten::_convolution_double_backward")
    return {name: event.count for event in profile.key_averages() for name in names if event.key == name}


def test_a_product_with_one_layer_computes_two_convolutions_a_layer_above_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=1) for _ in range(5)), nn.Flatten(), nn.Linear(32, 3))
    x, target = torch.randn(4, 2, 4, 4), torch.randint(0, 3, (4,))
    parameters = list(model.parameters())
    with Rewritten():
        loss = F.cross_entropy(model(x), target)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    third = parameters[4]
    vector = torch.randn_like(third)
    made = _kernels(lambda: torch.autograd.grad(gradients[4], third, vector, retain_graph=True))
    # Upwards the change of the layer itself and of the two above; downwards the transposes of these two and the layer's
    # own gradient.
    assert made["aten::convolution"] == 3 and made["aten::convolution_backward"] == 3
    assert "aten::_convolution_double_backward" not in made
    everything = _kernels(lambda: torch.autograd.grad(gradients, parameters, gradients, retain_graph=True))
    # With all parameters: both ways up for the changes of 5 kernels and 4 inputs; second derivatives in both, and down.
    assert everything["aten::convolution"] == 5 + 4
    assert everything["aten::convolution_backward"] == 4 + 4 + 4 + 5


def test_what_torch_would_refuse_or_do_otherwise_is_left_to_it() -> None:
    x, w = torch.randn(2, 3, 5, 5, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    with Rewritten():
        assert "ConvolutionBackward" in str(F.conv2d(x, w, padding="same").grad_fn)
        assert F.conv2d(x[0], w).shape == (4, 3, 3)
        assert F.conv2d(x.detach(), w.detach()).grad_fn is None
        with torch.no_grad():
            assert F.conv2d(x, w).grad_fn is None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert F.conv2d(x, w).dtype == torch.bfloat16
        for bad in ({"weight": w[:, :2]}, {"weight": w[0]}, {"weight": w.double()}, {"weight": w, "stride": (1, 1, 1)}):
            with pytest.raises((RuntimeError, TypeError)):
                F.conv2d(x, **bad)
        with pytest.raises(RuntimeError):
            F.conv1d(x, w)  # two dimensions too many, though all the shapes would fit each other


class _Recurrent(nn.Module):
    """One kernel used twice, in place between, its result beside a strided one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.down = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 3, 2, stride=2, bias=False)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.softplus(self.shared(x).mul_(2.0))
        return self.head(self.down(torch.tanh(self.shared(y))).flatten(1))


def test_products_with_a_smooth_convolutional_network_are_those_of_its_explicit_hessian() -> None:
    torch.manual_seed(0)
    model = _Recurrent().double()
    x, target = torch.randn(5, 2, 4, 4, dtype=torch.float64), torch.randint(0, 2, (5,))
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        parameters = {name: part.view(shape) for name, shape, part in zip(names, shapes, parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, parameters, (x,)), target)

    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    explicit = torch.autograd.functional.hessian(loss, flat)
    found = lh.Hessian(lh.Objective(model, (x, target), nn.CrossEntropyLoss())).to_dense()
    np.testing.assert_allclose(found.numpy(), explicit.numpy(), rtol=1e-9, atol=1e-12)


class _Sloped(nn.Module):
    """Something between two layers whose slope in its input is part of the loss."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.inner, self.head = nn.Linear(6, 6), inner, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sin(self.inner(self.first(x))))


class _PlainNorm(nn.LayerNorm):
    """Written out: torch's own is wrong in its third derivative."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        normal = centred / (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return normal * self.weight + self.bias


@pytest.mark.parametrize("kind", ["conv", "layer norm", "softmax"])
def test_a_loss_with_jacobians_of_all_outputs_at_once_has_its_right_hessian(kind: str) -> None:
    """Its backward pass is batched, where a Function would return a constant."""
    torch.manual_seed(0)
    lifted = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 1, 3, padding=1), nn.Flatten())
    inner = {"conv": lifted, "layer norm": nn.LayerNorm(6), "softmax": nn.Softmax(-1)}[kind]
    model = _Sloped(inner).double()
    plain = _Sloped(_PlainNorm(6) if kind == "layer norm" else inner).double()
    x = torch.randn(3, 6, dtype=torch.float64)

    def penalty(call: Callable[[Tensor], Tensor]) -> Tensor:
        rows = x.clone().requires_grad_()
        out = call(rows)
        seeds = torch.eye(2, dtype=torch.float64)[:, None, :].expand(2, 3, 2)
        (made,) = torch.autograd.grad(out, rows, seeds, is_grads_batched=True, create_graph=True)
        return made.square().sum() + out.square().sum()

    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        parameters = {name: part.view(shape) for name, shape, part in zip(names, shapes, parts, strict=True)}
        return penalty(lambda rows: torch.func.functional_call(plain, parameters, (rows,))) / 3

    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    explicit = torch.autograd.functional.hessian(loss, flat).numpy()
    found = lh.Hessian(lh.Objective(model, [(x,)], lh.batch_loss(lambda m, b: (penalty(m), 3)))).to_dense().numpy()
    np.testing.assert_allclose(found, explicit, rtol=1e-9, atol=1e-9 * np.abs(explicit).max())


def test_numbers_of_any_integer_kind_are_taken() -> None:
    x, w = torch.randn(2, 3, 7, 7), torch.randn(4, 3, 3, 3, requires_grad=True)
    right = F.conv2d(x, w, stride=2, padding=1)
    for stride in (np.int64(2), torch.tensor(2), (np.int64(2), 2), [2]):
        with Rewritten():
            made = F.conv2d(x, w, stride=stride, padding=np.int64(1))
        assert "_Output" in str(made.grad_fn) and torch.equal(made, right)


def test_a_batched_second_derivative_keeps_its_graph() -> None:
    """The seeds alone are batched, and meet a gradient that is not."""
    x, w, _ = _inputs(GEOMETRIES["padding"])

    def slopes(run: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad(run(x, w).sin().sum(), x, create_graph=True)
        seeds = torch.cos(torch.arange(2 * first.numel(), dtype=x.dtype)).view(2, *first.shape)
        (second,) = torch.autograd.grad(first, w, seeds, is_grads_batched=True, create_graph=True)
        return torch.autograd.grad(second.square().sum(), [x, w])

    for ours, theirs in zip(
        slopes(_rewritten(GEOMETRIES["padding"])), slopes(partial(F.conv2d, padding=1)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)

"""Cross entropy and softmax: torch's values and refusals, and derivatives that keep their digits when saturated."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import layerhess as lh
from layerhess.curvature.double_backward import cross_entropy
from layerhess.curvature.double_backward.mode import Rewritten
from references.small_networks import Exact

X = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WEIGHT = torch.tensor([0.5, 2.0, 1.25, 0.75], dtype=torch.float64)
INDICES = torch.tensor([[0, 1, 2], [3, -100, 1], [2, 2, 0], [1, 3, -100], [0, 0, 3]])
LIKELY = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("target", [INDICES, LIKELY], ids=["indices", "distributions"])
@pytest.mark.parametrize("piece", [cross_entropy.PIECE, 8], ids=["whole", "pieces"])
def test_its_values_and_derivatives_are_torchs(
    piece: int, target: Tensor, weight: Tensor | None, smoothing: float, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "PIECE", piece)

    def three_orders() -> list[Tensor]:
        x = X.clone().requires_grad_()
        value = F.cross_entropy(x, target, weight, label_smoothing=smoothing, reduction=reduction)
        (slope,) = torch.autograd.grad((value * value).sum(), x, create_graph=True)
        (bent,) = torch.autograd.grad((slope * X.cos()).sum(), x, retain_graph=True)
        (followed,) = torch.autograd.grad((slope * X.cos()).sum(), x, create_graph=True)
        vectors = torch.stack([X.sin(), X.exp()])
        many = torch.autograd.grad(slope, x, vectors, is_grads_batched=True, retain_graph=True)
        return [value, slope, bent, followed, *many, *torch.autograd.grad((followed * X.sin()).sum(), x)]

    theirs = three_orders()
    with Rewritten():
        ours = three_orders()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_many_classes_take_little_memory_beside_their_logits(smoothing: float) -> None:
    """Of a second derivative the result alone is as large as the logits."""
    x = torch.randn(64, 5000, generator=torch.Generator().manual_seed(2), requires_grad=True)
    with Rewritten():
        loss = F.cross_entropy(x, torch.arange(64), label_smoothing=smoothing)
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    h = torch.ones_like(x)
    with Largest(x, h) as seen:
        torch.autograd.grad(slope, x, h)
    assert sum(n >= x.numel() for n in seen.numbers) == 1
    assert max(n for n in seen.numbers if n < x.numel()) <= cross_entropy.PIECE


class Largest(TorchDispatchMode):
    """How many numbers each new tensor inside has, beside those that were there."""

    def __init__(self, *there: Tensor) -> None:
        super().__init__()
        self.numbers: list[int] = []
        self._known = {x.untyped_storage().data_ptr() for x in there}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor) and (place := tensor.untyped_storage().data_ptr()) not in self._known:
                self._known.add(place)
                self.numbers.append(tensor.numel())
        return made


def test_a_single_item_and_modules_are_served_and_bad_input_is_refused_in_torchs_words() -> None:
    x = X[0, :, 0].clone().requires_grad_()
    with Rewritten():
        assert "LogSoftmaxBackward0" not in str(_inner(nn.CrossEntropyLoss()(x, torch.tensor(2))))
        torch.testing.assert_close(F.cross_entropy(x, torch.tensor(2)), -F.log_softmax(x, 0)[2])
        old: Any = {"size_average": False}
        summed = float(F.cross_entropy(X, INDICES, reduction="sum"))
        assert float(F.cross_entropy(X, INDICES, **old)) == pytest.approx(summed, rel=1e-15)
    for bad in (torch.tensor([0, 1, 2, 3, 9]), torch.zeros(3, dtype=torch.long), torch.zeros(5, 3).double()):
        said = []
        for context in (torch.enable_grad(), Rewritten()):
            with context, pytest.raises((RuntimeError, ValueError, IndexError)) as caught:
                F.cross_entropy(X[:, :, 0], bad)
            said.append(str(caught.value))
        assert said[0] == said[1]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_no_items_and_classes_that_are_masked_out_are_served(smoothing: float) -> None:
    masked = X[:, :, 0].clone()
    masked[:, 3] = -math.inf
    made = []
    for context in (torch.enable_grad(), Rewritten()):
        x = masked.clone().requires_grad_()
        with context:
            nothing = F.cross_entropy(X[:0, :, 0], INDICES[:0, 0], reduction="sum", label_smoothing=smoothing)
            value = F.cross_entropy(x, INDICES[:, 0].clamp(max=2))
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        made.append([nothing, value, slope, *torch.autograd.grad((slope * X[:, :, 1]).sum(), x)])
    for mine, its in zip(*made, strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(4, 3), (3,)])
def test_a_mean_over_no_item_is_no_number_and_its_derivative_is_zero(shape: tuple[int, ...]) -> None:
    """A loss that leaves such a batch out has a derivative."""
    made = []
    for context in (torch.enable_grad(), Rewritten()):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with context:
            value = F.cross_entropy(x, torch.full(shape[:-1], -100))
            left_out = torch.where(value.isnan(), torch.zeros_like(value), value)
        made.append((float(value), torch.autograd.grad(left_out, x)[0]))
    assert all(math.isnan(value) and not slope.any() for value, slope in made)


@pytest.mark.parametrize("ordered", ["classes last", "classes first", "transposed"])
@pytest.mark.parametrize("piece", [cross_entropy.PIECE, 50], ids=["whole", "pieces"])
def test_a_loss_near_0_has_torchs_digits(ordered: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it seems to change from pass to pass: a part in 10^4 of it is a rounding error of its logits."""
    monkeypatch.setattr(cross_entropy, "PIECE", piece)
    x = torch.randn(20, 13, 7, generator=torch.Generator().manual_seed(0))
    target = x.argmax(2)
    x.scatter_add_(2, target.unsqueeze(2), torch.full((20, 13, 1), 7.0))
    if ordered == "classes last":
        x, target = x.flatten(0, 1), target.flatten()
    else:
        x = x.movedim(2, 1) if ordered == "transposed" else x.movedim(2, 1).contiguous()
    with Rewritten():
        ours = F.cross_entropy(x.clone().requires_grad_(), target, reduction="none")
    theirs = F.cross_entropy(x, target, reduction="none")
    assert 0.0 < theirs.mean() < 0.01 and torch.equal(ours, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_odd_weights_and_targets_are_taken_or_refused_as_torch_does(smoothing: float) -> None:
    x, said = X[:, :, 0], []
    for context in (torch.enable_grad(), Rewritten()):
        with context:
            small = F.cross_entropy(x, torch.tensor([0, 1, 2, 3, 0], dtype=torch.uint8), label_smoothing=smoothing)
            refused = []
            for weight in (torch.ones(3).double(), torch.ones(4), torch.ones(5).double()):
                with pytest.raises(RuntimeError) as caught:
                    F.cross_entropy(x, torch.arange(5) % 4, weight, label_smoothing=smoothing)
                refused.append(str(caught.value))
        said.append((small, refused))
    torch.testing.assert_close(said[0][0], said[1][0], rtol=1e-14, atol=0.0)
    assert said[0][1] == said[1][1]


def _inner(loss: Tensor) -> list[str]:
    assert loss.grad_fn is not None
    return [node.name() for node, _ in loss.grad_fn.next_functions if node is not None]


# -- saturation --------------------------------------------------------------------------------------------------------


def curvature(gap: float) -> Tensor:
    """diag(p) - p p' for logits (gap, 0, -1), with 1 - p_1 as the sum of the others."""
    others = torch.tensor([-gap, -gap - 1.0]).double().exp()
    p = torch.cat([torch.ones(1).double(), others]) / (1.0 + others.sum())
    made = torch.diag(p) - torch.outer(p, p)
    made[0, 0] = p[0] * p[1:].sum()
    return made


@pytest.mark.parametrize("gap", [5.0, 17.0, 40.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "target", [torch.tensor([0]), torch.tensor([[0.25, 0.25, 0.5]])], ids=["index", "distribution"]
)
def test_the_curvature_of_a_nearly_certain_class_has_all_its_digits(
    gap: float, dtype: torch.dtype, target: Tensor
) -> None:
    x = torch.tensor([[gap, 0.0, -1.0]], dtype=dtype, requires_grad=True)
    target = target.to(dtype) if target.is_floating_point() else target
    with Rewritten():
        loss = F.cross_entropy(x, target)
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    rows = torch.stack([torch.autograd.grad(s, x, retain_graph=True)[0][0] for s in slope[0]])
    off = (rows.double() / curvature(gap) - 1.0).abs().max()
    assert off <= 20 * torch.finfo(dtype).eps
    if not target.is_floating_point():
        others = math.exp(-gap) + math.exp(-gap - 1.0)
        assert float(slope[0, 0]) == pytest.approx(-others / (1.0 + others), rel=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("gap", [5.0, 40.0])
def test_the_derivatives_of_a_saturated_softmax_have_all_their_digits(gap: float) -> None:
    """The first is p (1 - p), the second along g, h the third cumulant: p_i (g_i - m) (h_i - n), centred, times Y."""
    x = torch.tensor([gap, 0.0, -1.0]).double().requires_grad_()
    g, h = torch.tensor([1.0, 2.0, 4.0]).double(), torch.tensor([3.0, -1.0, 0.5]).double()
    with Rewritten():
        y = x.softmax(0)
    (first,) = torch.autograd.grad(y, x, g, create_graph=True)
    Y = curvature(gap)
    torch.testing.assert_close(first, Y @ g, rtol=1e-13, atol=0.0)
    (second,) = torch.autograd.grad(first, x, h)
    far, near = (torch.cat([torch.zeros(1).double(), v[1:] - v[0]]) for v in (g, h))  # from the certain class
    p = x.detach().softmax(0)
    w = (far - p @ far) * (near - p @ near)
    spread = w - w[0]
    wanted = torch.cat([-(p[1:] * (spread[1:] - p @ spread)).sum().view(1), p[1:] * (spread[1:] - p @ spread)])
    torch.testing.assert_close(second, wanted, rtol=1e-12, atol=0.0)


def certain(z: Tensor, target: Tensor) -> tuple[Tensor, int]:
    return -z.log_softmax(1).gather(1, target.unsqueeze(1)).sum(), len(target)


def ones(z: Tensor, target: Tensor) -> tuple[Tensor, int]:
    return -F.logsigmoid(z).sum(), z.numel()


@pytest.mark.parametrize("operator", ["gauss_newton", "hessian"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()], ids=["classes", "logits"])
def test_a_network_whose_outputs_all_saturate_is_analysed(loss: nn.Module, operator: str, dtype: torch.dtype) -> None:
    """It was refused as asymmetric: what torch's second derivative leaves there is rounding."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    with torch.no_grad():
        model[2].weight.mul_(4.0)
        model[2].bias.copy_(torch.tensor([40.0, 0.0, 0.0]) if isinstance(loss, nn.CrossEntropyLoss) else 40.0)
    model, x = model.to(dtype), torch.randn(6, 3, dtype=dtype)
    y = torch.zeros(6, dtype=torch.long) if isinstance(loss, nn.CrossEntropyLoss) else torch.ones(6, 3, dtype=dtype)
    truth = Exact(model, [(x, y)], certain if isinstance(loss, nn.CrossEntropyLoss) else ones).matrix(operator)
    largest = float(np.linalg.eigvalsh(truth)[-1])
    assert 0.0 < largest < 1e-12
    full = lh.analyze(lh.Objective(model, (x, y), loss), operator=operator, exclude=None).full
    assert full is not None and full.eigenvalues[0] == pytest.approx(
        largest, rel=1e-3 if dtype == torch.float32 else 1e-9, abs=0.0
    )

"""Products by differences of gradients: against dense Hessians, and of networks that have no second derivative."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import layerhess as lh
from ctrl_c import press_ctrl_c
from layerhess.curvature.counters import Counters
from layerhess.curvature.difference_graph import Differences
from layerhess.errors import CheckError, InputError
from witness import refused, untouched

CE = nn.CrossEntropyLoss()


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def labels(n: int) -> Tensor:
    return torch.arange(n) % 3


def dense_hessian(model: nn.Module, x: Tensor, y: Tensor, names: Iterable[str] | None = None) -> Tensor:
    """In float64, row by row, by autograd alone."""
    model = copy.deepcopy(model).double()
    parameters = [p for n, p in model.named_parameters() if names is None or n in names]
    gradients = torch.autograd.grad(CE(model(x.double() if x.is_floating_point() else x), y), parameters,
                                    create_graph=True)  # fmt: skip
    flat = torch.cat([g.reshape(-1) for g in gradients])
    rows = [torch.autograd.grad(one, parameters, retain_graph=True, materialize_grads=True) for one in flat]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


def network(act: type[nn.Module], dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), act(), nn.Linear(7, 3)).to(dtype)


@pytest.mark.parametrize(
    ("act", "dtype", "most"),
    [(nn.Tanh, torch.float64, 1e-6), (nn.ReLU, torch.float64, 1e-6), (nn.Tanh, torch.float32, 1e-3),
     (nn.ReLU, torch.float32, 1e-2)],
)  # fmt: skip
def test_eigenvalues_are_those_of_the_dense_hessian_within_their_bounds(
    act: type[nn.Module], dtype: torch.dtype, most: float
) -> None:
    model, x, y = network(act, dtype), drawn(24, 5, dtype=dtype), labels(24)
    objective = lh.Objective(model, [(x[:10], y[:10]), (x[10:], y[10:])], CE)
    with untouched(model):
        analysis = lh.analyze(objective, top=2, bottom=1, path="differences", full=act is nn.Tanh)
    spectra = dict(analysis.blocks) | ({"(full)": analysis.full} if analysis.full is not None else {})
    for name, spectrum in spectra.items():
        truth = torch.linalg.eigvalsh(dense_hessian(model, x, y, None if name == "(full)" else [name])).numpy()
        ours = spectrum.eigenvalues
        off = abs(ours - [truth[-1], truth[-2], truth[0]])
        assert (off <= spectrum.error_bounds).all(), (name, off, spectrum.error_bounds)
        assert off.max() <= most * truth[-1] and spectrum.error_bounds.max() <= 30 * max(most, 1e-3) * truth[-1]
    checks = {check.name: check.detail for check in analysis.checks}
    assert "two steps agree" in checks["step"] and "finite differences" not in checks
    assert analysis.settings["path"] == "differences"


def test_the_step_decides_the_error_and_the_error_is_in_the_bound() -> None:
    """A long step, as it would be chosen for a sample that shows nothing: off by the fourth derivative."""
    model, x, y = network(nn.Tanh, torch.float64), drawn(24, 5, dtype=torch.float64), labels(24)
    objective = lh.Objective(model, (x, y), CE)
    exact = dense_hessian(model, x, y, ["0.weight"])
    v = torch.linalg.eigh(exact)[1][:, -1]
    errors = []
    for step in (2.0**-3, 2.0**-4, 2.0**-5):
        make = Differences()
        make.steps["0.weight",] = step
        with objective.session():
            found = []
            for one in (make, make.doubled()):
                graph = one(objective, (x, y), ["0.weight"], Counters())
                found.append(graph.product(["0.weight"], {"0.weight": v.view(7, 5)})[0].reshape(-1) / 24)  # type: ignore[union-attr]
        error = float((found[0] - exact @ v).norm())
        assert error <= float((found[1] - found[0]).norm()) <= 3.5 * error  # overstated by three
        errors.append(error)
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.3) and errors[1] / errors[2] == pytest.approx(4.0, rel=0.1)


# -- what has no second derivative, beside the same written out --------------------------------------------------------


class Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        return g * (1.0 - ctx.saved_tensors[0] ** 2)


class Once(nn.Module):
    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.a, self.b, self.plain = nn.Linear(5, 4), nn.Linear(4, 3), plain

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x)
        return self.b(z.tanh() if self.plain else Tanh.apply(z))  # type: ignore[no-any-return]


class Bag(nn.Module):
    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.e, self.b, self.plain = nn.Embedding(6, 4), nn.Linear(4, 3), plain

    def forward(self, x: Tensor) -> Tensor:
        ids = x.abs().mul(7.0).long() % 6
        z = self.e(ids).mean(dim=1) if self.plain else F.embedding_bag(ids, self.e.weight, mode="mean")
        return self.b(z.tanh())  # type: ignore[no-any-return]


class Distances(nn.Module):
    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.c, self.b, self.plain = nn.Parameter(drawn(4, 5)), nn.Linear(4, 3), plain

    def forward(self, x: Tensor) -> Tensor:
        return self.b((x[:, None] - self.c).norm(dim=-1) if self.plain else torch.cdist(x, self.c))  # type: ignore[no-any-return]


class Checkpointed(nn.Module):
    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.a, self.h, self.b, self.plain = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3), plain

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x).tanh()
        z = self.h(z) if self.plain else checkpoint(self.h, z, use_reentrant=True)
        return self.b(z.tanh())  # type: ignore[no-any-return]


class Attention(nn.Module):
    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.a, self.b, self.plain = nn.Linear(5, 24), nn.Linear(8, 3), plain

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.a(x).view(1, 1, -1, 24).chunk(3, dim=-1)
        if self.plain:
            return self.b(((q @ k.transpose(-1, -2) / math.sqrt(8.0)).softmax(dim=-1) @ v)[0, 0])  # type: ignore[no-any-return]
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return self.b(F.scaled_dot_product_attention(q, k, v)[0, 0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Once, Bag, Distances, Checkpointed, Attention])
def test_what_cannot_be_differentiated_twice_has_the_curvature_of_the_same_written_out(kind: Any) -> None:
    torch.manual_seed(0)
    model, plain = kind(False), kind(True)
    plain.load_state_dict(model.state_dict())
    model.b.weight.grad = torch.ones_like(model.b.weight)
    x, y = drawn(12, 5), labels(12)
    data = [(x, y)] if kind is Attention else [(x[:5], y[:5]), (x[5:], y[5:])]
    objective = lh.Objective(model, data, CE)
    with refused(model, "or use path='differences'"):
        lh.analyze(objective, top=1)
    with untouched(model):
        analysis = lh.analyze(objective, top=1, full=False, path="differences")
    for name, spectrum in analysis.blocks.items():
        truth = torch.linalg.eigvalsh(dense_hessian(plain, x, y, [name])).max()
        off = abs(float(spectrum.eigenvalues[0]) - float(truth))
        assert off <= spectrum.error_bounds[0] <= 0.03 * float(truth), name
        assert spectrum.status.startswith(("converged", "complete")), (name, spectrum.status)


# -- refusals, operators, the weights ----------------------------------------------------------------------------------


def test_blocks_behind_kinks_that_every_step_crosses_are_refused_for_that() -> None:
    """Thousands of units at their kinks: no step in float32 is short enough, whatever the layers are called."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 3))
    x, y = drawn(16, 2, 10, 10), labels(16)
    with pytest.raises(CheckError, match=r"block '0.weight' is by differences uncertain by .*model.double()") as caught:
        lh.analyze(lh.Objective(model, (x, y), CE), top=1, full=False, path="differences")
    assert "4.weight" not in str(caught.value)
    double = lh.Objective(model.double(), (x.double(), y), CE)
    spectrum = lh.analyze(double, top=1, full=False, path="differences", skip_failed=True).blocks["0.weight"]
    truth = torch.linalg.eigvalsh(dense_hessian(model, x, y, ["0.weight"]))[-1]
    assert abs(spectrum.eigenvalues[0] - float(truth)) <= spectrum.error_bounds[0] <= 1e-2 * float(truth)


def test_operators_take_differences_too() -> None:
    model, x, y = network(nn.Tanh, torch.float64), drawn(12, 5, dtype=torch.float64), labels(12)
    objective = lh.Objective(model, (x, y), CE)
    hessian = lh.Hessian(objective, path="differences")
    truth = dense_hessian(model, x, y)
    torch.testing.assert_close(hessian.to_dense(), truth, rtol=0, atol=1e-7)
    v = drawn(truth.shape[0]).double()
    torch.testing.assert_close(hessian.matvec(1e3 * v), truth @ (1e3 * v), rtol=1e-6, atol=1e-5)  # whatever its length
    assert not hessian.matvec(torch.zeros_like(v)).any()
    pairs = lh.eigsh(hessian, k=1)
    assert abs(pairs.values[0] - float(torch.linalg.eigvalsh(truth)[-1])) <= pairs.error_bounds[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"operator": "gauss_newton"}, "the Hessian only"), ({"segments": ["0"]}, "no segments")],
)
def test_what_differences_are_not_for(options: dict[str, Any], words: str) -> None:
    objective = lh.Objective(network(nn.Tanh, torch.float64), (drawn(12, 5).double(), labels(12)), CE)
    with pytest.raises(InputError, match=words):
        lh.analyze(objective, path="differences", **options)
    with pytest.raises(InputError, match="unknown path 'factors'"):
        lh.Hessian(objective, path="factors")


@pytest.mark.parametrize("presses", [False, True])
@pytest.mark.parametrize("number", [12, 40])
def test_weights_come_back_whatever_happens_in_the_middle_of_a_product(number: int, presses: bool) -> None:
    """The loss raises, or Ctrl-C is pressed in it, while the weights are displaced for the n-th time."""
    model = network(nn.Tanh, torch.float32)
    own = model[2].bias.detach().clone()
    displaced = 0

    def loss(output: Tensor, target: Tensor) -> Tensor:
        nonlocal displaced
        displaced += not torch.equal(model[2].bias, own)
        if displaced == number and presses:
            press_ctrl_c()
        elif displaced == number:
            raise ArithmeticError("in the middle")
        return CE(output, target)

    expected = KeyboardInterrupt if presses else ArithmeticError
    with untouched(model), pytest.raises(expected):
        lh.analyze(lh.Objective(model, (drawn(12, 5), labels(12)), loss), blocks="module", path="differences")

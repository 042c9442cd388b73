"""What would make products by factors wrong where the licence's sample does not show it: nothing comes through.

Every case is compared with exact products, on random weights and labels, where the Hessian and Gauss-Newton differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import layerhess as lh
from layerhess.curvature.factors.output_hessian import output_directions

CE = nn.CrossEntropyLoss()


def batch(n: int, inputs: int = 4, classes: int = 3, **options: Any) -> tuple[Tensor, Tensor]:
    return torch.randn(n, inputs, dtype=options.get("dtype", torch.float64)), torch.randint(classes, (n,))


def relu_net(dtype: torch.dtype = torch.float64) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).to(dtype)


class Wrapped(nn.Module):
    """A network of two layers around a function of its hidden units."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(4, 6), nn.Linear(6, 3), between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.between(self, self.a(x))))


# -- items that are tied together --------------------------------------------------------------------------------------


def smooth_in_time() -> lh.Objective:
    """Neighbouring rows of a clip are tied; the sample takes one row of each clip."""

    def loss(z: Tensor, batch: Any) -> Any:
        clips = z.view(-1, 8, z.shape[1]) if len(z) % 8 == 0 else z.unsqueeze(0)
        rough = (clips[:, 1:] - clips[:, :-1]).square().sum()
        return F.cross_entropy(z, batch[1], reduction="sum") + rough, len(z)

    return lh.Objective(
        relu_net(), [batch(64) for _ in range(3)], lh.batch_loss(loss, output=lambda model, batch: model(batch[0]))
    )


def pairs_of_a_class() -> lh.Objective:
    def loss(z: Tensor, batch: Any) -> Any:
        same = (batch[1][:, None] == batch[1][None]).double()
        apart = (z[:, None] - z[None]).square().sum(2)
        return (same * apart).sum() * 0.1 + F.cross_entropy(z, batch[1] % 3, reduction="sum"), len(z)

    data = (torch.randn(64, 4).double(), torch.arange(64) % 16)
    return lh.Objective(relu_net(), data, lh.batch_loss(loss, output=lambda model, batch: model(batch[0])))


def means_of_groups() -> lh.Objective:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor, group: Tensor) -> Tensor:
            same = (group[:, None] == group[None]).to(x)
            return self.b(F.relu((same / same.sum(1, keepdim=True)) @ self.a(x)))

    x, y = batch(128)
    return lh.Objective(Grouped().double(), ((x, torch.arange(128) // 4), y), CE)


def time_before_items() -> lh.Objective:
    """(T, N, features) with N = 1 in the batches the sample is taken from."""

    class TimeMajor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x)).mean(0))

    def loss(z: Tensor, batch: Any) -> Any:
        return F.cross_entropy(z, batch[1], reduction="sum"), len(z)

    sizes = [1, 1, 1, 4, 4, 1]
    data = [(torch.randn(6, n, 4).double(), torch.randint(3, (n,))) for n in sizes]
    return lh.Objective(TimeMajor().double(), data, lh.batch_loss(loss, output=lambda model, batch: model(batch[0])))


def positions_of_growing_batches() -> lh.Objective:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos, self.a, self.b = nn.Embedding(16, 4), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.pos(torch.arange(x.shape[1]))
            return self.b(F.relu(self.a(x)).mean(1))

    shapes = [(1, 16), (1, 16), (2, 8), (4, 4), (4, 4)]
    return lh.Objective(
        Positions().double(), [(torch.randn(n, t, 4).double(), torch.randint(3, (n,))) for n, t in shapes], CE
    )


# -- what reaches the loss beside the output ---------------------------------------------------------------------------


def penalty_in_one_batch() -> lh.Objective:
    model = relu_net()

    def loss(z: Tensor, batch: Any) -> Any:
        total = F.cross_entropy(z, batch[1], reduction="sum")
        return (total + 3.0 * model[0].weight.pow(4).sum() if batch[2] else total), len(z)  # type: ignore[index,operator]

    data = [(*batch(8), i == 3) for i in range(6)]
    return lh.Objective(model, data, lh.batch_loss(loss, output=lambda model, batch: model(batch[0])))


def another_heads_loss_in_one_batch() -> lh.Objective:
    class TwoTasks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.extra = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 1)

        def forward(self, x: Tensor, labels: Tensor, more: Tensor | None = None) -> Any:
            h = F.relu(self.a(x))
            logits = self.b(h)
            loss = F.cross_entropy(logits, labels)
            if more is not None and bool(more.any()):
                loss = loss + self.extra(h).square().mean()
            return SimpleNamespace(loss=loss, logits=logits)

    data = []
    for i in range(6):
        x, y = batch(8)
        data.append({"x": x, "labels": y, "more": torch.full((8,), i == 3)})
    return lh.Objective(TwoTasks().double(), data)


# -- memory that is filled again ---------------------------------------------------------------------------------------


class Refilled:
    """Batches that share one memory; with ``numpy`` torch does not see that it is written to."""

    def __init__(self, numpy: bool) -> None:
        self.numpy, self.batches, self.x = numpy, [batch(16) for _ in range(5)], torch.zeros(16, 4).double()

    def __iter__(self) -> Iterator[Any]:
        for x, y in self.batches:
            if self.numpy:
                self.x.numpy()[:] = x.numpy()
            else:
                self.x.copy_(x)
            yield self.x, y


class Workspace(nn.Module):
    """Writes its input into a tensor of its own at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.space = nn.Linear(4, 40), nn.Linear(40, 3), [torch.zeros(16, 4).double()]

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.space[0][: len(x)].copy_(2.0 * x)
        return self.b(F.relu(self.a(self.space[0][: len(x)])))


def workspace() -> lh.Objective:
    return lh.Objective(Workspace().double(), [batch(16) for _ in range(5)], CE)


# -- outputs of very different size ------------------------------------------------------------------------------------


def one_heavy_item() -> lh.Objective:
    def loss(z: Tensor, batch: Any) -> Any:
        return (batch[2] * (z - batch[1]) ** 2).sum(), len(z)

    model = relu_net(torch.float32)
    data = [(torch.randn(16, 4), torch.randn(16, 3), torch.ones(16, 3)) for _ in range(6)]
    x, y, weights = data[3]
    x[5], weights[5] = 0.0, torch.tensor([1e7, 0.0, 0.0])
    with torch.no_grad():
        model[0].bias.fill_(-0.1)  # type: ignore[index,union-attr]
        y[5] = model(x[5:6])[0]
    return lh.Objective(model, data, lh.batch_loss(loss, output=lambda model, batch: model(batch[0])))


def two_heads_of_different_weight() -> lh.Objective:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.a(x))
            return torch.cat([self.first(h), self.second(h)], dim=1)

    def loss(z: Tensor, batch: Any) -> Any:
        weights = torch.tensor([batch[2], batch[2], 1.0, 1.0])
        return (weights * (z - batch[1]) ** 2).sum(), len(z)

    data = [(torch.randn(16, 4), torch.randn(16, 4), 1e8 if i == 3 else 1.0) for i in range(6)]
    return lh.Objective(Heads(), data, lh.batch_loss(loss, output=lambda model, batch: model(batch[0])))


# -- operations that are not what their name says ----------------------------------------------------------------------


class Clamp(torch.autograd.Function):
    """Linear near zero, quadratic beyond 3."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x.abs() < 3.0, x, x.square())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * torch.where(x.abs() < 3.0, torch.ones_like(x), 2.0 * x)


def a_custom_function_with_a_known_name() -> lh.Objective:
    data = [batch(8) for _ in range(6)]
    data[3] = (data[3][0] * 8.0, data[3][1])
    return lh.Objective(Wrapped(lambda model, h: Clamp.apply(h)).double(), data, CE)  # type: ignore[no-untyped-call]


def the_length_of_complex_numbers() -> lh.Objective:
    turn = torch.exp(2j * torch.pi * torch.outer(torch.arange(6), torch.arange(6)) / 6).to(torch.complex128)
    return lh.Objective(Wrapped(lambda model, h: (h.to(torch.complex128) @ turn).abs()).double(), [batch(9)] * 3, CE)


# -- what works in an ordinary pass only -------------------------------------------------------------------------------


def checkpointed() -> lh.Objective:
    model = Wrapped(lambda model, h: checkpoint(lambda t: F.relu(t), h, use_reentrant=False))
    return lh.Objective(model.double(), [batch(9) for _ in range(3)], CE)


def checkpointed_layer() -> lh.Objective:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(checkpoint(lambda t: F.relu(self.b(F.relu(t))), self.a(x), use_reentrant=False))

    return lh.Objective(Checkpointed().double(), [batch(9) for _ in range(3)], CE)


def vmapped() -> lh.Objective:
    def between(model: Any, h: Tensor) -> Tensor:
        return torch.func.vmap(lambda row: F.linear(row, model.b.weight[:1].expand(6, 6)))(h)

    return lh.Objective(Wrapped(between).double(), [batch(9) for _ in range(3)], CE)


def two_precisions() -> lh.Objective:
    model = Wrapped(lambda model, h: h.double())
    model.b = model.b.double()
    data = [batch(9, dtype=torch.float32) for _ in range(3)]
    return lh.Objective(model, data, CE)


def odd_biases() -> lh.Objective:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, 4))
            self.one, self.each = nn.Parameter(torch.randn(1)), nn.Parameter(torch.randn(9, 3))
            self.code, self.b = nn.Parameter(torch.randn(3, 6)), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(F.linear(x, self.w, self.one))
            return F.linear(h, self.code, self.each) + F.linear(self.w.sum(1), self.b.weight, self.b.bias)

    return lh.Objective(Odd().double(), [batch(9) for _ in range(3)], CE)


def a_batch_without_labels() -> lh.Objective:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = relu_net()

        def forward(self, x: Tensor, labels: Tensor) -> Any:
            logits = self.net(x)
            return SimpleNamespace(loss=F.cross_entropy(logits, labels), logits=logits)

    data = []
    for i in range(5):
        x, y = batch(8)
        data.append({"x": x, "labels": torch.full_like(y, -100) if i == 3 else y})
    return lh.Objective(Own(), data)


def a_loss_that_leaves_the_output_out_once() -> lh.Objective:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = relu_net()

        def forward(self, x: Tensor, labels: Tensor, other: Tensor) -> Any:
            logits = self.net(x)
            used = self.net(x) if bool(other.any()) else logits
            return SimpleNamespace(loss=F.cross_entropy(used, labels), logits=logits)

    data = []
    for i in range(6):
        x, y = batch(8)
        data.append({"x": x, "labels": y, "other": torch.full((8,), i == 3)})
    return lh.Objective(Own(), data)


CASES: list[Callable[[], lh.Objective]] = [
    smooth_in_time,
    pairs_of_a_class,
    means_of_groups,
    time_before_items,
    positions_of_growing_batches,
    penalty_in_one_batch,
    another_heads_loss_in_one_batch,
    workspace,
    one_heavy_item,
    two_heads_of_different_weight,
    a_custom_function_with_a_known_name,
    the_length_of_complex_numbers,
    checkpointed,
    checkpointed_layer,
    two_precisions,
    odd_biases,
    a_batch_without_labels,
    a_loss_that_leaves_the_output_out_once,
]


def agrees_with_exact(make: Callable[[], lh.Objective], **options: Any) -> lh.Analysis:
    torch.manual_seed(0)
    objective = make()
    found = lh.analyze(objective, top=2, full=False, **options)
    exact = lh.analyze(objective, top=2, full=False, path="exact", **options)
    assert not any(s.path.endswith("on factors") for s in exact.blocks.values())
    for name, one in found.blocks.items():
        other = exact.blocks[name]
        size = 1e-5 if objective.dtype == torch.float32 else 1e-9
        allowed = one.error_bounds + other.error_bounds + size * np.abs(other.eigenvalues).max(initial=0.0) + 1e-14
        assert (np.abs(one.eigenvalues - other.eigenvalues) <= allowed).all(), (
            name,
            one.eigenvalues,
            other.eigenvalues,
        )
    return found


@pytest.mark.parametrize("make", CASES)
def test_nothing_wrong_comes_through(make: Callable[[], lh.Objective]) -> None:
    agrees_with_exact(make)


@pytest.mark.parametrize("numpy", [False, True])
@pytest.mark.parametrize("path", ["auto", "exact"])
def test_memory_that_is_filled_again_for_every_batch(numpy: bool, path: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 3)).double()
    data = Refilled(numpy)
    found = lh.analyze(lh.Objective(model, data, CE), blocks="weight", path=path)
    apart = lh.analyze(lh.Objective(model, data.batches, CE), blocks="weight", path="exact")
    for one, other in zip(found.spectra(), apart.spectra(), strict=True):
        assert one.ok and np.abs(one.eigenvalues - other.eigenvalues) <= one.error_bounds + other.error_bounds


def test_checkpoints_of_whole_layers_have_a_reason() -> None:
    found = agrees_with_exact(checkpointed_layer)
    assert all(not s.path.endswith("on factors") for s in found.blocks.values())


def test_a_loss_that_is_not_finite_twice_has_no_factors() -> None:
    z = torch.zeros(3, 2).double().requires_grad_() * 1.0
    assert output_directions(z.abs().sqrt().sum(), z) is None

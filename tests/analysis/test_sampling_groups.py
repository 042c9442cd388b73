"""Large batches that are cut into groups: the forms of all groups from one graph, and what happens where that fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import layerhess as lh
from layerhess.analysis import sampling_errors as sampling
from references import dense

X = torch.randn(70, 4, generator=torch.Generator().manual_seed(0)).double()
Y = torch.arange(70) % 3
SIZE = 70 // 16  # 17 groups of 4, and one of 2


class Cube(torch.autograd.Function):
    """x^3 with a right first and second derivative; ``third`` scales the third, or there is none."""

    third: float | None = 1.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return Slope.apply(g, x)


class Slope(torch.autograd.Function):
    """g, x -> 3 g x^2."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        return 3 * g * x**2

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> Any:
        g, x = ctx.saved_tensors
        if Cube.third is None:
            return Blunt.apply(h, g, x)
        if Cube.third != 1.0:
            return Bent.apply(3 * h * x**2), Bent.apply(6 * h * g * x)
        return 3 * h * x**2, 6 * h * g * x


class Blunt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, g: Tensor, x: Tensor) -> Any:
        return 3 * h * x**2, 6 * h * g * x

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        raise RuntimeError("there is no third derivative")


class Bent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return 1.3 * g


class Cubic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Cube.apply(x)  # type: ignore[no-any-return]


def model(activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 3)).double()


def totals(call: Any, batch: Any) -> tuple[Tensor, Tensor]:
    x, y = batch
    return nn.functional.cross_entropy(call(x), y, reduction="sum"), torch.tensor(float(len(y)))


def groups(net: nn.Module) -> list[tuple[float, dense.Reference]]:
    """The number of examples of every group, and its own dense Hessian."""
    cuts = zip(X.split(SIZE), Y.split(SIZE), strict=True)
    return [(float(len(y)), dense.reference_for(net, [(x, y)], totals)) for x, y in cuts]


def expected(own: list[tuple[float, dense.Reference]], spectrum: lh.Spectrum, index: int) -> float:
    """The ratio estimator of v'A_g v from every group's own dense Hessian."""
    counts = np.array([count for count, _ in own])
    v = torch.cat([part.reshape(-1) for part in spectrum.eigenvectors[index].values()]).numpy()
    forms = np.array([count * float(v @ matrix.block(list(spectrum.parameters)) @ v) for count, matrix in own])
    rest = forms - forms.sum() / counts.sum() * counts
    return math.sqrt(len(own) / (len(own) - 1) * float((rest**2).sum())) / float(counts.sum())


@pytest.mark.parametrize("third", [1.0, 1.3, None], ids=["right", "wrong", "missing"])
@pytest.mark.parametrize("activation", [nn.Tanh, Cubic])
def test_sampling_errors_of_a_cut_batch_are_those_of_its_groups(
    activation: Callable[[], nn.Module], third: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the third derivatives that all groups at once take are wrong, or missing: then group by group."""
    monkeypatch.setattr(Cube, "third", third)
    net = model(activation)
    analysis = lh.analyze(lh.Objective(net, (X, Y), nn.CrossEntropyLoss()), top=2, sampling=True, path="exact")
    monkeypatch.setattr(Cube, "third", 1.0)
    spent = analysis.counts.by_phase["sampling"]["products"]
    vectors = sum(len(s.eigenvalues) for s in analysis.spectra())
    at_once = activation is nn.Tanh or third == 1.0
    assert (spent == 2 * vectors) is at_once and spent >= 2 * vectors
    own = groups(net)
    for spectrum in analysis.spectra():
        for index in range(2):
            truth = expected(own, spectrum, index)
            assert spectrum.sampling_errors[index] == pytest.approx(truth, rel=1e-6, abs=1e-12), spectrum.name


def test_groups_are_counted_without_graphs_where_nothing_else_is_asked_of_them() -> None:
    analysis = lh.analyze(lh.Objective(model(), (X, Y), nn.CrossEntropyLoss()), sampling=True, path="exact")
    spent = analysis.counts.by_phase["sampling"]
    assert (spent["forwards"], spent["backwards"]) == (1 + 18, 1)  # one graph of the whole batch


LOSSES: dict[str, tuple[Any, Any]] = {
    "cross entropy with ignored labels": (nn.CrossEntropyLoss(ignore_index=0), Y),
    "class weights": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]).double()), Y),
    "several entries an item": (nn.MSELoss(), torch.randn(70, 3, generator=torch.Generator().manual_seed(3)).double()),
    "a callable": (lambda o, t: ((o - t) ** 2).sum(1).mean(), torch.ones(70, 3).double()),
    "batch_loss": (lh.batch_loss(lambda m, b: ((m(b[0]) ** 4).sum(), len(b[0]))), Y),
    "reduction sum": (nn.CrossEntropyLoss(reduction="sum"), Y),
}


@pytest.mark.parametrize("name", LOSSES)
def test_all_groups_at_once_are_the_groups_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, target = LOSSES[name]
    objective = lh.Objective(model(), (X, target), loss)
    at_once = lh.analyze(objective, top=1, trace=True, sampling=True, path="exact")
    monkeypatch.setattr(sampling, "has_forms", lambda objective: False)
    one_by_one = lh.analyze(objective, top=1, trace=True, sampling=True, path="exact")
    for found, reference in zip(at_once.spectra(), one_by_one.spectra(), strict=True):
        assert found.sampling_errors == pytest.approx(reference.sampling_errors, rel=1e-8, abs=1e-12)
        assert found.trace is not None and reference.trace is not None
        assert found.trace.sampling_error == pytest.approx(reference.trace.sampling_error, rel=1e-8, abs=1e-12)
    fewer = at_once.counts.by_phase["sampling"]["products"] < one_by_one.counts.by_phase["sampling"]["products"]
    assert fewer is (name not in ("a callable", "batch_loss"))


def test_a_batch_with_another_number_of_losses_than_examples_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the reason: groups of losses would not be groups of examples."""

    class Halved(sampling.GroupedForms):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.items //= 2

    monkeypatch.setattr(sampling, "GroupedForms", Halved)
    analysis = lh.analyze(lh.Objective(model(), (X, Y), nn.CrossEntropyLoss()), sampling=True, path="exact")
    assert analysis.counts.by_phase["sampling"]["products"] == 18 * 5  # pieces times vectors


def test_zero_curvature_does_not_count_as_a_disagreement() -> None:
    """Dead units: v'H_g v is nothing but rounding, and adds up to nothing but rounding."""
    net = model(nn.ReLU)
    with torch.no_grad():
        net[0].bias[:3] = -100.0
    analysis = lh.analyze(lh.Objective(net, (X, Y), nn.CrossEntropyLoss()), trace=True, sampling=True, path="exact")
    small = [s for s in analysis.blocks.values() if s.numel <= sampling.EXACT]  # a basis of theirs has the eigenvectors
    vectors = 5 - len(small) + sum(s.numel for s in small)
    assert analysis.counts.by_phase["sampling"]["products"] == 2 * vectors + 18 * sampling.PROBES


def test_memory_that_a_third_derivative_would_take_is_looked_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter(range(0, 10**15, 10**12))
    monkeypatch.setattr(sampling, "used_bytes", lambda device: next(used))
    analysis = lh.analyze(lh.Objective(model(), (X, Y), nn.CrossEntropyLoss()), sampling=True, path="exact")
    assert analysis.counts.by_phase["sampling"]["products"] == 18 * 5  # pieces times vectors


def test_factors_have_the_forms_of_every_group() -> None:
    """Where blocks are licensed: the same errors, from one product a vector."""
    objective = lh.Objective(model(nn.ReLU), (X, Y), nn.CrossEntropyLoss())
    found = lh.analyze(objective, top=2, trace=True, sampling=True)
    exact = lh.analyze(objective, top=2, trace=True, sampling=True, path="exact")
    assert all(s.path.endswith("on factors") for s in found.blocks.values())
    for one, other in zip(found.spectra(), exact.spectra(), strict=True):
        # The eigenvectors of both are known to their tolerance only.
        assert one.sampling_errors == pytest.approx(other.sampling_errors, rel=2e-2, abs=1e-6)
        assert one.trace is not None and other.trace is not None
    matrices = []  # of each group, dense
    size = len(X) // sampling.GROUPS
    for x, y in zip(X.split(size), Y.split(size), strict=True):
        part = lh.Hessian(lh.Objective(objective.model, (x, y), nn.CrossEntropyLoss()))
        matrices.append(part.to_dense().double().numpy() * len(x))
    counts, start = np.array([float(len(x)) for x in X.split(size)]), 0
    for block in found.blocks.values():
        place = slice(start, start + block.numel)
        start += block.numel
        own = np.array([np.trace(matrix[place, place]) for matrix in matrices])
        assert block.trace is not None
        assert block.trace.sampling_error == pytest.approx(sampling.ratio_error(own, counts), rel=1e-5)
    every = np.array([np.trace(matrix) for matrix in matrices])
    assert found.full is not None and found.full.trace is not None
    assert found.full.trace.sampling_error == pytest.approx(sampling.ratio_error(every, counts), rel=1e-5)
    spent, before = (a.counts.by_phase["sampling"]["products"] for a in (found, exact))
    assert spent < before

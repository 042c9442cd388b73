"""A segment that cannot be computed anew is found out on one example, and left as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from faulty_functions import Once
from layerhess.checks.segments import disagreement, soundness
from layerhess.curvature.data_pass import FULL
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.curvature.segments.found import Segment, found_segments
from layerhess.objective.blocks import make_block
from repeated_blocks import REPEATED, Residual
from witness import untouched


class _Block(nn.Module):
    """A residual block; what happens to it is up to ``change``, which sees the block and its inner value."""

    def __init__(self, change: Callable[[Any, Tensor], Any] = lambda block, x: x) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.change = change
        self.register_buffer("seen", torch.zeros(()))
        self.notes: list[float] = []

    def forward(self, x: Tensor) -> Any:
        return x + self.change(self, torch.tanh(self.layer(x)))


def _counts(block: Any, x: Tensor) -> Tensor:
    block.seen += 1.0
    return x


def _remembers(block: Any, x: Tensor) -> Tensor:
    block.latest = x
    return x


def _lists(block: Any, x: Tensor) -> Tensor:
    block.notes.append(float(x.detach().sum()))
    return x


ELSEWHERE = nn.Parameter(torch.full((3,), 2.0).double())
CALLS = [0.0]


def _drifts(block: Any, x: Tensor) -> Tensor:
    CALLS[0] += 1.0
    return x * CALLS[0]


FAULTY: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "a buffer": (_counts, "what its modules hold changes"),
    "an attribute": (_remembers, "what its modules hold changes"),
    "a list": (_lists, "what its modules hold changes"),
    "a parameter from outside": (lambda block, x: x * ELSEWHERE, "neither its argument nor its parameter"),
    "a derivative that is one only once": (lambda block, x: Once.apply(x), "only once"),
    "another value at every call": (_drifts, "another result the second time"),
}


@pytest.mark.parametrize("kind", FAULTY)
def test_a_segment_that_cannot_be_repeated_is_left_as_it_is(kind: str) -> None:
    change, why = FAULTY[kind]
    torch.manual_seed(0)
    model = nn.Sequential(_Block(), _Block(change), _Block()).double()
    objective = lh.Objective(model, (torch.randn(4, 3).double(), torch.randint(0, 3, (4,))), nn.CrossEntropyLoss())
    with untouched(model), objective.session():
        found = soundness(objective, next(objective.batches()), found_segments(model))
    assert found.sound == (Segment("0"), Segment("2")) and list(found.faults) == [Segment("1")]
    assert why in found.faults[Segment("1")]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda model: model[1].inner.register_forward_hook(lambda *_: None), "a hook runs in a Conv2d"),
        (lambda model: model[1].norm.train(), "what its modules hold changes"),
        (lambda model: setattr(model[1], "relu", nn.ReLU(inplace=True)), ""),
    ],
    ids=["hook", "BatchNorm in train mode", "in place inside"],
)
def test_residual_blocks(damage: Callable[[Any], Any], why: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), Residual(2), Residual(2), nn.Flatten(), nn.Linear(32, 3)).double().eval()
    damage(model)
    objective = lh.Objective(model, (torch.randn(2, 1, 4, 4).double(), torch.tensor([0, 2])), nn.CrossEntropyLoss())
    with objective.session():
        found = soundness(objective, next(objective.batches()), found_segments(model))
    assert len(found.sound) == (1 if why else 2)
    assert list(found.faults.values()) == [why] * bool(why)


class _ReturnsObject(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        return self.layer(x), object()


class _Takes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_ReturnsObject(), _ReturnsObject()])
        self.idle = nn.ModuleList([_ReturnsObject()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x, _ = block(x)
        return x


def test_results_that_are_no_tensors_and_modules_that_are_not_called() -> None:
    torch.manual_seed(0)
    objective = lh.Objective(_Takes(), (torch.randn(2, 3), torch.tensor([0, 2])), nn.CrossEntropyLoss())
    with objective.session():
        found = soundness(objective, next(objective.batches()), found_segments(objective.model))
    assert not found.sound and sorted(found.faults.values()) == ["it returns a object"] * 2 + ["it was not called"]


@pytest.mark.parametrize("products", [False, True], ids=["gradient", "product"])
def test_with_and_without_segments_the_numbers_agree(products: bool) -> None:
    objective = REPEATED["transformer"].build(torch.float32)
    full = make_block(FULL, objective.parameters)
    with untouched(objective.model), objective.session():
        batch = next(objective.batches())
        segments = found_segments(objective.model)
        off, most = disagreement(objective, batch, HessianGraph, segments, full, 0, products=products)
    assert off <= 1e-5 and most == torch.finfo(torch.float32).eps ** 0.5


def test_a_segment_that_hides_a_parameter_is_found_out_by_the_numbers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[_Block(lambda block, x: x * ELSEWHERE) for _ in range(2)]).double()
    model.elsewhere = ELSEWHERE
    objective = lh.Objective(model, (torch.randn(4, 3).double(), torch.randint(0, 3, (4,))), nn.CrossEntropyLoss())
    full = make_block(FULL, objective.parameters)
    with objective.session():
        batch = next(objective.batches())
        for products in (False, True):
            off, most = disagreement(objective, batch, HessianGraph, found_segments(model), full, 0, products=products)
            assert off > 100.0 * most

"""An analysis takes segments where the graph of one example is too large for its budget, or where they are named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from layerhess.analysis import segments
from layerhess.curvature.segments import segmented
from repeated_blocks import REPEATED, Tied
from witness import untouched

NOTE = "are computed anew by every product"
LONG = 96  # tokens


def long_text(layers: int = 3) -> lh.Objective:
    """One example's graph takes some 10 MB, mostly of attention; the parameters are few."""
    torch.manual_seed(0)
    words = torch.randint(0, 7, (2, LONG))
    return lh.Objective(Tied(layers).double(), (words, words), nn.CrossEntropyLoss())


def numbers(found: lh.Analysis) -> dict[str, Any]:
    return {name: block.eigenvalues for name, block in found.blocks.items()}


@pytest.fixture(scope="module")
def free() -> lh.Analysis:
    return lh.analyze(long_text(), **ARGUMENTS)


ARGUMENTS: dict[str, Any] = {"blocks": "depth:2", "full": False, "exclude": None, "tol": 1e-4}


def test_where_one_example_is_too_large_segments_are_taken_with_the_same_result(free: lh.Analysis) -> None:
    objective = long_text()
    with untouched(objective.model):
        held = lh.analyze(objective, memory="10MB", **ARGUMENTS)
    assert not any(NOTE in note for note in free.notes)
    assert [note for note in held.notes if NOTE in note] == [
        "memory: 3 segments (layers.0 to layers.2) are computed anew by every product, which takes longer and less "
        "memory (the graph of one example is too large)"
    ]
    assert held.settings["segments"] == "auto" and held.converged
    for name, value in numbers(free).items():
        np.testing.assert_allclose(numbers(held)[name], value, rtol=1e-9)


def test_as_many_segments_keep_their_graphs_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class ChosenError(Exception):
        pass

    def made(make: Any, chosen: Any, held: int) -> None:
        raise ChosenError(held)

    def held(**arguments: Any) -> int:
        with pytest.raises(ChosenError) as error:
            lh.analyze(long_text(6), **arguments, **ARGUMENTS)
        return int(error.value.args[0])

    monkeypatch.setattr(segments, "Segmented", made)
    some = [held(memory=budget) for budget in ("6MB", "12MB", "18MB")]
    assert some[0] == 0 < some[1] < some[2] <= 6
    assert held(segments="layers.*") == 6, "named, and no memory is asked for"


def test_none_forbids_segments_and_names_demand_them() -> None:
    objective = REPEATED["transformer"].build()
    arguments = {"blocks": "depth:2", "full": False, "exclude": None}
    without = lh.analyze(objective, segments=None, memory="5MB", **arguments)
    named = lh.analyze(objective, segments=["layers.1"], **arguments)
    assert not any(NOTE in note for note in without.notes) and without.settings["segments"] is None
    assert any("1 segment (layers.1) is computed anew by every product" in note for note in named.notes)
    assert named.settings["segments"] == ["layers.1"]
    for name, value in numbers(without).items():
        np.testing.assert_allclose(numbers(named)[name], value, rtol=1e-9, atol=1e-12)


def test_gauss_newton_and_the_rounding_of_float32() -> None:
    objective = REPEATED["resnet"].build(torch.float32)
    arguments = {"blocks": "depth:1", "exclude": None, "operator": "gauss_newton", "path": "exact"}
    free, named = lh.analyze(objective, **arguments), lh.analyze(objective, segments="[12].*", **arguments)
    assert any(NOTE in note for note in named.notes) and named.converged
    assert named.full.rounding_source == "measured"
    for name, block in named.blocks.items():
        off = np.abs(block.eigenvalues - free.blocks[name].eigenvalues)
        assert (off <= block.error_bounds + free.blocks[name].error_bounds).all(), name


class _Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 3), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        self.latest = self.layer(x)
        return self.latest


def test_segments_that_cannot_be_used_are_named_in_a_note() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(_Remembers(), _Remembers(), nn.Linear(3, 3)).double()
    objective = lh.Objective(model, (torch.randn(4, 3).double(), torch.randint(0, 3, (4,))), nn.CrossEntropyLoss())
    found = lh.analyze(objective, segments=["0", "1"])
    assert any(
        note == "memory: no segment of the network can be computed anew (0: what its modules hold changes; 1: what its "
        "modules hold changes)" for note in found.notes
    )  # fmt: skip


def test_segments_whose_numbers_differ_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that no look at a single call shows: the results of a segment come out scaled."""
    honest = segmented.recomputed
    monkeypatch.setattr(segmented, "recomputed", lambda call, given: tuple(r * 1.5 for r in honest(call, given)))
    found = lh.analyze(REPEATED["transformer"].build(), segments=["layers.*"], **ARGUMENTS)
    assert any("segments were not used: products with them are off by" in note for note in found.notes)
    free = lh.analyze(REPEATED["transformer"].build(), segments=None, **ARGUMENTS)
    assert numbers(found) == numbers(free)


def test_the_model_comes_back_after_an_error_inside_a_segment() -> None:
    objective = long_text(2)

    class Boom(Exception):
        pass

    def fails(*args: Any) -> Any:
        raise Boom

    handle = objective.model.layers[1].inner.register_forward_hook(fails)
    with untouched(objective.model), pytest.raises(Boom):
        lh.analyze(objective, segments=["layers.*"], **ARGUMENTS)
    handle.remove()


@pytest.mark.parametrize("everything", [False, True], ids=["for a product", "for gradients too"])
def test_memory_that_runs_out_while_segments_are_compared_is_no_end(
    everything: bool, free: lh.Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients are compared instead; without these no segments are taken."""
    real = segments.disagreement

    def disagreement(*given: Any, products: bool) -> tuple[float, float]:
        if products or everything:
            raise torch.OutOfMemoryError("CUDA out of memory, in this test")
        return real(*given, products=products)

    monkeypatch.setattr(segments, "disagreement", disagreement)
    found = lh.analyze(long_text(), segments=["layers.0", "layers.1"], **ARGUMENTS)
    assert any(NOTE in note for note in found.notes) == (not everything) and found.converged
    for name, values in numbers(free).items():
        np.testing.assert_allclose(numbers(found)[name], values, rtol=1e-6)


def test_batch_norm_in_train_mode_whose_batches_have_no_single_examples_keeps_to_a_budget() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
    data = [(torch.randn(10, 6).double(), torch.randint(3, (10,))) for _ in range(3)]
    free = lh.analyze(lh.Objective(model, data, nn.CrossEntropyLoss()), blocks={"last": "3.*"}, full=False)
    for asked in ("auto", ["3"]):
        own = lh.analyze(
            lh.Objective(model, data, nn.CrossEntropyLoss()), blocks={"last": "3.*"}, full=False, memory="1MB",
            segments=asked,
        )  # fmt: skip
        assert np.allclose(own.blocks["last"].eigenvalues, free.blocks["last"].eigenvalues, rtol=1e-9)


class _Followed(nn.Module):
    """Blocks whose results are changed in place afterwards, in three ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Widened(way) for _ in range(4))
        self.out = nn.Linear(8, 3)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            made = block(x)
            if self.way == "view":
                made += x
                x = made
            elif self.way == "two views":
                first, second = made
                first += x
                x = first * second
            else:
                made.mul_(0.5)
                x = made
        return self.out(x).mean(1)


class _Widened(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 16 if way == "two views" else 8)
        self.way = way

    def forward(self, x: Tensor) -> Any:
        made = self.b(torch.tanh(self.a(x)))
        if self.way == "two views":
            return made[..., :8], made[..., 8:]
        return made.transpose(1, 2).transpose(1, 2)[:, :] if self.way == "view of a view" else made


@pytest.mark.parametrize("way", ["view", "view of a view", "two views"])
def test_results_may_be_changed_in_place_after_a_segment(way: str) -> None:
    torch.manual_seed(0)
    objective = lh.Objective(
        _Followed(way).double(), (torch.randn(6, 5, 8).double(), torch.randint(3, (6,))), nn.CrossEntropyLoss()
    )
    whole = lh.analyze(objective, segments=None, **ARGUMENTS)
    parts = lh.analyze(objective, segments=["blocks.*"], **ARGUMENTS)
    taken = any(NOTE in note for note in parts.notes)
    assert taken or any("no segment of the network can be computed anew" in note for note in parts.notes)
    assert taken == (way != "two views")
    for name, value in numbers(whole).items():
        np.testing.assert_allclose(numbers(parts)[name], value, rtol=1e-9)

"""Random directions: every filter has the length of the weights' own, and nothing else plays a part."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from layerhess.analysis.directions import made, title


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4)).double().eval()


def objective(model: nn.Module) -> lh.Objective:
    return lh.Objective(model, (torch.randn(5, 2, 4, 4).double(), torch.randint(4, (5,))), nn.CrossEntropyLoss())


def drawn(model: nn.Module, seed: int, *within: str) -> dict[str, Tensor]:
    return made(("random", seed), objective(model), within)


def test_every_filter_has_the_length_of_the_weights_own() -> None:
    model = network()
    with torch.no_grad():
        model[3].weight[1] = 0.0
    direction = drawn(model, 0)
    assert list(direction) == ["0.weight", "3.weight"], "biases and normalisations stay where they are"
    for name, part in direction.items():
        weights = dict(model.named_parameters())[name]
        assert part.shape == weights.shape
        for row, own in zip(part, weights, strict=True):
            assert float(row.norm()) == pytest.approx(float(own.detach().norm()), rel=1e-12)
            assert not row.any() or not torch.allclose(row.abs(), own.abs())


def test_a_direction_depends_on_its_seed_and_the_names_only() -> None:
    model = network()
    one = drawn(model, 0)
    assert all(torch.equal(one[name], part) for name, part in drawn(model, 0).items())
    assert not any(torch.equal(one[name], part) for name, part in drawn(model, 1).items())
    alone = drawn(model, 0, "3.*")
    assert list(alone) == ["3.weight"] and torch.equal(alone["3.weight"], one["3.weight"])


def test_scaling_a_layer_scales_its_direction() -> None:
    """So that a rectified network that computes the same is as sharp as before (Li et al. 2018)."""
    model = network()
    before = drawn(model, 0)
    with torch.no_grad():
        model[0].weight *= 10.0
    after = drawn(model, 0)
    assert torch.allclose(after["0.weight"], 10.0 * before["0.weight"], rtol=1e-12)
    assert torch.equal(after["3.weight"], before["3.weight"])


def test_a_model_without_filters_has_no_random_direction() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.w * x

    flat = lh.Objective(Scale(), (torch.ones(3, 2), torch.ones(3, 2)), nn.MSELoss())
    with pytest.raises(lh.InputError, match="two or more dimensions"):
        lh.loss_slice(flat, ("random", 0))
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    nothing = lh.Objective(model, (torch.ones(3, 2), torch.ones(3, 1)), nn.MSELoss())
    with pytest.raises(lh.InputError, match="all filters are"):
        lh.loss_slice(nothing, ("random", 0))


def test_titles_say_what_a_direction_is() -> None:
    assert title(("random", 3)) == "random, filter-normalised, seed 3"
    assert title({"a": 1}) == "a" and title({"a": 1, "b": 2}) == "2 tensors from a to b"

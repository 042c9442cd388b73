"""What a failed self-check says: weight normalisation, whose second derivative torch has wrong, is named by module."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import layerhess as lh
from refusals import CE, PAIRS, Table, analysis
from witness import refused

TABLE = Table()
case = TABLE.case


def old(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def parametrised(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(layer)


def linear(normalise: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), normalise(nn.Linear(6, 3)))


def alone(normalise: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Identity(), nn.Identity(), normalise(nn.Linear(4, 3)))


def convolutional(normalise: Callable[[nn.Module], nn.Module]) -> nn.Module:
    layers = nn.Conv2d(1, 2, 1), nn.Tanh(), normalise(nn.Conv2d(2, 3, 2)), nn.Flatten(), nn.Linear(3, 3)
    return nn.Sequential(nn.Sequential(nn.Unflatten(1, (1, 2, 2)), layers[0]), *layers[1:])


def bigger(normalise: Callable[[nn.Module], nn.Module]) -> nn.Module:
    plain = [layer for _ in range(5) for layer in (nn.Linear(32, 32), nn.ReLU())]
    first = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32))
    return nn.Sequential(first, nn.ReLU(), normalise(nn.Linear(32, 32)), nn.ReLU(), *plain, nn.Linear(32, 3))


def normalised(make: Any, normalise: Any, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return make(normalise).to(dtype)


for _style in (old, parametrised):
    for _make in (linear, alone, convolutional, bigger):
        for _dtype in (torch.float32, torch.float64):
            _name = f"{_style.__name__}, {_make.__name__}, {str(_dtype).removeprefix('torch.')}"
            case(f"weight_norm: {_name}", "module 2 (", "weight_norm", "fold it")(
                analysis(
                    [(x.to(_dtype), y) for x, y in PAIRS],
                    model=lambda make=_make, style=_style, dtype=_dtype: normalised(make, style, dtype),
                )
            )


@pytest.mark.parametrize("name", TABLE)
def test_models_that_cannot_be_analysed_are_refused_in_words(name: str) -> None:
    TABLE.check(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("style", [old, parametrised])
def test_skip_failed_refuses_the_blocks_that_fail_and_analyses_the_rest(style: Any, dtype: torch.dtype) -> None:
    model = normalised(bigger, style, dtype)
    objective = lh.Objective(model, [(x.to(dtype), y) for x, y in PAIRS], CE)
    result = lh.analyze(objective, blocks="weight", skip_failed=True, tol=0.1)
    refused_blocks = {name for name, spectrum in result.blocks.items() if spectrum.status.startswith("refused")}
    assert refused_blocks and all(name.startswith("2.") for name in refused_blocks)
    assert result.full is not None and result.full.status.startswith("refused")
    for name, spectrum in result.blocks.items():
        assert spectrum.ok == (name not in refused_blocks)
        assert len(spectrum.eigenvalues) == (name not in refused_blocks)
    assert not result.converged
    assert any("refused by the self-check" in note for note in result.notes)
    assert {check.block for check in result.checks if not check.passed} == {*refused_blocks, "(full)"}


SCHEMES = ({"all": "*"}, {"first": "[01].*", "rest": "[2-9].*"}, "depth:1", "module")


@pytest.mark.parametrize(
    ("style", "make", "scheme", "seed"),
    [
        pytest.param(style, make, scheme, seed, marks=() if now else pytest.mark.slow)
        for seed in range(3)
        for i, style in enumerate((old, parametrised))
        for j, make in enumerate((linear, convolutional, bigger))
        for k, scheme in enumerate(SCHEMES)
        for now in [seed == 0 and (i + j + k) % 2 == 0]
    ],
)
def test_weight_norm_is_named_whatever_the_blocks(style: Any, make: Any, scheme: Any, seed: int) -> None:
    """In float32, and in a block with much else; in several seeds, since the check is a random one."""
    model = normalised(make, style, torch.float32)
    with refused(model, "module 2 (", "weight_norm", "fold it"):
        lh.analyze(lh.Objective(model, PAIRS, CE), blocks=scheme, full=False, seed=seed)


@pytest.mark.parametrize("style", [old, parametrised])
def test_blocks_that_weight_norm_does_not_touch_are_analysed(style: Any) -> None:
    model = normalised(bigger, style, torch.float64)
    objective = lh.Objective(model, [(x.double(), y) for x, y in PAIRS], CE)
    assert lh.analyze(objective, blocks={"biases": "*.bias"}, full=False).converged
    with refused(model, "(full)", "module 2 (", "weight_norm"):
        lh.analyze(objective, blocks={"biases": "*.bias"}, full=True)

"""One process, parameters on several devices (a pipeline by hand, accelerate's device_map): the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from layerhess.curvature.data_pass import DataPass
from layerhess.curvature.request import Request
from layerhess.curvature.totals import Totals
from layerhess.objective import parameters
from second_device import THERE, TwoDevices, moved_there
from tanh_network import CE, X, Y, assert_same, mlp, product
from witness import untouched

FACTORS = "products come from each layer's inputs"
HERE = torch.device("cpu")
DATA = [(X[:5], Y[:5]), (X[5:], Y[5:])]


class Pipeline(nn.Module):
    """Its first layers here, the last ones wherever they lie; the output stays there."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv1d(1, 4, 2), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten())
        self.hidden, self.last = nn.Linear(12, 6), nn.Linear(6, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x[:, None])
        x = torch.relu(self.hidden(x.to(self.hidden.weight.device)))
        return self.last(x.to(self.last.weight.device))


@pytest.fixture
def values_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in says meta and has values."""
    monkeypatch.setattr(parameters, "_has_no_values", lambda parameter: False)


def numbers(model: nn.Module, **asked: Any) -> tuple[list[Any], list[str]]:
    found = lh.analyze(lh.Objective(model, DATA, CE), **asked)
    spectra = [*found.blocks.values(), *([] if found.full is None else [found.full])]
    made: list[Any] = [spectrum.eigenvalues for spectrum in spectra]
    made += [spectrum.trace.value for spectrum in spectra if spectrum.trace is not None]
    made += [spectrum.sampling_errors for spectrum in spectra]
    return made, list(found.notes)


@pytest.mark.parametrize(
    ("far", "asked"),
    [
        ("last", {"blocks": "module", "top": 2}),
        ("hidden", {"blocks": {"head": ["hidden.*", "last.*"], "stem": "first.0.*"}, "trace": True, "sampling": True}),
        ("last", {"blocks": "weight", "operator": "gauss_newton", "full": False}),
    ],
    ids=["modules", "blocks across devices", "Gauss-Newton"],
)
def test_the_numbers_are_those_of_one_device(far: str, asked: dict[str, Any], values_there: None) -> None:
    """Factors may be made of fewer blocks: moving to a device is no operation that they know to be linear."""
    expected, said = numbers(Pipeline(), **asked)
    model = Pipeline()
    moved_there(model.get_submodule(far))
    with TwoDevices():
        with pytest.raises(RuntimeError, match="same device"):
            model.last.bias + model.hidden.bias[:3]
        found, notes = numbers(model, **asked)
    assert model.get_parameter(f"{far}.weight").device == THERE
    assert [note for note in notes if FACTORS not in note] == [note for note in said if FACTORS not in note]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-12)


def test_products_and_gradients_by_hand(values_there: None) -> None:
    model, plain = Pipeline(), Pipeline()
    moved_there(model.last)
    expected = lh.Hessian(lh.Objective(plain, DATA, CE)).matvec({n: p.detach() for n, p in plain.named_parameters()})
    with TwoDevices():
        made = lh.Hessian(lh.Objective(model, DATA, CE)).matvec({n: p.detach() for n, p in model.named_parameters()})
        for name, part in made.items():
            torch.testing.assert_close(part.cpu(), expected[name].cpu())


def test_sums_lie_beside_their_parameters_and_products_beside_their_vectors(
    values_there: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: dict[str, torch.device] = {}
    given: dict[str, torch.device] = {}
    plain_open, plain_run = Totals.open, DataPass.run

    def noted(self: Totals, key: Any, *shape: int, **placed: Any) -> None:
        plain_open(self, key, *shape, **placed)
        opened[key[1]] = self.total(key).device

    def run(self: DataPass, requests: Mapping[str, Request]) -> dict[str, Tensor]:
        made = plain_run(self, requests)
        assert all(rows.device == requests[key].vectors.device for key, rows in made.items())
        if self.counters.phase == "checks":
            given.update({key: request.vectors.device for key, request in requests.items()})
        return made

    model = Pipeline()
    moved_there(model.last)
    with TwoDevices():
        monkeypatch.setattr(Totals, "open", noted)
        monkeypatch.setattr(DataPass, "run", run)
        lh.analyze(lh.Objective(model, DATA, CE), blocks="module", top=1)
    places = {"first.0": HERE, "hidden": HERE, "last": THERE}
    assert {name: opened[name] for name in places} == places  # where a batch's products are added up
    assert {name: given[name] for name in places} == places  # where the self-check's vectors are


def hooked(hooks: Any) -> nn.Module:
    """As accelerate's dispatch_model leaves a model whose parts are all in one place."""
    model = mlp()
    hooks.add_hook_to_module(model, hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True))
    hooks.add_hook_to_module(model[0], hooks.AlignDevicesHook(execution_device="cpu"))
    return model


def test_accelerates_hooks_stay_and_copies_run_their_own_weights() -> None:
    hooks = pytest.importorskip("accelerate.hooks", reason="accelerate is not installed")
    model = hooked(hooks)
    with untouched(model):
        objective = lh.Objective(model, (X, Y), CE)
        assert_same(product(objective))
        assert not any("no copy" in note for note in lh.analyze(objective, max_passes=2).notes)


def test_offloaded_weights_are_refused() -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = accelerate.cpu_offload(mlp(), execution_device=torch.device("cpu"))
    with pytest.raises(lh.InputError, match="on the meta device") as caught:
        lh.Objective(model, (X, Y), CE)
    assert caught.value.where == "0.weight" and "offload" in caught.value.what_to_do

"""The model comes back bit-identical: parameters, gradients, buffers, modes, hooks, random states and all the rest."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import layerhess as lh
from delicate import BATCHES, a_batch, delicate
from layerhess.objective.snapshot import RandomState
from witness import bits, random_states, record, untouched

# -- after success -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["as-is", "eval"])
def test_an_analysis_leaves_no_trace(mode: str) -> None:
    model = delicate()
    objective = lh.Objective(model, BATCHES, nn.CrossEntropyLoss(), mode=mode)
    with untouched(model):
        analysis = lh.analyze(objective, top=2, bottom=1)
    assert analysis.converged
    assert not hasattr(model, "cache") and model.history == [] and model.count == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda h: h.matvec(torch.ones(h.shape[0])),
        lambda h: h.block_matvec({"head.weight": torch.ones(18), "first.bias": torch.ones(6)}),
        lambda h: h.block("head.bias").to_dense(),
        lambda h: h.block("head.weight").to_scipy().matvec(np.ones(18)),
        lambda h: lh.eigsh(h.block("second.weight"), k=2),
    ],
    ids=["matvec", "block_matvec", "to_dense", "to_scipy", "eigsh"],
)
def test_a_product_leaves_no_trace(call: Callable[[lh.Hessian], Any]) -> None:
    model = delicate()
    with untouched(model):
        call(lh.Hessian(lh.Objective(model, BATCHES, nn.CrossEntropyLoss())))


def test_the_witness_notices_every_kind_of_change() -> None:
    """One bit in a buffer, the identity of a gradient, a hook, a random number, a mode, a sign through ``.data``."""
    model = delicate()
    before = record(model)
    for change in (
        lambda: model.calls.add_(1),
        lambda: setattr(model.head.weight, "grad", model.head.weight.grad.clone()),
        lambda: model.head.register_forward_hook(lambda *a: None),
        lambda: torch.rand(1),
        lambda: model.quiet.train(),
        lambda: model.plain.data.neg_(),
    ):
        change()
        after = record(model)
        assert after != before
        before = after


@pytest.mark.parametrize("style", ["old", "parametrised"])
def test_weight_norm_comes_back_after_its_refusal_and_after_success(style: str) -> None:
    """The old style keeps a plain tensor attribute, made anew at every forward pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        normalise = nn.utils.weight_norm if style == "old" else nn.utils.parametrizations.weight_norm
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), normalise(nn.Linear(5, 3)))
    model(BATCHES[0][0])
    objective = lh.Objective(model, BATCHES, nn.CrossEntropyLoss())
    with untouched(model), pytest.raises(lh.CheckError):
        lh.analyze(objective)
    with untouched(model):
        analysis = lh.analyze(objective, full=False, skip_failed=True)
    assert analysis.blocks["0.weight"].ok


def test_writing_through_data_is_noticed() -> None:
    """``parameter.data`` is not counted as a change by autograd; a hook that clips weights so is still undone."""
    model = nn.Sequential(nn.Linear(4, 3))

    def clip(module: nn.Module, inputs: Any) -> None:
        module.weight.data.clamp_(-0.1, 0.1)

    model[0].register_forward_pre_hook(clip)
    with untouched(model):
        lh.Hessian(lh.Objective(model, BATCHES, nn.CrossEntropyLoss()), check=False).matvec(torch.ones(15))


def test_weights_swapped_for_others_come_back() -> None:
    model = nn.Sequential(nn.Linear(4, 3))

    def swap(module: nn.Module, inputs: Any) -> None:
        module.bias.data = torch.zeros(3)

    model[0].register_forward_pre_hook(swap)
    place = model[0].bias.data_ptr()
    with untouched(model):
        lh.Hessian(lh.Objective(model, BATCHES, nn.CrossEntropyLoss()), check=False).matvec(torch.ones(15))
    assert model[0].bias.data_ptr() == place


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:The .grad attribute")
def test_scripted_models_come_back() -> None:
    model = torch.jit.script(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)))
    before = {name: bits(value) for name, value in model.state_dict().items()}
    analysis = lh.analyze(lh.Objective(model, [BATCHES[0]], nn.CrossEntropyLoss()))
    assert analysis.converged and model.training
    assert {name: bits(value) for name, value in model.state_dict().items()} == before


def test_buffers_made_in_inference_mode_come_back_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval()
    with torch.inference_mode():
        model[1].running_mean = torch.full((5,), 0.5)
        model[1].running_var = torch.full((5,), 2.0)
    expected = lh.Hessian(lh.Objective(_same_outside(model), BATCHES, nn.CrossEntropyLoss())).matvec(torch.ones(53))
    with untouched(model):
        product = lh.Hessian(lh.Objective(model, BATCHES, nn.CrossEntropyLoss())).matvec(torch.ones(53))
    assert model[1].running_mean.is_inference()
    torch.testing.assert_close(product, expected)


def _same_outside(model: nn.Sequential) -> nn.Sequential:
    made = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval()
    made.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    return made


# -- random states -----------------------------------------------------------------------------------------------------


class Drawing:
    """Batches whose reading draws from all three global generators, without effect on the batches."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            torch.rand(1)
            np.random.rand()
            random.random()
            yield batch


def test_gpus_that_begin_meanwhile_are_as_they_began(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.Generator().manual_seed(7)  # stands for one
    monkeypatch.setattr(torch.cuda, "default_generators", (gpu,))
    fresh, state = gpu.get_state(), RandomState.take()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    torch.rand(3, generator=gpu)
    state.put_back()
    assert torch.equal(gpu.get_state(), fresh)


@pytest.mark.parametrize(
    "data",
    [
        Drawing(BATCHES),
        DataLoader(TensorDataset(*a_batch(12)), batch_size=5),
        DataLoader(TensorDataset(*a_batch(12)), batch_size=5, shuffle=True),
    ],
    ids=["draws", "loader", "shuffling loader"],
)
def test_random_states_come_back(data: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    before = random_states()
    objective = lh.Objective(model, data, nn.CrossEntropyLoss())
    assert random_states() == before, "making an objective reads nothing"
    lh.analyze(objective)
    lh.Hessian(objective).matvec(torch.ones(15))
    lh.eigsh(lh.Hessian(objective), k=1)
    objective.subset(5)
    assert random_states() == before


def test_random_states_come_back_when_a_result_is_saved_for_the_first_time(tmp_path: Path) -> None:
    code = """
import sys
import torch
import layerhess as lh
from witness import untouched

model = torch.nn.Linear(2, 2)
objective = lh.Objective(model, (torch.eye(2), torch.eye(2)), torch.nn.MSELoss())
with untouched(model):
    lh.analyze(objective, out=sys.argv[1])
"""
    here = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(here), str(here.parent))), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True, env=environment)


# -- hooks -------------------------------------------------------------------------------------------------------------


def test_gradient_hooks_do_not_change_products_and_forward_hooks_do() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    objective = lh.Objective(model, BATCHES, nn.CrossEntropyLoss())
    plain = lh.Hessian(objective).matvec(torch.ones(43))
    calls = []
    model[0].weight.register_hook(lambda g: calls.append(1) or 10.0 * g)
    model[2].register_full_backward_hook(lambda module, grads, outputs: calls.append(2) or (10.0 * grads[0],))
    with untouched(model):
        torch.testing.assert_close(lh.Hessian(objective).matvec(torch.ones(43)), plain)
    assert calls == []
    model[0].register_forward_hook(lambda module, inputs, output: 2.0 * output)
    with untouched(model):
        assert not torch.allclose(lh.Hessian(objective).matvec(torch.ones(43)), plain)
    F.cross_entropy(model(BATCHES[0][0]), BATCHES[0][1]).backward()
    assert sorted(set(calls)) == [1, 2], "they work again afterwards"

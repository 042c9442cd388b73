"""Compiled and parallel models: the wrapper is taken off, and that is said."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import layerhess as lh
from tanh_network import CE, X, Y, assert_same, mlp, product
from witness import untouched


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def compiled_and_used(model: nn.Module) -> nn.Module:
    made = compiled(model)
    made(X)
    return made


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    model(X)
    return model


def compiled_in_part(model: nn.Module) -> nn.Module:
    model[0].compile(backend="eager")
    model(X)
    return model


WRAPPERS: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "compiled": (compiled, "was compiled"),
    "compiled and used": (compiled_and_used, "was compiled"),
    "compiled in place": (compiled_in_place, "run eagerly"),
    "compiled in part": (compiled_in_part, "run eagerly"),
    "DataParallel": (nn.DataParallel, "wrapped in DataParallel"),
    "compiled DataParallel": (lambda model: compiled(nn.DataParallel(model)), "wrapped in DataParallel"),
}


def assert_unwrapped(wrapped: nn.Module, model: nn.Module, said: str) -> None:
    objective = lh.Objective(wrapped, (X, Y), CE)
    assert objective.model is model
    with untouched(model):
        assert_same(product(objective))
    analysis = lh.analyze(objective, max_passes=2)
    assert list(analysis.blocks) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert any(said in note for note in analysis.notes)


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_are_taken_off_and_that_is_said(name: str) -> None:
    wrap, said = WRAPPERS[name]
    model = mlp()
    assert_unwrapped(wrap(model), model, said)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_distributed_data_parallel_is_taken_off(tmp_path: Path) -> None:
    """In a process of its own: a process group of gloo may hang when it is taken down."""
    here = Path(__file__).parent
    paths = os.pathsep.join((str(here), str(here.parents[0]), str(here.parents[1])))
    code = f"import test_wrappers; test_wrappers.take_distributed_off({str(tmp_path / 'store')!r})"
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, timeout=180, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def take_distributed_off(store: str) -> None:
    """The body of the test above."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    model = mlp()
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert_unwrapped(wrapped, model, "wrapped in DistributedDataParallel")
    F.cross_entropy(wrapped(X), Y).backward()
    assert model[0].weight.grad is not None, "it still works"
    os._exit(0)  # without the group's destructor


def test_a_loss_of_gradients_of_every_example_by_torch_func() -> None:
    """The model runs inside transforms, where there are no autograd nodes to be watched."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(6, 3, dtype=torch.float64)

    def slopes(parameters: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        alone = torch.func.grad(lambda row: torch.func.functional_call(model, parameters, (row,)).sum())
        return torch.func.vmap(alone)(rows).square().sum()

    def loss(network: nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
        return slopes(dict(network.named_parameters()), batch), len(batch)

    found = lh.analyze(lh.Objective(model, [(x,)], lh.batch_loss(lambda m, b: loss(m, b[0]))), blocks="weight")
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    for name in ("0.weight", "2.weight"):
        explicit = torch.autograd.functional.hessian(
            lambda w, name=name: slopes({**parameters, name: w}, x) / len(x), parameters[name]
        )
        top = torch.linalg.eigvalsh(explicit.reshape(parameters[name].numel(), -1))[-1]
        assert found.blocks[name].converged.all()
        assert abs(found.blocks[name].eigenvalues[0] - float(top)) <= found.blocks[name].error_bounds[0] + 1e-12

"""The examples for launchers run on two processes, and print the numbers of the model on all the data."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
NEEDS = {"with_accelerate": "accelerate", "with_fabric": "lightning", "with_ray_train": "ray"}


def launched(example: str) -> str:
    """What the example prints, started by torchrun; Ray starts its workers itself."""
    script = str(ROOT / "examples" / f"{example}.py")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *([] if example == "with_ray_train" else torchrun), script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def explicit() -> dict[str, list[float]]:
    """The two largest eigenvalues of each weight's block, from the whole Hessian by torch.autograd.functional."""
    torch.manual_seed(0)
    x = torch.randn(61, 8, dtype=torch.float64)
    y = (x[:, 0] * x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    found = {}
    for name in ("0.weight", "2.weight"):
        weight = model.get_parameter(name).detach()

        def loss(flat: Tensor, name: str = name, weight: Tensor = weight) -> Tensor:
            output = torch.func.functional_call(model, {name: flat.view_as(weight)}, (x,))
            return nn.functional.cross_entropy(output, y)

        block = torch.autograd.functional.hessian(loss, weight.reshape(-1))
        found[name] = torch.linalg.eigvalsh(block).flip(0)[:2].tolist()
    return found


@pytest.mark.parametrize(
    "example", [pytest.param(name, marks=[pytest.mark.slow] if name == "with_accelerate" else []) for name in NEEDS]
)
def test_the_example_prints_the_numbers_of_all_the_data(example: str) -> None:
    if importlib.util.find_spec(NEEDS[example]) is None:
        pytest.skip(f"{NEEDS[example]} is not installed")
    lines = [line.split() for line in launched(example).splitlines() if ".weight" in line]
    printed = list(dict.fromkeys(tuple(parts[-4:]) for parts in lines))  # Ray names the worker first, and repeats lines
    assert [(epoch, name) for epoch, name, *_ in printed] == [(e, n) for e in "01" for n in ("0.weight", "2.weight")]
    for (_, name, *values), later in zip(printed[:2], printed[2:], strict=True):
        np.testing.assert_allclose([float(value) for value in values], explicit()[name], rtol=1e-6)
        assert later[2:] != values, "the weights have moved"

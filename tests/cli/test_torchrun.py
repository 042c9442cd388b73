"""The command line under torchrun: one result, printed once; a process that fails does not leave the other waiting."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn
from torch.utils.data import DataLoader

import layerhess as lh
from layerhess.objective.objective import Objective

ROOT = Path(__file__).resolve().parents[2]
FAILING = """
import torch, torch.distributed as dist
def make():
    if dist.get_rank() == 1:
        raise OSError("no such shard")
    import runpy
    return runpy.run_path({example!r})["make"]()
"""


def under_torchrun(*arguments: Any, folder: Path, asked: str = "analyze") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, "-m", "layerhess", asked, *map(str, arguments)], cwd=folder, env=environment, timeout=300,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def example() -> Any:
    import runpy

    return runpy.run_path(str(ROOT / "examples" / "torchrun_factory.py"))["make"]


def test_two_processes_print_one_result_that_is_that_of_one(tmp_path: Path, example: Any) -> None:
    factory = ROOT / "examples" / "torchrun_factory.py:make"
    ran = under_torchrun(factory, "--out", "result", "--json", "--examples", 50, "--no-sampling", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    printed = json.loads(ran.stdout)
    assert printed["examples"] == 50 and printed == json.loads((tmp_path / "result" / "analysis.json").read_text())
    assert ran.stderr.count("the result will be in") == 1
    whole: Objective = example()
    assert isinstance(whole.data, DataLoader) and isinstance(whole.model, nn.Module)
    drawn = lh.Objective(whole.model, whole.data.dataset.tensors, nn.CrossEntropyLoss()).subset(50)
    alone = lh.analyze(drawn)
    for name, spectrum in alone.blocks.items():
        np.testing.assert_allclose(printed["blocks"][name]["eigenvalues"], spectrum.eigenvalues, rtol=1e-9)


def test_two_processes_make_one_plan_that_is_that_of_one(tmp_path: Path, example: Any) -> None:
    factory = ROOT / "examples" / "torchrun_factory.py:make"
    ran = under_torchrun(factory, "--out", "plan", "--json", "--no-curvature", folder=tmp_path, asked="plan")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == (tmp_path / "plan" / "plan.json").read_text()
    assert ran.stderr.count("the result will be in") == 1
    found, whole = lh.load_plan(tmp_path / "plan"), example()
    alone = lh.plan(lh.Objective(whole.model, whole.data.dataset.tensors, nn.CrossEntropyLoss()), curvature=False)
    assert found.choice == alone.choice
    here, there = ([row.measured for row in one.rows] for one in (found, alone))
    np.testing.assert_allclose(here, there, rtol=1e-9, atol=1e-12)


def test_a_factory_that_fails_in_one_process_ends_both(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING.format(example=str(ROOT / "examples" / "torchrun_factory.py")))
    ran = under_torchrun("failing.py:make", "--out", "result", folder=tmp_path)
    assert ran.returncode != 0 and not (tmp_path / "result").exists()
    # torchrun may end rank 0 before it has said that this was rank 1's.
    assert re.search(r"raised OSError: no such shard\. Where: (rank 1|\S*failing\.py)", ran.stderr)
    assert ran.stdout == ""

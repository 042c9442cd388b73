"""How much memory is free, and how much of it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerhess.curvature import device as memory
from layerhess.curvature.device import free_bytes, used_bytes
from wide_network import CPU, GIB

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def test_free_memory_is_a_plausible_number() -> None:
    assert 1 << 20 < free_bytes(CPU) < 1 << 50
    assert 1 << 20 < used_bytes(CPU) < 1 << 50


@pytest.mark.parametrize(
    ("limit", "used", "cached", "expected"),
    [
        (str(GIB), GIB // 2, 0, GIB // 2),
        (str(GIB), GIB // 2, GIB // 4, 3 * GIB // 4),
        (str(GIB), 2 * GIB, 0, 0),
        ("max", GIB, 0, None),
        (str((1 << 63) - 4096), GIB, 0, None),
    ],
    ids=["half", "file cache gives way", "beyond", "no limit", "no limit, in the old way"],
)
def test_the_limit_of_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, used: int, cached: int, expected: int | None
) -> None:
    without = free_bytes(CPU)
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file 0\n")
    monkeypatch.setattr(memory, "_CGROUPS", [(tmp_path, "memory.max", "memory.current", ("inactive_file",))])
    found = free_bytes(CPU)
    assert found == min(expected, found) if expected is not None else found >= without // 2


def test_a_system_without_resource_limits_is_no_obstacle() -> None:
    """Windows has no ``resource`` module."""
    code = """
import sys
sys.modules["resource"] = None
import pathlib
exists = pathlib.Path.exists
pathlib.Path.exists = lambda path: not str(path).startswith("/proc") and exists(path)
import torch
import os
import layerhess as lh
model = torch.nn.Linear(2, 2)
analysis = lh.analyze(lh.Objective(model, (torch.eye(2), torch.eye(2)), torch.nn.MSELoss()))
assert analysis.converged
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)

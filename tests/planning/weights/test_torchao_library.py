"""torchao is loaded quietly, and what it has to say is still heard."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerhess.planning.weights.torchao_library import _silent, torchao

ROOT = Path(__file__).resolve().parents[3]


def test_loading_it_says_nothing() -> None:
    pytest.importorskip("torchao")
    code = "from layerhess.planning.weights.torchao_library import torchao; print(torchao('test').version)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == torchao("test").version
    assert done.stderr == ""


def test_only_the_harmless_messages_are_left_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ao, pytree = logging.getLogger("torchao"), logging.getLogger("torch.utils._pytree")
    monkeypatch.setattr(pytree, "propagate", False)  # older torches have handlers of their own above it
    monkeypatch.setattr(pytree, "handlers", [caplog.handler])
    with _silent():
        ao.warning("Failed to load /somewhere/_C_mxfp8.cpython-310-x86_64-linux-gnu.so: no")
        ao.warning("Failed to load /somewhere/_C.abi3.so: no")
        ao.warning("Skipping import of cpp extensions due to incompatible torch version")
        pytree.warning("%s is an Enum subclass and is now natively supported", object)
        pytree.warning("something else")
    ao.warning("Failed to load /somewhere/_C_mxfp8.so: afterwards")
    heard = [record.getMessage().split(":")[0] for record in caplog.records]
    assert heard == [
        "Failed to load /somewhere/_C.abi3.so",
        "Skipping import of cpp extensions due to incompatible torch version",
        "something else",
        "Failed to load /somewhere/_C_mxfp8.so",
    ]
    assert not ao.filters
    assert not pytree.filters

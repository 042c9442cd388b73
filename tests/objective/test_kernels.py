"""float32 stays float32 while a model is analysed, whatever the caller allowed; and the caller's switches come back."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import layerhess as lh
from layerhess.objective.kernels import AUTOCAST_OFF, TF32_OFF, plain_kernels

B: Any = torch.backends
NEWER = hasattr(B.cuda.matmul, "fp32_precision")  # PyTorch 2.9
needs_newer = pytest.mark.skipif(not NEWER, reason="this PyTorch has the older switches only")


def _switches() -> list[str]:
    every = (
        B,
        B.cudnn,
        B.mkldnn,
        B.cuda.matmul,
        B.cudnn.conv,
        B.cudnn.rnn,
        B.mkldnn.matmul,
        B.mkldnn.conv,
        B.mkldnn.rnn,
    )
    return [switch.fp32_precision for switch in every]


@pytest.fixture
def _as_it_was() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


def _objective() -> lh.Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 5))
    return lh.Objective(model, (torch.randn(100, 64), torch.randint(0, 5, (100,))), nn.CrossEntropyLoss())


@pytest.mark.usefixtures("_as_it_was")
def test_a_caller_who_allows_bfloat16_in_products_gets_those_of_float32_and_is_told() -> None:
    plain = lh.analyze(_objective(), full=False)
    torch.set_float32_matmul_precision("medium")
    found = lh.analyze(_objective(), full=False)
    assert torch.get_float32_matmul_precision() == "medium"
    assert TF32_OFF in found.notes and TF32_OFF not in plain.notes
    for name, block in plain.blocks.items():
        np.testing.assert_allclose(found.blocks[name].eigenvalues, block.eigenvalues, rtol=1e-5)
        np.testing.assert_allclose(found.blocks[name].error_bounds, block.error_bounds, rtol=0.1)


def _older() -> list[Any]:
    """What the older switches say; "refused" where torch finds them at odds with the newer ones."""
    found: list[Any] = []
    for read in (lambda: B.cuda.matmul.allow_tf32, lambda: B.cudnn.allow_tf32, torch.get_float32_matmul_precision):
        try:
            found.append(read())
        except RuntimeError:
            found.append("refused")
    return found


SETTINGS = {
    "nothing": lambda: None,
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "older switch": lambda: setattr(B.cuda.matmul, "allow_tf32", True),
    "older switch off": lambda: setattr(B.cudnn, "allow_tf32", False),
    "everywhere": lambda: setattr(B, "fp32_precision", "tf32"),
    "nowhere": lambda: setattr(B, "fp32_precision", "ieee"),
    "one level": lambda: setattr(B.cudnn, "fp32_precision", "ieee"),
    "one switch": lambda: setattr(B.cuda.matmul, "fp32_precision", "tf32"),
}


def _look(device: str, setting: str) -> dict[str, Any]:
    SETTINGS[setting]()
    before = _switches(), _older(), B.cudnn.enabled
    with plain_kernels([torch.device(device)], nn.Sequential(nn.Conv2d(1, 1, 1), nn.LSTM(2, 2))) as said:
        inside, enabled = _switches()[3:6] if device == "cuda" else _switches()[6:], B.cudnn.enabled
        if setting == "nothing":
            with torch.backends.cudnn.flags(enabled=False):  # as models do that differentiate an RNN twice
                pass
    same = (_switches(), _older(), B.cudnn.enabled) == before
    return {"inside": inside, "enabled": enabled, "same": same, "said": said}


@needs_newer
@pytest.mark.skipif(not hasattr(os, "fork"), reason="each setting needs a process of its own")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_switches_are_set_and_come_back(device: str, setting: str) -> None:
    """They can be set on a machine without a GPU; torch's defaults cannot be put back once one was set."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply(_look, (device, setting))
    assert found["same"] and set(found["inside"]) <= {"ieee", "none"} and found["enabled"] is (device == "cpu")
    allowed = {
        "cuda": {"nothing", "medium", "older switch", "everywhere", "one switch"},
        "cpu": {"medium", "everywhere"},
    }
    # cuDNN has TF32 unless told otherwise.
    told = {"nowhere", "one level", "older switch off"}
    assert set(allowed["cuda"]) | told == set(SETTINGS)
    assert found["said"] == ([TF32_OFF] if setting in allowed[device] else [])


def test_the_callers_autocast_is_off_on_every_device_of_the_model() -> None:
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    try:
        with plain_kernels([torch.device("cpu"), torch.device("cuda", 1)], nn.Linear(2, 2)) as said:
            assert said == [AUTOCAST_OFF] and not torch.is_autocast_enabled("cuda")
        assert torch.is_autocast_enabled("cuda")
    finally:
        torch.set_autocast_enabled("cuda", before)


def test_nothing_is_said_where_the_model_has_no_such_products() -> None:
    with plain_kernels([torch.device("cuda")], nn.Linear(2, 2)) as of_linear:
        assert of_linear == []  # without being asked torch uses TF32 in convolutions alone
    with plain_kernels([torch.device("cuda")], nn.Conv2d(1, 1, 1).double()) as of_float64:
        assert of_float64 == []

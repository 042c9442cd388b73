"""float32 stays float32 while a model is analysed, whatever the caller allowed; and the caller's switches come back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import layerhess as lh
from layerhess.kernels import TF32_OFF, _without_tf32, plain_kernels

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


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    if NEWER:
        B.fp32_precision = B.cudnn.fp32_precision = B.mkldnn.fp32_precision = "none"
        B.mkldnn.matmul.fp32_precision = B.mkldnn.conv.fp32_precision = B.mkldnn.rnn.fp32_precision = "none"
        B.cuda.matmul.fp32_precision = "none"
        B.cudnn.conv.fp32_precision = B.cudnn.rnn.fp32_precision = "tf32"
    torch.set_float32_matmul_precision(before)


def _objective() -> lh.Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 5))
    return lh.Objective(model, (torch.randn(100, 64), torch.randint(0, 5, (100,))), nn.CrossEntropyLoss())


def test_a_caller_who_allows_bfloat16_in_products_gets_those_of_float32_and_is_told() -> None:
    plain = lh.analyze(_objective(), full=False)
    torch.set_float32_matmul_precision("medium")
    found = lh.analyze(_objective(), full=False)
    assert torch.get_float32_matmul_precision() == "medium"
    assert TF32_OFF in found.notes and TF32_OFF not in plain.notes
    for name, block in plain.blocks.items():
        np.testing.assert_allclose(found.blocks[name].eigenvalues, block.eigenvalues, rtol=1e-5)
        np.testing.assert_allclose(found.blocks[name].error_bounds, block.error_bounds, rtol=0.1)


@needs_newer
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("setting", ["nothing", "medium", "everywhere", "one level", "older switch"])
def test_switches_are_set_and_come_back(device: str, setting: str) -> None:
    """They can be set on a machine without a GPU."""
    if setting == "medium":
        torch.set_float32_matmul_precision("medium")
    elif setting == "everywhere":
        B.fp32_precision = "tf32"
    elif setting == "one level":
        B.cudnn.fp32_precision = "tf32"
    elif setting == "older switch":
        B.cuda.matmul.allow_tf32 = True
    before = _switches()
    with plain_kernels(torch.device(device), nn.LSTM(2, 2)) as said:
        inside = _switches()
    assert _switches() == before and B.cudnn.enabled
    assert inside[3:6] == ["ieee"] * 3 if device == "cuda" else inside[6:] == ["ieee"] * 3
    coarse = device == "cuda" or setting in ("medium", "everywhere")
    assert said == ([TF32_OFF] if coarse else [])


def test_switches_of_older_versions_are_set_and_come_back() -> None:
    torch.set_float32_matmul_precision("medium")
    before = B.cuda.matmul.allow_tf32, B.cudnn.allow_tf32
    for device, coarse in (("cuda", True), ("cpu", True)):
        with _without_tf32(torch.device(device)) as found:
            assert found is coarse
            assert (B.cuda.matmul.allow_tf32, B.cudnn.allow_tf32) == (False, False)
            assert torch.get_float32_matmul_precision() == "highest"
        assert (B.cuda.matmul.allow_tf32, B.cudnn.allow_tf32) == before
        assert torch.get_float32_matmul_precision() == "medium"

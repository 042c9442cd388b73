"""TF32 switches of a PyTorch that has the older ones alone: what is set, put back and said."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

kernels: Any = importlib.import_module("layerhess.objective.kernels")


class Older:
    """Of torch just what is read and set: no ``fp32_precision`` anywhere."""

    float32 = torch.float32

    def __init__(self, precision: str, matmul: bool, cudnn: bool) -> None:
        self.precision = precision
        self.backends = SimpleNamespace(
            cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=matmul)),
            cudnn=SimpleNamespace(allow_tf32=cudnn, enabled=True),
        )

    def get_float32_matmul_precision(self) -> str:
        return self.precision

    def set_float32_matmul_precision(self, precision: str) -> None:
        self.precision = precision

    @property
    def state(self) -> tuple[Any, ...]:
        cudnn = self.backends.cudnn
        return self.precision, self.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.enabled


MODELS = {"linear": nn.Linear(2, 2), "convolution": nn.Conv2d(1, 1, 1), "recurrent": nn.LSTM(2, 2),
          "float64": nn.Conv2d(1, 1, 1).double()}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("cudnn", [False, True])
@pytest.mark.parametrize("matmul", [False, True])
def test_on_a_gpu_both_switches_are_off_meanwhile(
    matmul: bool, cudnn: bool, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = Older("highest", matmul, cudnn)
    monkeypatch.setattr(kernels, "torch", older)
    before = older.state
    with kernels._full_precision(torch.device("cuda"), MODELS[model]) as coarse:
        assert older.state == ("highest", False, False, model != "recurrent")
    assert older.state == before
    convolves = model in ("convolution", "recurrent")  # a recurrent layer is cuDNN's as well
    assert coarse is (model != "float64" and (matmul or (cudnn and convolves)))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_on_a_cpu_only_medium_is_coarse(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    older = Older(precision, True, True)
    monkeypatch.setattr(kernels, "torch", older)
    before = older.state
    with kernels._full_precision(torch.device("cpu"), MODELS["linear"]) as coarse:
        assert older.precision == "highest"
    assert older.state == before and coarse is (precision == "medium")

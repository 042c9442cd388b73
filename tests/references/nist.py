"""NIST's Statistical Reference Datasets for nonlinear regression: data, models and Hessian spectra in 60 digits.

The truths lie beside the checkout, in ``../shared/truths``, and are read there, never copied. Without them the tests
that need them are skipped and say so; under ``CI=true`` they fail instead.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parents[2] / ".." / "shared" / "truths"
POINTS = ("certified_point", "polished_optimum")

# Their smaller eigenvalues are below what float64 can hold beside the largest one (README of the truths).
TOP_ONLY = frozenset({"Lanczos1", "Bennett5", "Hahn1", "Misra1c", "Roszman1", "MGH10"})

Vector = NDArray[np.float64]
Parameters = Sequence[Tensor]


def _bell(b: Parameters, x: Tensor, height: int) -> Tensor:
    """A Gaussian peak whose height, centre and width are parameters ``height``, + 1 and + 2."""
    return b[height] * torch.exp(-((x - b[height + 1]) ** 2) / b[height + 2] ** 2)


def _misra1a(b: Parameters, x: Tensor) -> Tensor:
    return b[0] * (1 - torch.exp(-b[1] * x))


def _chwirut(b: Parameters, x: Tensor) -> Tensor:
    return torch.exp(-b[0] * x) / (b[1] + b[2] * x)


def _lanczos(b: Parameters, x: Tensor) -> Tensor:
    return sum((b[i] * torch.exp(-b[i + 1] * x) for i in (0, 2, 4)), torch.zeros_like(x))


def _gauss(b: Parameters, x: Tensor) -> Tensor:
    return b[0] * torch.exp(-b[1] * x) + _bell(b, x, 2) + _bell(b, x, 5)


def _cubic_ratio(b: Parameters, x: Tensor) -> Tensor:
    return (b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3) / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3)


def _seasons(b: Parameters, x: Tensor) -> Tensor:
    year, second, third = (2 * math.pi * x / period for period in (12, b[3], b[6]))
    return (
        b[0] + b[1] * torch.cos(year) + b[2] * torch.sin(year)
        + b[4] * torch.cos(second) + b[5] * torch.sin(second) + b[7] * torch.cos(third) + b[8] * torch.sin(third)
    )  # fmt: skip


MODELS: dict[str, Callable[[Parameters, Tensor], Tensor]] = {
    "Misra1a": _misra1a,
    "Misra1b": lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** -2),
    "Misra1c": lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5),
    "Misra1d": lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
    "Chwirut1": _chwirut,
    "Chwirut2": _chwirut,
    "DanWood": lambda b, x: b[0] * x ** b[1],
    "Lanczos1": _lanczos,
    "Lanczos2": _lanczos,
    "Lanczos3": _lanczos,
    "Gauss1": _gauss,
    "Gauss2": _gauss,
    "Gauss3": _gauss,
    "Kirby2": lambda b, x: (b[0] + b[1] * x + b[2] * x**2) / (1 + b[3] * x + b[4] * x**2),
    "Hahn1": _cubic_ratio,
    "MGH17": lambda b, x: b[0] + b[1] * torch.exp(-x * b[3]) + b[2] * torch.exp(-x * b[4]),
    "Roszman1": lambda b, x: b[0] - b[1] * x - torch.atan(b[2] / (x - b[3])) / math.pi,
    "ENSO": _seasons,
    "MGH09": lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    "Thurber": _cubic_ratio,
    "BoxBOD": _misra1a,
    "Rat42": lambda b, x: b[0] / (1 + torch.exp(b[1] - b[2] * x)),
    "Rat43": lambda b, x: b[0] / (1 + torch.exp(b[1] - b[2] * x)) ** (1 / b[3]),
    "MGH10": lambda b, x: b[0] * torch.exp(b[1] / (x + b[2])),
    "Eckerle4": lambda b, x: b[0] / b[1] * torch.exp(-(((x - b[2]) / b[1]) ** 2) / 2),
    "Bennett5": lambda b, x: b[0] * (b[1] + x) ** (-1 / b[2]),
}


class Curve(nn.Module):
    """A NIST model: scalar parameters ``b1`` ... in the order of the data set, a prediction for each x."""

    def __init__(self, dataset: str, values: Sequence[float]) -> None:
        super().__init__()
        self.dataset, self.count = dataset, len(values)
        for i, value in enumerate(values, start=1):
            self.register_parameter(f"b{i}", nn.Parameter(torch.tensor(value, dtype=torch.float64)))

    def forward(self, x: Tensor) -> Tensor:
        return MODELS[self.dataset]([getattr(self, f"b{i + 1}") for i in range(self.count)], x)


@dataclass(frozen=True)
class Truth:
    """One data set at one point: the curve, its data, and the Hessian of the mean squared error, largest first."""

    curve: Curve
    x: Tensor
    y: Tensor
    eigenvalues: Vector
    trace: float
    diagonal: Vector
    blocks: dict[str, Vector]
    tolerance_top: float
    tolerance: float
    certified_deviations: Vector
    ggn_deviations: Vector

    def groups(self) -> dict[str, list[str]]:
        """The blocks as ``blocks=`` takes them: a name such as "b1+b2" lists its parameters."""
        return {name: name.split("+") for name in self.blocks}


@lru_cache(maxsize=1)
def _files() -> tuple[dict[str, Any], dict[str, Any]]:
    names = ("nist_strd.json", "nist_float64_attainable.json")
    missing = [name for name in names if not (FOLDER / name).is_file()]
    if missing:
        reason = f"the NIST truths are not beside this checkout: {', '.join(missing)} belongs into ../shared/truths"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    truths, attainable = (json.loads((FOLDER / name).read_text()) for name in names)
    return truths, attainable


def load(dataset: str, point: str) -> Truth:
    """The truth of one data set. Skips the running test where the folder is absent, fails it under ``CI=true``."""
    truths, attainable = _files()
    entry, reached = truths[dataset], attainable[dataset]
    at = entry[point]
    hessian = at["hessian"]
    return Truth(
        curve=Curve(dataset, [float(value) for value in at["params"]]),
        x=torch.tensor(entry["x"], dtype=torch.float64),
        y=torch.tensor(entry["y"], dtype=torch.float64),
        eigenvalues=np.array(hessian["eigenvalues"], dtype=float),
        trace=float(hessian["trace"]),
        diagonal=np.array(hessian["diagonal"], dtype=float),
        blocks={
            name: np.array(block["hessian_eigenvalues"], dtype=float) for name, block in at.get("blocks", {}).items()
        },
        tolerance_top=max(100 * reached["hess_top"], 1e-12),
        tolerance=max(100 * reached["hess_all"], 1e-12),
        certified_deviations=np.array(entry["certified"]["sd"], dtype=float),
        ggn_deviations=np.array(at["standard_errors_from_ggn"], dtype=float),
    )

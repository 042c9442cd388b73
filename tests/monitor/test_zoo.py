"""Bounds at a first and at a warm point, over the model zoo, against dense Hessians made without our products."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import layerhess as lh
from references import dense
from zoo import CASES, Case, batches_of, twins

SMALL = [case for case in CASES if "large" not in case.tags]


def widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: widened(item) for key, item in value.items()}
    return type(value)(map(widened, value)) if isinstance(value, (list, tuple)) else value


# A sixth of them runs always, in either dtype in turn; the language models, which take longest, with the slow ones.
TABLE = [
    pytest.param(case, dtype, id=f"{case}-{str(dtype).removeprefix('torch.')}", marks=() if now else pytest.mark.slow)
    for place, case in enumerate(SMALL)
    for number, dtype in enumerate((torch.float64, torch.float32))
    for now in [place % 6 == 3 * number and case not in [*twins(0), *twins(1)]]
]


@pytest.mark.parametrize(("case", "dtype"), TABLE)
def test_bounds_hold_over_the_zoo(case: Case, dtype: torch.dtype) -> None:
    built = case.build(dtype, 0)
    monitor = lh.Monitor(built.objective(), every=1, blocks="parameter", overhead=None)
    for _ in range(2):
        with torch.no_grad():  # what a step of training does
            for number, parameter in enumerate(dense.trainable(built.model).values()):
                parameter.add_(0.01 * torch.sin(torch.arange(parameter.numel()) + number).view_as(parameter))
        point = monitor.step()
        assert point is not None, monitor.failure
        wide = copy.deepcopy(built.model).double()
        if built.kwargs.get("mode") == "eval":
            wide.eval()
        truth = dense.reference_for(wide, [widened(batch) for batch in batches_of(built.data)], case.totals)
        slack = truth.uncertainty + case.inherent * truth.norm
        for name, reading in point.readings.items():
            values = np.linalg.eigvalsh(truth.matrix if name == "(full)" else truth.block([name]))
            assert np.abs(values - reading.lambda_max).min() <= reading.bound + slack, (name, reading)
            assert reading.lambda_max <= values[-1] + reading.bound + slack
            assert values[-1] <= reading.missed_factor * reading.lambda_max + reading.bound + slack or not (
                reading.lambda_max > 0.0
            )

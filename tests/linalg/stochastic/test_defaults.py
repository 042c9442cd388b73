"""What is meant by a wish without numbers: a change of these changes every result that people compare."""

from __future__ import annotations

import dataclasses

import pytest

from layerhess.linalg.stochastic.coupling import Coupling
from layerhess.linalg.stochastic.density import Density
from layerhess.linalg.stochastic.diagonal import Diagonal
from layerhess.linalg.stochastic.trace import Trace


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (Trace(), {"rel": 0.02, "absolute": None, "probes": None, "method": "auto", "max_probes": 1000}),
        (Diagonal(), {"rel": 0.05, "probes": None, "method": "auto", "max_probes": 1000, "required": True}),
        (Density(), {"probes": 10, "steps": 30, "points": 512, "bandwidth": None, "axis": "linear", "floor": None}),
        (Coupling(), {"probes": 8}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_defaults(made: Trace | Diagonal | Density | Coupling, expected: dict[str, object]) -> None:
    assert dataclasses.asdict(made) == expected

"""Random small networks against dense float64 truths: no wrong number, no false alarm, no bare exception.

``LAYERHESS_RANDOM_NETWORKS=300 pytest -m slow tests/analysis/test_random_networks.py -s`` judges the first 300 and
prints the counts; ``python tests/random_judgement.py SEED`` reproduces one.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import numpy as np
import pytest

import layerhess as lh
from random_judgement import Judgement, judge
from random_networks import draw

NETWORKS = int(os.environ.get("LAYERHESS_RANDOM_NETWORKS", "3000"))
FEW = (3, 5, 6, 15, 19, 20, 21, 22, 24, 25, 28, 30, 31, 33, 37, 38, 48, 49, 53, 58)  # small and quick, wrong ones too


def told(faults: list[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(fault, default=str) for fault in faults)


def test_a_few_random_networks() -> None:
    faults, counts = judge(FEW)
    assert not faults, told(faults)
    assert counts["judged"] >= 0.6 * len(FEW)


@pytest.mark.slow
def test_random_networks() -> None:
    faults, counts = judge(range(NETWORKS))
    print(json.dumps(dict(sorted(counts.items())), indent=1))
    missed = [fault for fault in faults if fault["kind"] == "missed"]
    others = [fault for fault in faults if fault["kind"] not in ("missed", "truth unsure")]
    assert not others, told(others)
    assert len(missed) <= 0.01 * counts["eigenvalues"], told(missed)
    assert counts["judged"] >= 0.6 * NETWORKS


@pytest.mark.parametrize("change", ["eigenvalues", "error_bounds", "trace", "nothing"])
def test_the_judgement_sees_a_wrong_number(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is judged sound is not, once a number in its analysis is another one."""
    honest = lh.analyze

    def altered(*args: Any, **options: Any) -> lh.Analysis:
        analysis = honest(*args, **{**options, "trace": True})
        name, spectrum = next(item for item in analysis.blocks.items() if item[1].eigenvalues[0])
        if change == "eigenvalues":
            spectrum = dataclasses.replace(spectrum, eigenvalues=spectrum.eigenvalues * (1 + 1e-4))
        elif change == "error_bounds":
            spectrum = dataclasses.replace(spectrum, error_bounds=np.full(len(spectrum.error_bounds), 1e9))
        elif change == "trace":
            trace = dataclasses.replace(spectrum.trace, value=1.0001 * spectrum.trace.value)
            spectrum = dataclasses.replace(spectrum, trace=trace)
        return dataclasses.replace(analysis, blocks={**analysis.blocks, name: spectrum})

    monkeypatch.setattr(lh, "analyze", altered)
    kinds = {fault["kind"] for fault in Judgement(draw(0)).faults}
    wanted = {"eigenvalues": {"outside"}, "error_bounds": {"says nothing"}, "trace": {"trace, exact"}, "nothing": set()}
    assert kinds == wanted[change]

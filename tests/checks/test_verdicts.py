"""From what was measured to a verdict: limits, second looks in float64, and which blocks fail for which tensor."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from checked_network import blocks_of, full_of, mlp, objective, smooth
from layerhess.checks.forward_trace import Trace
from layerhess.checks.self_check import SelfCheck
from layerhess.checks.symmetry import NOISE, Symmetry
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL
from layerhess.curvature.matrices import HESSIAN
from layerhess.objective.blocks import make_block

self_check: Any = importlib.import_module("layerhess.checks.self_check")  # the module, not its function


# -- symmetry ----------------------------------------------------------------------------------------------------------


def judged_symmetry(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, first: Symmetry, again: Symmetry | None = None,
    copied_dtype: torch.dtype = torch.float64, copy: bool = True,
) -> tuple[SelfCheck, list[list[str]]]:  # fmt: skip
    """Block "first" has this symmetry, the others a perfect one; what fails is located in the block itself."""
    made = objective(mlp().to(dtype))
    measured: list[list[str]] = []

    def symmetry(which: Any, blocks: Any, seed: int, known: Any = ()) -> dict[str, Symmetry]:
        assert list(known) == ([] if measured else [FULL])  # the copy's own product is not known
        measured.append(list(blocks))
        own = first if len(measured) == 1 else again
        seen = {key: own if key == "first" and own is not None else Symmetry(0.0, 1.0) for key in blocks}
        return {key: replace(one, seconds=0.25 / len(blocks)) for key, one in seen.items()}

    def locate(objective: Any, judge: Any, blocks: Any, wrong: Any, limit: float, seed: int, found: SelfCheck) -> None:
        found.failed.update({key: SimpleNamespace(off=off, limit=limit) for key, off in wrong.items()})  # type: ignore[misc]

    class Pass:
        def __init__(self, *given: Any, **options: Any) -> None:
            self.objective, self.seconds = made, 0.25

        def release(self) -> None: ...

    monkeypatch.setattr(self_check, "symmetry", symmetry)
    monkeypatch.setattr(self_check, "_locate", locate)
    monkeypatch.setattr(self_check, "DataPass", Pass)
    monkeypatch.setattr(self_check, "trace", lambda which, batch: Trace(coarsest=copied_dtype))
    found = smooth(dtype)
    found.licence.seconds = 0.5
    found.licence.norms = {"known": 5.0}
    blocks = {**blocks_of(made), "known": make_block("known", {"0.bias": made.parameters["0.bias"]})}
    other = SimpleNamespace(data=[0]) if copy else None
    self_check._symmetry(
        made, Pass(), lambda: other, blocks, full_of(made), 1.0, {FULL: torch.ones(())}, 0, found, Counters(), HESSIAN,
        0.0, [0],
    )  # fmt: skip
    return found, measured


@pytest.mark.parametrize(
    ("dtype", "off", "again", "limit"),
    [
        (torch.float64, 0.9e-7, None, None),
        (torch.float64, 1.1e-7, None, 1e-7),
        (torch.float32, 0.9e-5, None, None),
        (torch.float32, 1.1e-5, 0.9e-7, None),
        (torch.float32, 1.1e-5, 1.1e-7, 1e-7),
        (torch.float32, math.nan, math.nan, 1e-7),
    ],
)
def test_asymmetry_is_judged_by_its_precision_and_in_doubt_in_float64(
    dtype: torch.dtype, off: float, again: float | None, limit: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = None if again is None else Symmetry(again, 1.0)
    found, measured = judged_symmetry(monkeypatch, dtype, Symmetry(off, 1.0), second)
    assert measured[0] == ["first", "last", FULL]  # what was compared otherwise is not measured again
    assert measured[1:] == ([] if again is None else [["first"]])
    assert set(found.failed) == (set() if limit is None else {"first"})
    if limit is not None:
        assert found.failed["first"].limit == limit  # type: ignore[attr-defined]
    passed = [check.detail for check in found.checks if isinstance(getattr(check, "detail", None), str)]
    assert len(passed) == 1 and f"in {3 if limit is None else 2} operators" in passed[0]
    assert found.block_seconds == 0.75


@pytest.mark.parametrize(("off", "fails"), [(1.9e-3, False), (2.1e-3, True)])
def test_symmetry_without_a_copy_or_with_a_coarse_one_has_the_wider_limit(
    off: float, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = judged_symmetry(monkeypatch, torch.float32, Symmetry(off, 1.0), copy=False)
    assert bool(found.failed) is fails
    coarse, _ = judged_symmetry(
        monkeypatch, torch.float32, Symmetry(1e-4, 1.0), Symmetry(off, 1.0), copied_dtype=torch.float32
    )
    assert bool(coarse.failed) is fails


@pytest.mark.parametrize(
    ("norm", "zero", "fails"),
    [(0.9, True, False), (1.1, False, False), (0.9 * NOISE, False, False), (1.1 * NOISE, False, True)],
)
def test_blocks_below_the_zero_level_are_suspects_and_those_of_noise_are_not_judged(
    norm: float, zero: bool, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = 100 * torch.finfo(torch.float64).eps
    found, _ = judged_symmetry(monkeypatch, torch.float64, Symmetry(0.5, norm * level))
    assert found.zero_suspects == ({"first"} if zero else set())
    assert set(found.failed) == ({"first"} if fails else set())


def test_a_quiet_block_that_wakes_up_is_judged_with_the_noise_of_a_weak_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made = objective()
    blocks = blocks_of(made)
    eps = torch.finfo(torch.float64).eps
    for off, norm, fails in (
        (0.9e-7, 1.0, False), (1.1e-7, 1.0, True), (29 * eps * 1e9, 2e-9, False), (31 * eps * 1e9, 2e-9, True),
        (math.nan, 1.0, True),
    ):  # fmt: skip
        figures = {"first": Symmetry(off, norm), "last": Symmetry(0.0, 1.0)}
        monkeypatch.setattr(self_check, "symmetry", lambda data_pass, asked, seed, figures=figures: figures)
        found = smooth(torch.float64)
        two = {key: blocks[key] for key in ("first", "last")}
        failed = self_check.check_unsampled(made, SimpleNamespace(objective=made), two, 2.0, 0, found)
        assert set(failed) == set(found.failed) == ({"first"} if fails else set()), off
        assert found.checks == list(failed.values())

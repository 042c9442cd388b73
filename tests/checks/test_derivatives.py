"""From differences to a verdict: limits, second looks in float64, and which blocks fail for which tensor."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from checked_network import NAMES, blocks_of, full_of, mlp, objective, smooth
from layerhess.checks import SelfCheck, derivatives
from layerhess.checks.derivatives import Derivatives
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL
from layerhess.curvature.matrices import GAUSS_NEWTON


def judging(made: Any, surveyed: Any, copy: Any, found: SelfCheck) -> Derivatives:
    return Derivatives(made, surveyed, lambda: copy, blocks_of(made), full_of(made), 0, found, Counters())


# -- the Jacobian ------------------------------------------------------------------------------------------------------


def judged_jacobian(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, off: float, again: float | None = None,
    moves: dict[str, float | None] | None = None, copy: bool = True, kinks: bool = False,
    copied_dtype: torch.dtype = torch.float64,
) -> tuple[SelfCheck, list[str]]:  # fmt: skip
    """Tensor 0.bias is off by so much, and by ``again`` in float64; ``moves`` are what differences say."""
    made = objective(mlp().to(dtype))
    looked = []

    def disagreements(which: Any, *rest: Any) -> dict[str, float]:
        looked.append("own" if which is made else "copy")
        figure = off if which is made else again
        assert figure is not None
        return {name: figure if name == "0.bias" else 1e-12 for name in NAMES}

    class Moves:
        error = 3e-5

        def __init__(self, *given: Any) -> None: ...

        def disagreement(self, names: list[str]) -> float | None:
            return (moves or {}).get("all" if len(names) > 1 else names[0])

    monkeypatch.setattr(derivatives, "disagreements", disagreements)
    monkeypatch.setattr(derivatives, "Moves", Moves)
    monkeypatch.setattr(derivatives, "_coarsest", lambda which: copied_dtype)
    other = SimpleNamespace(data=[0]) if copy else None
    found = smooth(dtype, kinks)
    surveyed = SimpleNamespace(sample=0, places=[5])
    judging(made, surveyed, other, found).check_jacobian(GAUSS_NEWTON)
    return found, looked


@pytest.mark.filterwarnings("ignore::layerhess.errors.LayerhessWarning")
@pytest.mark.parametrize(
    ("dtype", "off", "again", "fails", "looked"),
    [
        (torch.float32, 0.9e-5, None, False, ["own"]),
        (torch.float32, 1.1e-5, 1e-9, False, ["own", "copy"]),
        (torch.float32, 1e-2, 1e-9, False, ["own", "copy"]),
        (torch.float32, 1.1e-5, 1.1e-7, True, ["own", "copy"]),
        (torch.float64, 0.9e-7, None, False, ["own"]),
        (torch.float64, 1.1e-7, None, True, ["own"]),
        (torch.bfloat16, 1e-6, 1e-9, False, ["own", "copy"]),
        (torch.float32, math.inf, math.inf, True, ["own", "copy"]),
    ],
)
def test_a_doubt_is_looked_at_in_float64(
    dtype: torch.dtype, off: float, again: float | None, fails: bool, looked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, seen = judged_jacobian(monkeypatch, dtype, off, again, {"all": 1e-6})
    assert seen == looked and set(found.failed) == ({"first", FULL} if fails else set())
    assert set(found.culprits) == ({"0.bias"} if fails else set())
    transposed = [check for check in found.checks if check.name == "transpose"]
    assert len(transposed) == (not fails)
    if fails:
        figure = again if again is not None else off
        words = f"off by {figure:.1e} from the transposed" if math.isfinite(figure) else "NaN or infinite in batch 5"
        assert words in found.failed["first"].detail and words in found.culprits["0.bias"]
    else:
        assert f"agree to {again if again is not None else off:.1e} in 4 tensors" in transposed[0].detail


@pytest.mark.parametrize(("off", "fails"), [(1.9e-3, False), (2.1e-3, True)])
def test_without_a_copy_or_with_a_coarse_one_the_wider_limit_counts(
    off: float, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, looked = judged_jacobian(monkeypatch, torch.float32, off, copy=False)
    assert looked == ["own"] and bool(found.failed) is fails
    assert any("no float64 copy" in check.detail for check in found.checks)
    coarse, _ = judged_jacobian(monkeypatch, torch.float32, 1e-4, off, copied_dtype=torch.float32)
    assert bool(coarse.failed) is fails


@pytest.mark.parametrize(
    ("moves", "failed", "words"),
    [
        ({"all": 1e-4}, set(), "differences of the output to 1.0e-04"),
        ({"all": 1e-6}, set(), "differences of the output to 3.0e-05"),
        ({"all": None}, set(), ""),
        ({"all": 2e-4, "2.bias": 5e-4, "0.bias": 1e-5}, {"last", FULL}, "off by 5.0e-04 from finite differences"),
        ({"all": 2e-4}, {"first", "last", FULL}, "part of one that is off by 2.0e-04 from finite differences"),
    ],
)
def test_differences_of_the_output_condemn_single_tensors_or_all(
    moves: dict[str, float | None], failed: set[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = judged_jacobian(monkeypatch, torch.float64, 0.0, moves=moves)
    assert set(found.failed) == failed
    told = [check.detail for check in (*found.checks, *found.failed.values()) if "finite" in check.name]
    assert bool(told) is bool(words) and all(words in detail for detail in told)


def test_kinks_have_no_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = judged_jacobian(monkeypatch, torch.float64, 0.0, moves={"all": 1.0}, kinks=True)
    assert not found.failed and any("has kinks" in check.detail and check.passed for check in found.checks)


# -- differences of gradients ------------------------------------------------------------------------------------------


def judged_differences(
    monkeypatch: pytest.MonkeyPatch, judged: dict[str, float], zero: set[str] | None = None, copy: bool = True
) -> SelfCheck:
    made = objective()
    monkeypatch.setattr(derivatives, "finite_differences", lambda *given: (judged, 2e-6))
    found = smooth(torch.float64)
    found.zero_suspects = zero or set()
    other = SimpleNamespace(data=[0]) if copy else None
    judging(made, None, other, found).check_products()
    return found


@pytest.mark.parametrize(("off", "fails"), [(0.9e-4, False), (1.1e-4, True)])
def test_a_tensor_off_by_more_than_a_ten_thousandth_fails_its_blocks(
    off: float, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = judged_differences(monkeypatch, {"0.weight": 1e-9, "0.bias": off, "2.weight": 5e-5})
    assert set(found.failed) == ({"first", FULL} if fails else set())
    agreement = [check.detail for check in found.checks if check.passed]
    worst = 5e-5 if fails else 9e-5
    assert agreement == [
        f"products agree with differences of gradients to {worst:.1e} in {1 if fails else 3} operators (float64 copy)"
    ]
    if fails:
        assert f"off by {off:.1e} from finite differences" in found.failed["first"].detail
        assert "0 (Linear)" in found.failed["first"].module
        assert [check for check in found.checks if not check.passed] == list(found.failed.values())


def test_the_largest_figure_of_a_block_is_told_and_zero_blocks_are_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = {"0.weight": 2e-3, "0.bias": 7e-3, "2.weight": 1e-9}
    found = judged_differences(monkeypatch, judged, zero={"first", FULL})  # the full model is spared never
    assert set(found.failed) == {FULL} and "off by 7.0e-03" in found.failed[FULL].detail
    assert any("to 2.0e-06 in 2 operators" in check.detail for check in found.checks)
    nothing = judged_differences(monkeypatch, {})
    assert not nothing.checks and not nothing.failed
    bare = judged_differences(monkeypatch, judged, copy=False)
    assert not bare.failed and "no float64 copy" in bare.checks[0].detail

"""How many vectors of the length of all parameters the self-check holds at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import layerhess as lh
from layerhess.analysis import run
from layerhess.checks import self_check
from layerhess.curvature.gradient_sum import add_gradient
from layerhess.curvature.live_bytes import LiveBytes
from layerhess.objective import blocks
from layerhess.objective.blocks import in_groups, make_block

WIDTH, LAYERS = 96, 12


class Enough(Exception):
    """The self-check is over."""


def vectors_held(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, kink: bool, **options: Any) -> float:
    """The most float64 vectors at a time, of a network whose parameters are far more than all else."""
    monkeypatch.setattr(blocks, "AT_ONCE", 0)
    seen = []

    def watched(*given: Any, **named: Any) -> Any:
        with LiveBytes(model.parameters()) as live:
            self_check(*given, **named)
        seen.append(live.peak)
        raise Enough

    monkeypatch.setattr(run, "self_check", watched)
    torch.manual_seed(0)
    between = nn.ReLU if kink else nn.Tanh
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), between())]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 2)).to(dtype)
    with pytest.raises(Enough):
        data = (torch.randn(2, WIDTH, dtype=dtype), torch.tensor([0, 1]))
        lh.analyze(lh.Objective(model, data, nn.CrossEntropyLoss()), **options)
    return seen[0] / 8 / sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kink", [False, True])
@pytest.mark.parametrize(("dtype", "scheme"), [(torch.float32, "parameter"), (torch.float64, "depth:1")])
def test_at_most_four_vectors_at_a_time(
    dtype: torch.dtype, kink: bool, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what one tensor, a twelfth of the model, takes a few times."""
    assert 2.0 < vectors_held(monkeypatch, dtype, kink, blocks=scheme) < 4.4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_run_that_may_be_resumed_holds_no_more(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows its derivative again by two products with the full matrix."""
    assert 2.0 < vectors_held(monkeypatch, dtype, False, blocks="depth:1", out=tmp_path / "run") < 4.4


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 4.4), (torch.float64, 5.4)])
@pytest.mark.parametrize("operator", ["gauss_newton", "empirical_fisher"])
def test_graphs_of_the_jacobian_hold_one_vector_more(
    operator: str, dtype: torch.dtype, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert vectors_held(monkeypatch, dtype, True, operator=operator) < most


def test_groups_keep_the_order_and_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "AT_ONCE", 0)
    made = {name: make_block(name, {name: torch.zeros(n)}) for name, n in zip("abcde", (3, 2, 9, 1, 4), strict=True)}
    assert [list(group) for group in in_groups(made, 5)] == [["a", "b"], ["c"], ["d", "e"]]
    monkeypatch.setattr(blocks, "AT_ONCE", 100)
    assert [list(group) for group in in_groups(made, 5)] == [list("abcde")]
    assert in_groups({}, 5) == []


def test_gradients_are_added_up_in_place_with_weights() -> None:
    """Two parameters whose gradients are one and the same tensor, one that is not used, and a sparse one."""
    a, b, unused = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(3))
    table = nn.Embedding(3, 2, sparse=True)
    with torch.no_grad():
        table.weight.fill_(1.5)

    def loss() -> torch.Tensor:
        return (a + b).square().sum() + table(torch.tensor([1, 1])).sum()

    total: dict[str, torch.Tensor] = {}
    named = {"a": a, "b": b, "unused": unused, "table": table.weight}
    add_gradient(loss(), named, total)
    kept = total["a"]
    add_gradient(loss(), named, total, -0.25)
    assert total["a"] is kept and total["a"].data_ptr() != total["b"].data_ptr()
    assert total["a"].tolist() == total["b"].tolist() == [3.0, -6.0]  # 0.75 * 2 (a + b)
    assert total["table"].tolist() == [[0.0, 0.0], [1.5, 1.5], [0.0, 0.0]]
    assert "unused" not in total and a.grad is None and not a._backward_hooks

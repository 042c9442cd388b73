"""A plan that was stopped goes on: the same plan with fewer passes; nothing of another run is ever used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import layerhess as lh
from killed import killed
from layerhess.errors import InputError
from layerhess.planning.measuring.meter import Measurement, Meter
from layerhess.planning.rows_file import RowsFile
from layerhess.results import plan_file
from layerhess.results.store import journal_path

X = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1))
DATA = [(X[:13], Y[:13]), (X[13:], Y[13:])]
CE = nn.CrossEntropyLoss()
ASKED: dict[str, Any] = {"options": (2, 3, 4), "budget": "3bit", "curvature": False}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


def plan(out: Path | None, data: Any = DATA, model: nn.Module | None = None, loss: Any = CE, **more: Any) -> lh.Plan:
    return lh.plan(lh.Objective(model or network(), data, loss), **{**ASKED, **more}, out=out)


def bits(made: lh.Plan) -> str:
    """Every number of plan.json but what the passes were."""
    nothing = type(made.counts)()
    return plan_file.json_text_of(replace(made, counts=nothing))


def passes(made: lh.Plan) -> float:
    return made.counts.measuring + made.counts.portfolio + made.counts.verification


class Stopping:
    """Rows that are kept, until the process is stopped after some of them."""

    def __init__(self, number: int, act: Callable[[], None]) -> None:
        self.left, self.act, self.real = number, act, RowsFile.keep

    def __enter__(self) -> None:
        stopping = self

        def keep(rows: RowsFile, name: str, measured: Any) -> None:
            stopping.real(rows, name, measured)
            stopping.left -= 1
            if not stopping.left:
                stopping.act()

        RowsFile.keep = keep  # type: ignore[method-assign]

    def __exit__(self, *given: Any) -> None:
        RowsFile.keep = self.real  # type: ignore[method-assign]


def interrupt() -> None:
    raise KeyboardInterrupt


def stopped(out: Path, number: int = 3, **more: Any) -> None:
    with pytest.raises(KeyboardInterrupt), Stopping(number, interrupt):
        plan(out, **more)


@pytest.mark.parametrize("number", [1, 3, 5, 8])
def test_an_interrupted_plan_goes_on_with_fewer_passes(number: int, tmp_path: Path) -> None:
    whole = plan(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt) as caught, Stopping(number, interrupt):
        plan(tmp_path / "plan")
    assert any("resume goes on from there" in note for note in caught.value.__notes__)
    assert journal_path(tmp_path / "plan").exists() and not (tmp_path / "plan").exists()
    again = plan(tmp_path / "plan", resume=True)
    assert bits(again) == bits(whole)
    assert passes(again) < passes(whole) if number > 1 else passes(again) == passes(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan", "whole"]


def test_a_killed_plan_goes_on(tmp_path: Path) -> None:
    killed(lambda: plan(tmp_path / "plan"), lambda kill: Stopping(3, kill).__enter__())
    again = plan(tmp_path / "plan", resume=True)
    whole = plan(None)
    assert bits(again) == bits(whole) and passes(again) < passes(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


def test_without_resume_it_begins_anew_and_with_nothing_there_it_begins(tmp_path: Path) -> None:
    stopped(tmp_path / "plan")
    whole = plan(None)
    assert passes(plan(tmp_path / "plan")) == passes(whole)
    assert passes(plan(tmp_path / "other", resume=True)) == passes(whole)
    with pytest.raises(InputError, match="resume=True needs the folder"):
        plan(None, resume=True)


def zeroed(weight: Tensor) -> Tensor:
    return weight * 0.5


def other_network() -> nn.Sequential:
    model = network()
    model[0].weight.data[0, 0] += 1e-3  # type: ignore[operator,union-attr]
    return model


FIRST, LAST = "0.weight", "4.weight"
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "weights": ({}, {"model": other_network()}),
    "data": ({}, {"data": [(X + 1e-3, Y)]}),
    "order": ({}, {"data": [(X.flip(0), Y.flip(0))]}),
    "loss": ({}, {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}),
    "options": ({}, {"options": (2, 3, 8)}),
    "granularity": ({}, {"options": (2, 3, lh.Quantize(4, "tensor"))}),
    "seed": ({}, {"seed": 1}),
    "allowed": ({"allowed": {FIRST: [2, 3]}}, {"allowed": {FIRST: [3, 4]}}),
    "layers": ({"layers": {"a": FIRST}}, {"layers": {"a": LAST}}),
    "pinned": ({"pinned": {FIRST: 4}}, {"pinned": {FIRST: 3}}),
    "tied": ({}, {"tied": [[FIRST, LAST]]}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused_and_its_file_stays(name: str, tmp_path: Path) -> None:
    first, then = OTHERS[name]
    stopped(tmp_path / "plan", 2, **first)
    before = journal_path(tmp_path / "plan").read_bytes()
    with pytest.raises(InputError, match="the run that is to be resumed is another one") as caught:
        plan(tmp_path / "plan", **{**first, **then}, resume=True)
    assert str(journal_path(tmp_path / "plan")) in str(caught.value) and "begin anew" in caught.value.what_to_do
    assert journal_path(tmp_path / "plan").read_bytes() == before


def test_a_function_of_the_same_name_that_does_something_else_is_another_run(tmp_path: Path) -> None:
    def halved(weight: Tensor) -> Tensor:
        return weight * 0.5

    first = halved

    def halved(weight: Tensor) -> Tensor:  # type: ignore[no-redef]
        return weight * 0.4

    budget = {"bits": 32}
    stopped(tmp_path / "plan", options=(2, first), budget=budget)
    with pytest.raises(InputError, match="another one"):
        plan(tmp_path / "plan", options=(2, halved), budget=budget, resume=True)


def test_a_loader_that_shuffles_goes_on_in_the_same_order_only(tmp_path: Path) -> None:
    def loaded(seed: int) -> dict[str, Any]:
        drawn = torch.Generator().manual_seed(seed)
        return {"data": DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True, generator=drawn)}

    stopped(tmp_path / "plan", **loaded(3))
    with pytest.raises(InputError, match="another order"):
        plan(tmp_path / "plan", **loaded(4), resume=True)
    assert bits(plan(tmp_path / "plan", **loaded(3), resume=True)) == bits(plan(None, **loaded(3)))


def test_another_budget_uses_the_same_rows(tmp_path: Path) -> None:
    """The table does not depend on it; a latency table is no part of what was measured."""
    table = {name: [1.0, 2.0, 3.0] for name in (FIRST, "2.weight", LAST)}
    stopped(tmp_path / "plan", 4, budget={"latency": (table, 6.0)})
    other = {**table, FIRST: [1.0, 5.0, 9.0]}
    again = plan(tmp_path / "plan", budget={"latency": (other, 6.0)}, resume=True)
    assert bits(again) == bits(plan(None, budget={"latency": (other, 6.0)}))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "first"])
def test_a_damaged_file_is_refused_or_not_needed(damage: str, tmp_path: Path) -> None:
    stopped(tmp_path / "plan")
    path = journal_path(tmp_path / "plan")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-200] ^= 0xFF
    else:
        content = {"cut": content[:-100], "empty": bytearray(), "foreign": bytearray(b"{}"), "first": content[:60]}[
            damage
        ]
    path.write_bytes(content)
    if damage in ("cut", "flipped"):
        again = plan(tmp_path / "plan", resume=True)
        assert bits(again) == bits(plan(None))
    else:
        with pytest.raises(InputError, match="the rows that were measured cannot be used") as caught:
            plan(tmp_path / "plan", resume=True)
        assert str(path) in str(caught.value) and "remove the file" in caught.value.what_to_do


def test_less_memory_than_before_measures_again_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(400, 5), torch.randint(0, 3, (400,))
    stopped(tmp_path / "plan", 4, data=[(x, y)])
    monkeypatch.setattr("layerhess.planning.planner.MOST_OUTPUTS", 400 * 3 * 4 * 37 * 0.5)
    again = plan(tmp_path / "plan", data=[(x, y)], resume=True)
    assert any("interactions between layers are from a random" in warning for warning in again.warnings)
    assert bits(again) == bits(plan(None, data=[(x, y)]))


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        plan(tmp_path / "file" / "plan")


def test_what_is_written_is_read_to_the_last_bit(tmp_path: Path) -> None:
    objective = lh.Objective(network(), DATA, CE)
    with objective.session():
        meter = Meter(objective)
        measured = meter.measure([{FIRST: lh.Quantize(2)}, {FIRST: lh.Quantize(4)}], outputs=True)
        bad = Measurement(np.array([np.inf, np.nan, -0.0]), why="the loss is NaN or infinite")
        path = tmp_path / "rows"
        rows = RowsFile(path, objective, {"a": {"b": 1}}, resume=False)
        rows.pair(meter.float_model.losses, [13, 27])
        rows.keep("one", measured)
        rows.keep("two", [bad])
        rows.close()
        rows = RowsFile(path, objective, {"a": {"b": 1}}, resume=True)
        rows.pair(meter.float_model.losses, [13, 27])
        found = rows.known("one", 2, outputs=True)
        assert found is not None
        for one, other in zip(found, measured, strict=True):
            assert one.losses.tobytes() == other.losses.tobytes() and one.kl is not None and other.kl is not None
            assert one.kl.tobytes() == other.kl.tobytes() and one.why == other.why
            assert all(torch.equal(a, b) for a, b in zip(one.outputs, other.outputs, strict=True))
        (again,) = rows.known("two", 1) or ()
        assert again.losses.tobytes() == bad.losses.tobytes() and again.why == bad.why and again.kl is None
        assert rows.known("one", 1) is None and rows.known("three", 1) is None
        rows.pair(meter.float_model.losses, [13, 20])
        assert rows.known("one", 2, outputs=True) is None and rows.known("one", 2) is not None
        rows.remove()
        assert not path.exists()

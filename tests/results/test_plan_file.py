"""plan.json: every number comes back, strict JSON, and what is not a plan is refused with a sentence."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fabricated
import plans_by_hand
from layerhess.errors import InputError
from layerhess.results import json_format, plan_file, result_folder, store
from layerhess.results.options import Function, Quantize
from layerhess.results.plan import PlanRecord
from likeness import snapshot


def page(plan: PlanRecord) -> str:
    return "<p>a page</p>"


def same(one: Any, other: Any) -> bool:
    """Equal bit by bit, NaN to NaN; arrays by their bytes."""
    if isinstance(one, float) and isinstance(other, float):
        return one.hex() == other.hex()
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and one.tobytes() == other.tobytes()
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        return type(one) is type(other) and all(
            same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one) if f.compare
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


@pytest.mark.parametrize("make", [plans_by_hand.plan, plans_by_hand.pruned, plans_by_hand.undone])
def test_everything_comes_back_bit_by_bit(tmp_path: Path, make: Any) -> None:
    made = make()
    folder = plan_file.save(made, tmp_path / "plan", page)
    assert same(plan_file.load(folder), made)
    assert same(plan_file.load(folder / "plan.json"), made)
    assert {entry.name for entry in folder.iterdir()} == {"plan.json", "table.csv", "report.html"}


def test_awkward_floats_come_back(tmp_path: Path) -> None:
    values = [5e-324, -0.0, math.inf, -math.inf, math.nan, 0.1 + 0.2, 1.7976931348623157e308, math.pi]
    made = plans_by_hand.plan()
    rows = tuple(dataclasses.replace(row, measured=value) for row, value in zip(made.rows, values, strict=False))
    made = dataclasses.replace(made, rows=rows, gap=math.inf)
    assert same(plan_file.load(plan_file.save(made, tmp_path / "plan", page)), made)


def test_the_file_is_strict_json_with_a_summary_by_layer(tmp_path: Path) -> None:
    made = plans_by_hand.undone()
    text = (plan_file.save(made, tmp_path / "plan", page) / "plan.json").read_text()
    document = json.loads(text, parse_constant=json_format.refuse_constant)
    assert (document["format"], document["schema"]) == ("layerhess plan", 1)
    assert text.isascii()
    assert text.endswith("}\n")
    row = next(r for r in made.rows if r.layer == "head.weight" and r.option == Quantize(8))
    assert document["layers"]["head.weight"] == {
        "option": "w8",
        "bits": 8.0,
        "size_bytes": row.size_bytes,
        "measured": row.measured,
        "measured_error": row.measured_error,
        "predicted": None,
        "function": False,
    }
    assert list(document["layers"]) == list(made.choice)


def test_a_function_is_kept_by_its_name_and_bits(tmp_path: Path) -> None:
    def ternary(weight: torch.Tensor) -> torch.Tensor:
        return weight.sign()

    option = Function("ternary", ternary, 1.6)
    made = plans_by_hand.plan()
    made = dataclasses.replace(made, choice={**made.choice, "head.weight": option}, options=(*made.options, option))
    back = plan_file.load(plan_file.save(made, tmp_path / "plan", page)).choice["head.weight"]
    assert back == option
    assert isinstance(back, Function)
    assert back.function is None


def test_the_table_has_a_row_for_each_option_with_all_digits(tmp_path: Path) -> None:
    made = plans_by_hand.undone()
    folder = plan_file.save(made, tmp_path / "plan", page)
    with (folder / "table.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(made.rows)
    assert [r["chosen"] == "true" for r in rows] == [made.choice[r.layer] == r.option for r in made.rows]
    assert [float(r["measured"] or "nan").hex() for r in rows] == [float(r.measured).hex() for r in made.rows]
    assert rows[0]["measured"] == "", "unknown"
    assert rows[0]["why_not"] == "the loss is NaN"
    assert rows[5]["option"] == "w3"


def test_a_plan_is_replaced_as_a_whole_and_other_files_are_kept(tmp_path: Path) -> None:
    folder = plan_file.save(plans_by_hand.plan(), tmp_path / "plan", page)
    (folder / "mine.txt").write_text("kept")
    other = plans_by_hand.plan(seed=3)
    plan_file.save(other, folder, page)
    assert same(plan_file.load(folder), other)
    assert (folder / "mine.txt").read_text() == "kept"


def test_the_page_alone_can_be_replaced(tmp_path: Path) -> None:
    made = plans_by_hand.plan(random=1)
    folder = plan_file.save(made, tmp_path / "plan", page)
    assert plan_file.is_plan(folder) and not plan_file.is_plan(tmp_path)
    assert plan_file.replace_report(folder, "<p>another</p>").read_text() == "<p>another</p>"
    assert same(plan_file.load(folder), made)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_plan_does_not_replace_an_analysis_nor_an_analysis_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerhess.show.report.as_html", lambda *_, **__: "<p>a report</p>")
    analysis = fabricated.analysis()
    run, plan = analysis.save(tmp_path / "run"), plan_file.save(plans_by_hand.plan(), tmp_path / "plan", page)
    before = snapshot(tmp_path)
    with pytest.raises(plan_file.PlanSaveError, match="holds an analysis, not a plan") as lost:
        plan_file.save(plans_by_hand.plan(), run, page)
    assert same(lost.value.plan, plans_by_hand.plan())
    with pytest.raises(InputError, match="holds a plan, not an analysis"):
        analysis.save(plan)
    with pytest.raises(InputError, match="holds an analysis, not a plan"):
        result_folder.check_writable(run, result_folder.PLAN)
    with pytest.raises(InputError, match="holds a plan, not an analysis"):
        store.check_writable(plan)
    with pytest.raises(InputError, match=r"holds an analysis, not a plan.*lh\.load\(folder\)"):
        plan_file.load(run)
    with pytest.raises(InputError, match=r"holds a plan, not an analysis.*lh\.load_plan\(folder\)"):
        store.load(plan)
    assert snapshot(tmp_path) == before


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        plan_file.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no plan\.json"):
        plan_file.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file, not the folder of a plan"):
        plan_file.load(tmp_path / "file")


def edited(folder: Path, change: Any) -> Path:
    document = json.loads((folder / "plan.json").read_text())
    change(document)
    (folder / "plan.json").write_text(json.dumps(document))
    return folder


def drop(key: str) -> Any:
    return lambda document: document.pop(key)


def put(key: str, value: Any) -> Any:
    return lambda document: document.update({key: value})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop("rows"), "rows is missing"),
        (put("loss", "much"), "loss is a string, not a number"),
        (put("optimal", 1), "optimal is an integer"),
        (put("schema", 2), "schema is version 2"),
        (put("schema", True), "schema version is True"),
        (put("format", "layerhess analysis"), "not marked as a layerhess plan"),
        (drop("defined_options"), "has no 'w8'"),
        (put("defined_options", {"w8": {"kind": "quantize", "bits": 8}, "w4": []}), "w4 is a list, not an object"),
        (put("defined_options", {"w8": {"kind": "quantize", "size": 8}}), "w8 is no option"),
        (put("defined_options", {"w8": {"kind": "quantize", "bits": 4}}), "w8 is 'w4'"),
        (put("defined_options", {"w8": {"kind": "spell"}}), "w8 is no option"),
        (put("weights", []), "are not listed"),
        (put("choice", {}), "choice lacks"),
        (put("interactions", [[1.0]]), r"interactions is \(1, 1\) for 8 weights"),
        (put("interactions", [[1.0], [1.0, 2.0]]), "no rectangle"),
    ],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(tmp_path: Path, change: Any, told: str) -> None:
    folder = edited(plan_file.save(plans_by_hand.plan(random=1), tmp_path / "plan", page), change)
    with pytest.raises(InputError, match=told) as refusal:
        plan_file.load(folder)
    assert str(folder / "plan.json") in str(refusal.value)
    assert refusal.value.what_to_do


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"loss": NaN}', b"\xff\xfe"])
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = plan_file.save(plans_by_hand.plan(random=1), tmp_path / "plan", page)
    (folder / "plan.json").write_bytes(content)
    with pytest.raises(InputError, match="this saved plan cannot be read"):
        plan_file.load(folder)


def test_a_page_that_cannot_be_made_leaves_the_old_plan(tmp_path: Path) -> None:
    folder = plan_file.save(plans_by_hand.plan(), tmp_path / "plan", page)
    before = snapshot(folder)

    def failing(plan: PlanRecord) -> str:
        raise RuntimeError("no page")

    with pytest.raises(RuntimeError, match="no page"):
        plan_file.save(plans_by_hand.plan(seed=5), folder, failing)
    assert snapshot(tmp_path / "plan") == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan"]

"""The door to all formats: paths, unknown formats, and plans of which nothing can be said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from layerhess.errors import InputError
from layerhess.planning.export.export import FORMATS, export
from layerhess.results.options import Prune, Quantize
from plans import plan_of

MODEL = nn.Sequential(nn.Linear(32, 4))
PLAN = plan_of(MODEL, {"0.weight": Quantize(4)})


def test_an_unknown_format_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown format 'onnx'.*'torchao', 'transformers', 'gguf' or 'nncf'"):
        export(PLAN, "onnx", tmp_path)


@pytest.mark.parametrize("kind", ["torchao", "transformers", "nncf"])
def test_nothing_is_written_where_nothing_can_be_said(kind: str, tmp_path: Path) -> None:
    if kind != "nncf":
        pytest.importorskip("torchao")
    with pytest.raises(InputError, match=f"nothing of this plan can be written for {kind}: 0.weight") as caught:
        export(plan_of(MODEL, {"0.weight": Prune(0.5)}), kind, tmp_path)
    assert len(caught.value.details) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_is_given_a_file_of_the_formats_name_and_a_file_is_replaced(tmp_path: Path) -> None:
    export(PLAN, "nncf", tmp_path)
    export(PLAN, "nncf", tmp_path / "new" / "mine.json")
    (tmp_path / "new" / "mine.json").write_text("old")
    export(PLAN, "nncf", str(tmp_path / "new" / "mine.json"))
    assert json.loads((tmp_path / "new" / "mine.json").read_text()) == json.loads((tmp_path / "nncf.json").read_text())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine.json", "new", "nncf.json"]
    assert {name for name, _ in FORMATS.values()} == {
        "torchao.json",
        "quantization_config.json",
        "tensor_types.txt",
        "nncf.json",
    }


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        export(PLAN, "nncf", tmp_path / "file" / "inside.json")

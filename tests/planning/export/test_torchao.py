"""The file is read back by torchao, and what it makes of a model is what was planned, bit by bit."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from layerhess.errors import LayerhessWarning
from layerhess.planning.export.export import export
from layerhess.planning.weights.applied import changed
from layerhess.planning.weights.torchao_library import torchao
from layerhess.results.options import Prune, Quantize, option_of
from plans import plan_of

pytest.importorskip("torchao")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 32)
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.hidden = nn.Linear(128, 24)
        self.wide = nn.Conv1d(24, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        images = self.embedding(tokens).reshape(len(tokens), 2, 4, -1)
        hidden = self.hidden(self.conv(images).relu().flatten(1))
        return self.head(self.wide(hidden[..., None])[..., 0])


def test_torchao_reads_the_file_and_makes_the_planned_weights(tmp_path: Path) -> None:
    model = Small()
    choice = {
        "embedding.weight": Quantize(2, "group:8", symmetric=False),
        "conv.weight": Quantize(4, "group:2"),
        "hidden.weight": Quantize(3),
        "head.weight": Quantize(8, symmetric=False),
    }
    assert export(plan_of(model, choice), "torchao", tmp_path / "deep" / "plan.json") == []
    library = torchao("test")
    config = library.config_from_dict(json.loads((tmp_path / "deep" / "plan.json").read_text()))
    assert isinstance(config, library.FqnToConfig)
    before = copy.deepcopy(model)
    library.quantize_(model, config, filter_fn=None)
    for name, option in choice.items():
        expected = changed(option, before.get_parameter(name))
        assert torch.equal(model.get_parameter(name).dequantize(), expected), name
    assert torch.equal(model.wide.weight, before.wide.weight)
    model(torch.tensor([[1], [2]]))


def test_what_no_configuration_says_is_left_out_and_said(tmp_path: Path) -> None:
    model = Small()
    choice = {
        "embedding.weight": Quantize(4, scale="mse"),
        "conv.weight": Quantize(4),
        "hidden.weight": Prune(0.5),
        "wide.weight": Quantize(4),
        "head.weight": Quantize(4),
    }
    with pytest.warns(LayerhessWarning, match="not in the torchao file, and so not made smaller by it") as heard:
        left_out = export(plan_of(model, choice), "torchao", tmp_path)
    assert "embedding.weight (w4 mse)" in str(heard[0].message)
    assert [sentence.split(" ")[0] for sentence in left_out] == list(choice)[:4]
    assert "apply_plan can make them" in left_out[0]
    assert "apply_plan can make them" in left_out[1]  # one scale for a whole output channel
    assert "no configuration that does this" in left_out[2]
    assert "do not work in Conv1d" in left_out[3]
    content = json.loads((tmp_path / "torchao.json").read_text())
    assert list(content["_data"]["fqn_to_config"]) == ["head.weight"]


def test_more_bits_other_dtypes_and_functions_are_left_out(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].double()
    choice = {
        "0.weight": Quantize(12),
        "1.weight": option_of(torch.sign),
        "2.weight": Quantize(4),
        "3.weight": Quantize(4),
    }
    with pytest.warns(LayerhessWarning):
        left_out = export(plan_of(model, choice), "torchao", tmp_path)
    assert ["at most 8 bits" in left_out[0], "does this" in left_out[1], "float64" in left_out[2]] == [True] * 3

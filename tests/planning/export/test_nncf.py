"""The calls are those that NNCF takes; with it, they make the planned bits of every weight."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from layerhess.errors import LayerhessWarning
from layerhess.planning.export.export import export
from layerhess.results.options import Prune, Quantize
from plans import plan_of


class Net(nn.Module):
    """Layers called by name and from a list."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.blocks = nn.ModuleList([nn.Linear(32, 64), nn.Linear(64, 48), nn.Linear(48, 48)])
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(192, 16)
        self.last = nn.Linear(16, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = block(hidden).relu()
        return self.last(self.head(self.conv(hidden.reshape(-1, 1, 6, 8)).flatten(1)))


CHOICE = {
    "embedding.weight": Quantize(4, symmetric=False),
    "blocks.0.weight": Quantize(4, "group:16"),
    "blocks.1.weight": Quantize(4),
    "blocks.2.weight": Quantize(4, "group:16"),
    "conv.weight": Quantize(8),
    "head.weight": Quantize(8, symmetric=False),
}


def test_weights_of_one_mode_share_a_call(tmp_path: Path) -> None:
    assert export(plan_of(Net(), CHOICE), "nncf", tmp_path) == []
    content = json.loads((tmp_path / "nncf.json").read_text())
    assert content["function"] == "nncf.compress_weights"
    assert [(call["arguments"]["mode"], call["weights"]) for call in content["calls"]] == [
        ("int4_asym", ["embedding.weight"]),
        ("int4_sym", ["blocks.0.weight", "blocks.2.weight"]),
        ("int4_sym", ["blocks.1.weight"]),
        ("int8_sym", ["conv.weight"]),
        ("int8_asym", ["head.weight"]),
    ]
    assert [call["arguments"].get("group_size") for call in content["calls"]] == [-1, 16, -1, None, None]
    assert content["untouched"] == []


def test_what_nncf_cannot_do_is_left_out_and_said(tmp_path: Path) -> None:
    choice = {
        "embedding.weight": Quantize(5),
        "blocks.0.weight": Quantize(4, "tensor"),
        "blocks.1.weight": Quantize(4, scale="mse"),
        "blocks.2.weight": Quantize(3, symmetric=False),
        "conv.weight": Quantize(4),
        "head.weight": Prune(0.5),
        "last.weight": Quantize(8, "group:8"),
    }
    plan = plan_of(Net(), {**choice, "last.weight": Quantize(8)})
    with pytest.warns(LayerhessWarning, match="not in the nncf file"):
        left_out = export(plan, "nncf", tmp_path)
    reasons = [
        "no symmetric weights of 5 bits",
        "each channel or group",
        "data of its own",
        "no asymmetric weights of 3",
    ]
    reasons += ["weights of Conv2d to 4 bits", "no mode that does this"]
    assert [reason in sentence for reason, sentence in zip(reasons, left_out, strict=True)] == [True] * 6
    assert json.loads((tmp_path / "nncf.json").read_text())["untouched"] == list(choice)[:6]
    with pytest.warns(LayerhessWarning, match="8 bits have a scale for each channel"):
        export(plan_of(Net(), {"last.weight": Quantize(8, "group:8"), "head.weight": Quantize(8)}), "nncf", tmp_path)


def compressed(model: nn.Module, file: Path, example: Tensor) -> nn.Module:
    """As the how-to page says."""
    import nncf

    for call in json.loads(file.read_text())["calls"]:
        arguments = {**call["arguments"], "mode": nncf.CompressWeightsMode(call["arguments"]["mode"])}
        scope = nncf.IgnoredScope(**call["ignored_scope"])
        model = nncf.compress_weights(model, dataset=nncf.Dataset([example]), ignored_scope=scope, **arguments)
    return model


def test_nncf_makes_the_planned_bits_of_every_weight(tmp_path: Path) -> None:
    try:
        import nncf  # noqa: F401
    except ImportError as error:
        pytest.skip(f"NNCF does not load here: {error}")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    model, example = Net(), torch.arange(6)[None]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    export(plan_of(model, CHOICE), "nncf", tmp_path)
    after = compressed(model, tmp_path / "nncf.json", example)
    held = dict(after.named_parameters()) | dict(after.named_buffers())
    hooks = {name: module for name, module in after.named_modules() if "Decompressor" in type(module).__name__}
    for name, option in CHOICE.items():
        (hook,) = [module for path, module in hooks.items() if name.replace(".", ":") in path]
        assert f"INT{option.bits}" in type(hook).__name__.upper(), name
        whole = hook(held[name])
        rows = before[name].reshape(len(before[name]), -1, option.group_size or before[name][0].numel())
        step = 2.0 * rows.abs().amax(-1, keepdim=True) / (2**option.bits - 1)  # the symmetric one is the larger
        assert ((whole.reshape(rows.shape) - rows).abs() <= 1.02 * step).all(), name
        assert not torch.equal(whole, before[name])
    assert torch.equal(held["last.weight"], before["last.weight"])

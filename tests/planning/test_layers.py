"""Which weights a plan decides on, and what is refused in words before any work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from layerhess.planning.layers import NOT_ALLOWED, Layers, layers_of
from layerhess.results.options import Prune, Quantize
from witness import refused

X, Y = torch.randn(6, 4), torch.arange(6) % 3
CE = nn.CrossEntropyLoss()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(2)])
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x))


NAMES = ("stem.weight", "blocks.0.weight", "blocks.1.weight", "head.weight")


def made(model: nn.Module | None = None, options: Any = (2, 4), scheme: Any = "weight", **more: Any) -> Layers:
    return layers_of(lh.Objective(model or Net(), (X, Y), CE), options, scheme, **more)


def usable(layers: Layers) -> dict[str, list[str]]:
    return {
        name: [option.name for option, why in zip(layers.options, row, strict=True) if not why]
        for name, row in zip(layers.names, layers.why_not, strict=True)
    }


def test_matrices_are_planned_in_model_order_and_vectors_are_not() -> None:
    layers = made()
    assert layers.names == NAMES and layers.options == (Quantize(2), Quantize(4))
    assert [(w.shape, w.dtype, w.numel, w.module) for w in layers.weights] == [
        ((4, 4), "float32", 16, "Linear"),
        ((4, 4), "float32", 16, "Linear"),
        ((4, 4), "float32", 16, "Linear"),
        ((3, 4), "float32", 12, "Linear"),
    ]
    assert layers.tied == () and layers.notes == () and usable(layers) == {name: ["w2", "w4"] for name in NAMES}
    assert layers.choice([0, 1, 1, 0]) == dict(zip(NAMES, (Quantize(k) for k in (2, 4, 4, 2)), strict=True))


def test_a_shared_weight_is_planned_once_under_both_names() -> None:
    layers = layers_of(lh.Objective(Tied(), (torch.arange(5), torch.arange(5)), CE), (2, 4), "weight")
    (weight,) = layers.weights
    assert weight.name == "embedding.weight" and weight.aliases == ("head.weight",)
    pinned = layers_of(
        lh.Objective(Tied(), (torch.arange(5), torch.arange(5)), CE), (2, 4), "weight", pinned={"head.weight": 4}
    )
    assert usable(pinned) == {"embedding.weight": ["w4"]}


def test_globs_allow_pin_and_tie() -> None:
    layers = made(
        allowed={"blocks.*": [2], "*": [2, 4]}, pinned={"head*": 8}, tied=[["stem.weight", "blocks.?.weight"]]
    )
    assert usable(layers) == {
        "stem.weight": ["w2", "w4"], "blocks.0.weight": ["w2"], "blocks.1.weight": ["w2"], "head.weight": ["w8"],
    }  # fmt: skip
    assert layers.options == (Quantize(2), Quantize(4), Quantize(8))  # pinned to one outside the list
    assert layers.pinned == {3: 2} and layers.tied == ((0, 1, 2),)
    assert layers.why_not[3][:2] == (NOT_ALLOWED, NOT_ALLOWED)


def test_weights_of_one_block_choose_together() -> None:
    assert set(made(scheme={"body": "blocks.*", "rest": ["stem*", "head*", "norm*"]}).tied) == {(1, 2), (0, 3)}


def test_an_option_that_does_not_fit_a_shape_is_out_there_only() -> None:
    layers = layers_of(
        lh.Objective(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), (torch.randn(6, 6), Y), CE),
        (4, Prune("2:4")), "weight",
    )  # fmt: skip
    assert usable(layers) == {"0.weight": ["w4"], "1.weight": ["w4", "2:4 sparse"]}
    assert "6" in layers.why_not[0][1]


def test_frozen_weights_stay_and_are_said() -> None:
    model = Net()
    model.blocks.requires_grad_(False)
    layers = made(model)
    assert layers.names == ("stem.weight", "head.weight")
    assert layers.notes == ("2 frozen parameters stay as they are (blocks.0.weight, blocks.1.weight)",)
    model = Net()
    model.blocks[0].requires_grad_(False)
    assert made(model).notes == ("1 frozen parameter stays as it is (blocks.0.weight)",)


# -- refusals -------------------------------------------------------------------------------------------------------


def quantised() -> nn.Module:
    torchao = pytest.importorskip("torchao.quantization")
    model = Net()
    torchao.quantize_(model.stem, torchao.Int8WeightOnlyConfig())
    return model


def integers() -> nn.Module:
    model = Net()
    model.stem.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    return model


def packed() -> nn.Module:
    model = Net()
    model.extra = torch.ao.nn.quantized.Linear(4, 4)
    return model


def infinite() -> nn.Module:
    model = Net()
    model.head.weight.data[1, 1] = float("nan")
    return model


def normed(old: bool) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Net()
        (nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm)(model.stem)
        return model

    return make


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], tuple[str, ...]]] = {
    "unknown option": (Net, {"options": ("four",)}, ("unknown option 'four'", "lh.Quantize")),
    "no bits": (Net, {"options": (0,)}, ("0 bits", "1 to 16")),
    "no option": (Net, {"options": ()}, ("no option is given",)),
    "two functions of one name": (
        Net, {"options": [lambda w: w, lambda w: 2 * w]}, ("two options are called", "__name__"),
    ),
    "unknown layer allowed": (Net, {"allowed": {"stom.weight": [2]}}, ("'stom.weight'", "allowed", "stem.weight")),
    "unknown layer pinned": (Net, {"pinned": {"stem": 2}}, ("no planned weight is called 'stem'", "pinned")),
    "unknown layer tied": (Net, {"tied": [["stem.weight", "tail.*"]]}, ("'tail.*'", "tied")),
    "a name that is none": (Net, {"pinned": {3: 2}}, ("a layer is called 3",)),
    "a string tied": (Net, {"tied": ["stem.weight"]}, ("list of lists",)),
    "empty allowed set": (Net, {"allowed": {"stem.weight": []}}, ("no option is allowed for 'stem.weight'",)),
    "allowed outside the options": (Net, {"allowed": {"stem.weight": [8]}}, ("'w8'", "none of the options", "w2, w4")),
    "disjoint patterns": (
        Net, {"allowed": {"stem*": [2], "*.weight": [4]}}, ("leave no option for 'stem.weight'", "disjoint"),
    ),
    "pinned twice": (Net, {"pinned": {"stem.weight": 2, "*": 4}}, ("'stem.weight' is pinned to two options",)),
    "nothing fits": (Net, {"options": [lh.Quantize(4, "group:3")]}, ("no option is left for 'stem.weight'", "layers=")),
    "only vectors": (Net, {"scheme": {"norm": "norm.*"}}, ("no weight of two or more dimensions", "layers='weight'")),
    "quantised already": (quantised, {}, ("quantised already", "before it is quantised")),
    "integers": (integers, {}, ("'stem.weight' is quantised already", "int8")),
    "packed": (packed, {}, ("quantised already",)),
    "weight norm": (normed(False), {}, ("computed from this parameter", "stem.", "remove_parametrizations")),
    "weight norm by hooks": (normed(True), {}, ("computed from this parameter", "stem.weight_g", "remove_weight_norm")),
    "NaN": (infinite, {}, ("'head.weight' has values that are NaN or infinite",)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_words(name: str) -> None:
    model, asked, said = CASES[name]
    given = model()
    with refused(None, *said):
        made(given, **asked)


def test_float8_weights_are_refused() -> None:
    model = Net()
    model.stem.weight = nn.Parameter(model.stem.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with refused(None, "quantised already"):
        made(model)

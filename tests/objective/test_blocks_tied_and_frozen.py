"""Which parameters form which block: every scheme on one small model with tied and frozen parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from layerhess.errors import InputError
from layerhess.objective.blocks import Partition, make_block, partition


class Tied(nn.Module):
    """Two uses of one table, a scalar at the root, an empty tensor, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.body = nn.ModuleDict({"up": nn.Linear(2, 3), "deep": nn.Sequential(nn.Linear(3, 3))})
        self.none = nn.Parameter(torch.zeros(0, 4))
        self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.table.weight
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


MODEL = Tied()
TRAINED = {name: p for name, p in MODEL.named_parameters() if p.requires_grad}
FROZEN = [name for name, p in MODEL.named_parameters() if not p.requires_grad]
UP, DEEP, TABLE = ["body.up.weight", "body.up.bias"], ["body.deep.0.weight", "body.deep.0.bias"], ["table.weight"]


def cut(scheme: Any) -> Partition:
    return partition(MODEL, TRAINED, FROZEN, scheme)


SCHEMES: dict[str, tuple[Any, dict[str, list[str]]]] = {
    "parameter": ("parameter", {name: [name] for name in TRAINED}),
    "weight": ("weight", {n: [n] for n in ("none", "body.up.weight", "body.deep.0.weight", "table.weight")}),
    "module": ("module", {"(root)": ["scale", "none"], "body.up": UP, "body.deep.0": DEEP, "table": ["table.weight"]}),
    "depth:1": ("depth:1", {"(root)": ["scale", "none"], "body": [*UP, *DEEP], "table": ["table.weight"]}),
    "depth:2": ("depth:2", {"(root)": ["scale", "none"], "body.up": UP, "body.deep": DEEP, "table": TABLE}),
    "depth:3": ("depth:3", {"(root)": ["scale", "none"], "body.up": UP, "body.deep.0": DEEP, "table": TABLE}),
    "a pattern": ({"b": "body.*"}, {"b": [*UP, *DEEP]}),
    "patterns": ({"b": ["*.bias", "scale"], "w": "*.weight"}, {
        "b": ["scale", UP[1], DEEP[1]], "w": [UP[0], DEEP[0], "table.weight"]}),
    "a tied parameter by its other name": ({"h": "head.*"}, {"h": ["table.weight"]}),
    "twice in one block": ({"u": ["body.up.*", "*up.bias"]}, {"u": UP}),
    "a function": (lambda name, p: "big" if p.numel() > 5 else None, {"big": [UP[0], DEEP[0], "table.weight"]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCHEMES)
def test_every_scheme_cuts_whole_parameters(kind: str) -> None:
    scheme, expected = SCHEMES[kind]
    found = cut(scheme)
    order = list(TRAINED)
    assert {block.name: list(block.parameters) for block in found.blocks} == {
        name: sorted(members, key=order.index) for name, members in expected.items()
    }
    covered = {name for block in found.blocks for name in block.parameters}
    assert list(found.uncovered) == [name for name in order if name not in covered]
    for block in found.blocks:
        assert block.shapes == tuple(TRAINED[name].shape for name in block.parameters)
        assert block.numel == sum(TRAINED[name].numel() for name in block.parameters)


REFUSED: dict[str, tuple[Any, str]] = {
    "an unknown word": ("layers", "unknown block scheme 'layers'"),
    "no depth": ("depth:0", "unknown block scheme"),
    "no number": ("depth:x", "unknown block scheme"),
    "another head": ("width:1", "unknown block scheme"),
    "a pattern without hits": ({"a": "nope.*"}, "'nope.*' of block 'a' matches no parameter.*scale"),
    "frozen hits": ({"a": "frozen.*"}, r"frozen parameters only \(frozen.weight, frozen.bias\).*requires_grad_"),
    "a pattern that is none": ({"a": 3}, "a pattern of block 'a' is 3"),
    "a pattern in a list that is none": ({"a": ["scale", None]}, "a pattern of block 'a' is None"),
    "an overlap": ({"a": "body.*", "b": "*.bias"}, "'body.up.bias' is in two blocks, 'a' and 'b'"),
    "a reserved name": ({"(full)": "scale"}, r"'\(full\)' cannot name a block"),
    "an empty name": (lambda name, p: "", "'' cannot name a block"),
    "a name that is none": (lambda name, p: 3, "returned 3 for 'scale'"),
    "nothing": (lambda name, p: None, "no trainable parameter is in any block"),
    "an empty mapping": ({}, "no trainable parameter is in any block"),
    "a number": (3, "blocks is int"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_scheme_is_refused_in_words(kind: str) -> None:
    scheme, words = REFUSED[kind]
    with pytest.raises(InputError, match=words.replace(".*scale", "")) as caught:
        cut(scheme)
    assert caught.value.where == "blocks" and caught.value.what_to_do
    if words.endswith("scale"):
        assert "scale" in caught.value.what_to_do


def test_a_scheme_that_leaves_nothing_says_which() -> None:
    only = {"b": nn.Parameter(torch.zeros(3))}
    with pytest.raises(InputError, match="the scheme 'weight' puts no trainable parameter into any block"):
        partition(nn.Module(), only, [], "weight")


def test_flat_vectors_are_cut_into_views_of_the_parameters_shapes() -> None:
    block = make_block("b", {"s": torch.zeros(()), "m": torch.zeros(2, 3), "e": torch.zeros(0), "v": torch.zeros(2)})
    flat = torch.arange(9.0)
    parts = block.split(flat)
    assert block.numel == 9 and parts["s"].item() == 0.0 and parts["m"].tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    assert parts["e"].shape == (0,) and parts["v"].tolist() == [7.0, 8.0]
    parts["v"][0] = -1.0
    assert flat[7] == -1.0
    rows = block.split(torch.stack([flat, 2 * flat]))
    assert {name: tuple(part.shape) for name, part in rows.items()} == {
        "s": (2,),
        "m": (2, 2, 3),
        "e": (2, 0),
        "v": (2, 2),
    }

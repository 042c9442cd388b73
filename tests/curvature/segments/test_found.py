"""Which modules are segments: repeated blocks at any depth, runs of plain layers, or what a user names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from layerhess.curvature.segments.found import found_segments, named_segments
from repeated_blocks import Tied, plain, resnet
from witness import refused


def block() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 8)


class _Stage(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(blocks))
        self.norm = nn.LayerNorm(4)


class _Sides(nn.Module):
    """Blocks as attributes, and a container that belongs to no block."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = block(), block()
        self.head = nn.Sequential(*[nn.Linear(4, 4), nn.ReLU(inplace=True)] * 3)


class _Holder(nn.Module):
    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.inside = nn.ModuleList(members)


FOUND: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "a transformer's layers": (Tied, ["layers.0", "layers.1"]),
    "residual blocks in their stages": (resnet, ["1.0", "1.1", "2.0", "2.1"]),
    "blocks rather than few stages": (
        lambda: nn.ModuleList([_Stage(2), _Stage(1)]), ["0.blocks.0", "0.blocks.1", "1.blocks.0"]),
    "blocks as attributes, and runs in a head": (_Sides, ["left", "right", "head 0 to 3", "head 4 to 5"]),
    "runs that do not begin in place": (plain, ["0 to 3", "4 to 7", "8 to 9"]),
    "the only member of a list, which may be called often": (lambda: _Holder(_Holder(block())), ["inside.0.inside.0"]),
    "recurrent layers": (lambda: _Holder(nn.LSTM(2, 2), nn.LSTM(2, 2)), ["inside.0", "inside.1"]),
    "nothing that is repeated": (lambda: nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)), []),
    "a single module": (lambda: nn.Linear(2, 2), []),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOUND)
def test_segments_are_found_by_module(kind: str) -> None:
    make, expected = FOUND[kind]
    assert [str(segment) for segment in found_segments(make())] == expected


def test_a_user_names_modules_or_globs_and_the_outermost_count() -> None:
    model = Tied(3)
    assert [str(s) for s in named_segments(model, ["layers.[02]"])] == ["layers.0", "layers.2"]
    assert [str(s) for s in named_segments(model, "layers.1*")] == ["layers.1"]
    assert [str(s) for s in named_segments(model, ["layers.1.inner", "layers.1", "layers.1"])] == ["layers.1"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [(["nowhere.*"], "no module 'nowhere"), (["layers"], "a list of modules"), ([], "segments is"), (3, "segments is")],
)
def test_a_name_that_is_no_module_is_refused_before_any_work(asked: Any, says: str) -> None:
    calls = []

    class Watched(Tied):
        def forward(self, tokens: Tensor) -> Tensor:
            calls.append(1)
            return super().forward(tokens)

    words = torch.randint(0, 7, (2, 5))
    objective = lh.Objective(Watched(), (words, words), nn.CrossEntropyLoss())
    with refused(objective.model, says):
        lh.analyze(objective, segments=asked)
    assert not calls

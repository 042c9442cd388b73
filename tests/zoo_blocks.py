"""The zoo's cases as objectives with an output of their own, and every way to cut their parameters into blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

import layerhess as lh
from references import curvature
from zoo import Case

Blocks = Mapping[str, Sequence[str]]


def built(case: Case) -> lh.Objective:
    return curvature.with_output(case, case.build(torch.float64, 0)).objective()


def schemes(objective: lh.Objective) -> Blocks:
    """Every parameter, every module, and everything at once."""
    names = list(objective.parameters)
    modules: dict[str, list[str]] = {}
    for name in names:
        modules.setdefault(f"module {name.rpartition('.')[0]}", []).append(name)
    return {**{name: [name] for name in names}, **modules, "everything": names}


TIED = ("cnn-batchnorm-train", "cnn-batchnorm-train-tanh", "cnn-residual-train")  # items of a batch are not independent

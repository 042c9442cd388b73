"""Ranks that were given different things are told what differs, in one sentence on all of them; none gets a number."""

from __future__ import annotations

from pathlib import Path

import pytest

import differing_ranks
from differing_ranks import ARGUMENTS, OBJECTIVES
from ranks import run_ranks

NAMED = {
    "patterns": "blocks is",
    "functions": "block '0.weight' is",
    "the shape": "different models: 0.weight of rank 1",
    "the values": "different models: 0.bias of rank 1",
    "the dtype": "dtype is float64 on rank 0 and float32",
    "the frozen": "'0.bias'",
    "the names": "2.weight",
    "the function": "the class of the model, 1 is Tanh on rank 0 and ReLU",
    "the code of the model": "different functions: the loss is",
    "the code of a derivative": "different functions: the norm of a product is",
    "the slope": "negative_slope of the model, 1 is 0.1 on rank 0 and 0.2",
    "the loss": "loss is CrossEntropyLoss on rank 0 and MultiMarginLoss",
    "the weights of the loss": "label_smoothing of the loss is 0.0 on rank 0 and 0.1",
    "the reduction": "reduction='sum' of the loss is False on rank 0 and True",
    "the loss function": "loss is CrossEntropyLoss on rank 0 and <lambda>",
    "the mode": "training of the model is False on rank 0 and True",
    "the mode asked for": "mode is as-is on rank 0 and eval",
    "the batch_size": "batch_size is None on rank 0 and 3",
    "the stop_gradients": "stop_gradients is refuse on rank 0 and constant",
    "version of torch": "the version of torch is",
    "version of layerhess": "the version of layerhess is",
}


def test_what_differs_is_named_on_every_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(differing_ranks.FOLDER, str(tmp_path / "results"))
    every = run_ranks(2, "differing_ranks", "everything", tmp_path / "ranks", timeout=20.0)
    assert [one.code for one in every] == [0, 0], [one.stderr[-1500:] for one in every]
    found, other = (one.returned for one in every)
    assert {f"the {name}" for name in OBJECTIVES} <= NAMED.keys()
    for name, words in {**{name: f"{name} is" for name in ARGUMENTS}, **NAMED}.items():
        assert found[name] == other[name] and found[name].startswith("InputError: the ranks "), (name, found[name])
        assert words in found[name] and "rank 0" in found[name] and "rank 1" in found[name], (name, found[name])
    for of in (found, other):
        assert of["function called"].startswith("ProcessError: the processes do not do the same: ")
    for name in ("out of rank 0 only", "out of rank 1 only", "after"):  # of out=, rank 0's counts
        assert found[name] == other[name] and found[name].startswith("nothing was raised ["), name
    saved = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert saved == ["of rank 0"], "nothing is left of what was refused"

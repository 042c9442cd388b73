"""Sharded and wrapped models on two ranks: the numbers of the plain model, and the model trains on."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import layerhess as lh
from ranks import run_ranks
from sharded_models import CE, MODELS, Words, whole

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")


def test_sharded_and_wrapped_models_on_two_ranks(tmp_path: Path) -> None:
    """One test for all of it, since starting two processes takes longer than what they do."""
    ended = run_ranks(2, "sharded_models", "everything", tmp_path / "ranks", timeout=120.0)
    for rank in ended:
        assert rank.code == 0, rank.stderr[-3000:]
    told = [rank.returned for rank in ended]
    for name in MODELS:
        assert_products_are_those_of_the_plain_model(told, name)
    assert_training_goes_on_as_if_nothing_had_been_analysed(told)
    assert_weights_are_read_anew_for_every_product(told)
    assert_the_same_data_on_all_ranks_of_tensor_parallelism_counts_once(told)
    assert_that_what_cannot_be_done_with_shards_is_said(told)


@functools.cache
def expected(scale: float = 1.0, buffer: float = 0.5) -> Tensor:
    model = Words()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
        model.scale.fill_(buffer)
    return explicit(model)


def explicit(model: Words) -> Tensor:
    """The Hessian of the mean loss over all words by torch.autograd.functional, tied weights once."""
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = zip(parameters.items(), flat.split(sizes), strict=True)
        weights = {name: part.view(p.shape) for (name, p), part in parts}
        total = sum(CE(torch.func.functional_call(model, weights, (x,)), y) * y.numel() for x, y in whole())
        return total / sum(y.numel() for _, y in whole())

    flat = torch.cat([p.detach().reshape(-1) for p in parameters.values()])
    return torch.autograd.functional.hessian(loss, flat)


def assert_products_are_those_of_the_plain_model(told: list[Any], name: str) -> None:
    plain = Words()
    for returned in told:
        names, (full, tied), untouched, numel, notes = returned["products"][name]
        assert names == [n for n, _ in plain.named_parameters()]
        assert numel == sum(p.numel() for p in plain.parameters())
        vector = torch.linspace(-1, 1, numel).double()
        torch.testing.assert_close(full, expected() @ vector, rtol=1e-10, atol=1e-12, msg=name)
        torch.testing.assert_close(
            tied, expected()[:35, :35] @ torch.linspace(-1, 1, 35).double(), rtol=1e-10, atol=1e-12
        )
        assert untouched, name
        assert ("DDP" in name) != any("sharded" in note for note in notes)
        assert ("bfloat16" in name) == any("MixedPrecisionPolicy" in note for note in notes)
    assert all(map(torch.equal, told[0]["products"][name][1], told[1]["products"][name][1]))


def assert_training_goes_on_as_if_nothing_had_been_analysed(told: list[Any]) -> None:
    for returned in told:
        assert returned["training"] and all(returned["training"].values()), returned["training"]


def assert_weights_are_read_anew_for_every_product(told: list[Any]) -> None:
    for before, after in (returned["changing"] for returned in told):
        torch.testing.assert_close(before, expected(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(after, expected(1.25, 0.7), rtol=1e-10, atol=1e-12)


def assert_the_same_data_on_all_ranks_of_tensor_parallelism_counts_once(told: list[Any]) -> None:
    alone = lh.analyze(lh.Objective(Words(), whole(), CE), blocks="module", full=False, sampling=True)
    for returned in told:
        found = returned["same data"]
        assert found["batches"] == 3, "of six"
        for product in found["products"]:
            torch.testing.assert_close(product, expected() @ torch.linspace(-1, 1, len(product)).double())
        assert list(found["spectra"]) == list(alone.blocks)
        for name, (values, errors) in found["spectra"].items():
            np.testing.assert_allclose(values, alone.blocks[name].eigenvalues, rtol=1e-10)
            np.testing.assert_allclose(errors, alone.blocks[name].sampling_errors, rtol=1e-6)


def assert_that_what_cannot_be_done_with_shards_is_said(told: list[Any]) -> None:
    for returned in told:
        checkpoint, meta, knowing = returned["refused"]
        assert "with whole weights the model has the loss" in knowing and "parallelize_module" in knowing
        assert "--checkpoint" in checkpoint and "before the model is sharded" in checkpoint
        assert "on the meta device" in meta

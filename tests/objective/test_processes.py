"""One process of several, or one share of the data, is not taken for the whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler, TensorDataset

import layerhess as lh
from layerhess.errors import InputError
from refusals import PAIRS, X, Y, mlp
from witness import untouched


@pytest.fixture
def ranks(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    try:
        yield request.param
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_one_of_several_processes_is_refused_at_every_door(ranks: int) -> None:
    model = mlp()
    objective = lh.Objective(model, PAIRS, nn.CrossEntropyLoss())
    for call in (
        lambda: lh.analyze(objective),
        lambda: lh.Hessian(objective).to_dense(),
        lambda: lh.GaussNewton(objective).matvec({n: p.detach() for n, p in model.named_parameters()}),
        lambda: lh.trace(lh.Hessian(objective)),
    ):
        with untouched(model), pytest.raises(InputError, match="one of 2 processes") as caught:
            call()
        assert caught.value.where == "rank 0 of 2" and "torchrun" in caught.value.what_to_do


@pytest.mark.parametrize("ranks", [1], indirect=True)
def test_a_group_of_one_is_no_group(ranks: int) -> None:
    assert lh.Hessian(lh.Objective(mlp(), PAIRS, nn.CrossEntropyLoss())).to_dense().shape == (43, 43)


def test_a_share_of_the_data_set_is_refused() -> None:
    data = TensorDataset(X, Y)
    with pytest.raises(InputError, match="one of 2 shares") as caught:
        lh.Objective(mlp(), DataLoader(data, 4, sampler=DistributedSampler(data, 2, 0)), nn.CrossEntropyLoss())
    assert caught.value.where == "its DistributedSampler"
    lh.Objective(mlp(), DataLoader(data, 4, sampler=DistributedSampler(data, 1, 0)), nn.CrossEntropyLoss())
    part = BatchSampler(SequentialSampler(data), 4, False)
    part.num_processes = 3  # type: ignore[attr-defined]  # as accelerate's
    with pytest.raises(InputError, match="one of 3 shares"):
        lh.Objective(mlp(), DataLoader(data, batch_sampler=part), nn.CrossEntropyLoss())

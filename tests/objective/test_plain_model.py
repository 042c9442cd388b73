"""Wrappers inside a model come off, names are those of the user's own model, and the model is left as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import layerhess as lh
from layerhess.objective.plain_model import PlainTwin, needs_twin, unwrapped
from tanh_network import CE, X, Y, assert_same, mlp, product
from witness import untouched

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def compiled_part(model: nn.Sequential) -> nn.Module:
    model[0] = torch.compile(model[0], backend="eager")  # type: ignore[assignment]
    return model


def compiled_twice(model: nn.Sequential) -> nn.Module:
    return torch.compile(compiled_part(model), backend="eager")  # type: ignore[return-value]


def checkpointed(model: nn.Sequential) -> nn.Module:
    model[2] = checkpoint_wrapper(model[2])
    return model


def compiled_checkpointed(model: nn.Sequential) -> nn.Module:
    model[2] = torch.compile(checkpoint_wrapper(model[2]), backend="eager")  # type: ignore[assignment]
    return model


def parallel_part(model: nn.Sequential) -> nn.Module:
    model[0] = nn.DataParallel(model[0])
    return nn.DataParallel(model)


@pytest.mark.parametrize(
    "wrap",
    [compiled_part, compiled_twice, checkpointed, compiled_checkpointed, parallel_part],
    ids=lambda f: f.__name__,
)
def test_wrappers_inside_a_model_come_off(wrap: Callable[[nn.Sequential], nn.Module]) -> None:
    wrapped = wrap(mlp())
    with untouched(wrapped):
        objective = lh.Objective(wrapped, (X, Y), CE)
        assert list(objective.parameters) == NAMES
        assert_same(product(objective))
        found = lh.analyze(objective, blocks={"head": "2.*", "first": ["0.weight"]}, max_passes=3)
    assert list(found.blocks) == ["first", "head"]
    assert wrapped(X).shape == (12, 3)


class Switched(nn.Module):
    """Layers in a plain list that is shared, a bound method as an attribute, a counter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
        self.order = [self.first, self.last]
        self.act = self.bent
        self.calls = [0]
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.settings: dict[str, Any] = {"power": 1.0}

    def bent(self, x: Tensor) -> Tensor:
        return torch.tanh(x) * self.scale ** self.settings["power"]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return self.order[1](self.act(self.order[0](x)))


def wrapped_part(model: Switched) -> Switched:
    model.first = checkpoint_wrapper(model.first)
    model.order[0] = model.first
    return model


def test_a_twin_follows_the_model_as_it_changes() -> None:
    """Weights, buffers, settings and modes of the model count as they are when an analysis begins."""
    model, plain = wrapped_part(Switched()), Switched()
    objective = lh.Objective(model, (X, Y), CE)
    assert objective.model is not model and next(iter(objective.parameters)) == "first.weight"
    with untouched(model):
        assert_same(product(objective))
    assert model.calls == [0], "what the twin counts, the model does not"
    for changed in (model, plain):
        with torch.no_grad():
            changed.last.weight.mul_(1.5)
            changed.scale.fill_(0.8)
        changed.settings["power"] = 2.0
        changed.register_buffer("scale", changed.scale * 1.1)
    assert_same(product(objective), product(lh.Objective(plain, (X, Y), CE)))


def test_hooks_of_the_user_stay() -> None:
    model, plain = compiled_part(mlp()), mlp()
    for hooked in (model, plain):
        hooked[1].register_forward_hook(lambda module, args, output: 2.0 * output)
        hooked[2].register_forward_pre_hook(lambda module, args: (args[0] + 0.5,))
    assert_same(product(lh.Objective(model, (X, Y), CE)), product(lh.Objective(plain, (X, Y), CE)))


def test_a_replaced_parameter_is_noticed() -> None:
    model = compiled_part(mlp())
    objective = lh.Objective(model, (X, Y), CE)
    model[2].weight = nn.Parameter(model[2].weight.detach().clone())
    with pytest.raises(lh.InputError, match="replaced"):
        product(objective)


def test_tied_weights_behind_a_wrapper_count_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False)).double()
    model[2].weight = model[0].weight
    expected = lh.Hessian(lh.Objective(model, (X, Y), CE)).to_dense()
    model[2] = checkpoint_wrapper(model[2])
    objective = lh.Objective(model, (X, Y), CE)
    assert list(objective.parameters) == ["0.weight"]
    torch.testing.assert_close(lh.Hessian(objective, {"tied": "2.*"}).to_dense(), expected)


def test_weights_load_into_a_wrapped_model_by_their_plain_names() -> None:
    objective = lh.Objective(compiled_part(mlp()), (X, Y), CE)
    assert list(objective.model.state_dict()) == NAMES


def test_plain_models_have_no_twin() -> None:
    model = mlp()
    assert not needs_twin(model) and unwrapped(model) == (model, [])
    assert lh.Objective(model, (X, Y), CE).model is model


def test_a_scripted_part_is_used_as_it_is() -> None:
    model = nn.Sequential(torch.compile(nn.Linear(4, 5).double(), backend="eager"), torch.jit.script(nn.Tanh()))
    twin = PlainTwin(model).model
    assert twin[1] is model[1] and type(twin[0]) is nn.Linear and twin[0].weight is model[0].weight


def test_weights_that_cannot_be_gathered_are_refused() -> None:
    fully = pytest.importorskip("torch.distributed.fsdp").FullyShardedDataParallel
    flat = fully.__new__(fully)  # it can be made on an accelerator only
    nn.Module.__init__(flat)
    flat._fsdp_wrapped_module = mlp()
    for model, where in ((flat, "FullyShardedDataParallel"), (nn.Sequential(mlp(), flat), "1")):
        with pytest.raises(lh.InputError, match="FSDP1") as caught:
            lh.Objective(model, (X, Y), CE)
        assert caught.value.where == where and "fully_shard" in caught.value.what_to_do
    partitioned = mlp()
    partitioned[2].weight.ds_tensor = torch.zeros(3)  # type: ignore[attr-defined]  # as DeepSpeed marks them
    with pytest.raises(lh.InputError, match="ZeRO-3") as caught:
        lh.Objective(partitioned, (X, Y), CE)
    assert caught.value.where == "2.weight"

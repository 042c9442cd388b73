"""What is put back, part by part: each change alone, undone by the snapshot."""

from __future__ import annotations

import random
import signal
import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layerhess.objective.interrupts import deferred_interrupts, uninterrupted
from layerhess.objective.snapshot import preserved_random_state, random_states, restored, version_of


class Kept(nn.Module):
    """With an attribute of every kind that a forward pass may change."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("state", torch.tensor([1.0, -0.0, float("nan")]))
        self.register_buffer("complex", torch.tensor([1.0 + 2.0j]))
        self.weight = torch.tensor([5.0])  # as torch's old weight_norm leaves one behind
        self.counter = 3
        self.items, self.names, self.last = [1, self.weight], {"a": 1}, deque([1, 2])
        self.ordered, self.counts, self.chosen = OrderedDict(a=1, b=2), defaultdict(int, a=1), {1, 2}
        self.layer.weight.grad = torch.ones(2, 2)


def in_place(tensor: Tensor, index: int = 0) -> None:
    with torch.no_grad():
        tensor.view(-1)[index] = 7.0


def reordered(model: Kept) -> None:
    model.ordered.move_to_end("a")


CHANGES: dict[str, Callable[[Kept], Any]] = {
    "a parameter in place": lambda m: in_place(m.layer.weight),
    "a parameter by .data": lambda m: m.layer.weight.data.zero_(),
    "a parameter's storage": lambda m: setattr(m.layer.weight, "data", torch.zeros(2, 2)),
    "a parameter's dtype": lambda m: setattr(m.layer.weight, "data", m.layer.weight.data.double()),
    "another parameter": lambda m: setattr(m.layer, "weight", nn.Parameter(torch.zeros(2, 2))),
    "a parameter that is gone": lambda m: delattr(m.layer, "bias"),
    "a new parameter": lambda m: m.register_parameter("new", nn.Parameter(torch.zeros(1))),
    "a buffer": lambda m: in_place(m.state),
    "the sign of a zero": lambda m: m.state.data.abs_(),
    "a complex buffer": lambda m: m.complex.data.mul_(1j),
    "a plain tensor": lambda m: in_place(m.weight),
    "a plain tensor replaced": lambda m: setattr(m, "weight", torch.zeros(1)),
    "a gradient": lambda m: m.layer.weight.grad.zero_(),
    "a gradient that is gone": lambda m: setattr(m.layer.weight, "grad", None),
    "a gradient that was none": lambda m: setattr(m.layer.bias, "grad", torch.zeros(2)),
    "requires_grad": lambda m: m.layer.bias.requires_grad_(False),
    "the mode": lambda m: m.eval(),
    "the mode of a part": lambda m: m.layer.eval(),
    "a counter": lambda m: setattr(m, "counter", 4),
    "a new attribute": lambda m: setattr(m, "cache", 1),
    "an attribute that is gone": lambda m: delattr(m, "counter"),
    "a list's length": lambda m: m.items.append(1),
    "a list's item": lambda m: m.items.__setitem__(0, 2),
    "a dict": lambda m: m.names.update(b=2),
    "a dict's value": lambda m: m.names.update(a=2),
    "a queue": lambda m: m.last.rotate(1),
    "an order": reordered,
    "a count": lambda m: m.counts["b"],
    "a set": lambda m: m.chosen.add(3),
    "a hook": lambda m: m.register_forward_hook(lambda *a: None),
    "a backward hook": lambda m: m.register_full_backward_hook(lambda *a: None),
    "a gradient hook": lambda m: m.layer.weight.register_hook(lambda g: 2 * g),
}


def bits(tensor: Tensor) -> Any:
    return tensor.dtype, torch.view_as_real(
        tensor
    ).numpy().tobytes() if tensor.is_complex() else tensor.numpy().tobytes()


def description(model: Kept) -> Any:
    """Everything, with identities of what has one."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), "weight": model.weight}
    return (
        {n: (id(t), t.data_ptr(), bits(t.detach()), t.requires_grad) for n, t in tensors.items()},
        {n: (id(t.grad), None if t.grad is None else bits(t.grad)) for n, t in model.named_parameters()},
        [m.training for m in model.modules()], model.__dict__.get("counter"), sorted(model.__dict__),
        list(model.items), dict(model.names),
        list(model.last), list(model.ordered.items()), dict(model.counts), set(model.chosen),
        len(model._forward_hooks), len(model._backward_hooks), len(model.layer.weight._backward_hooks or ()),
    )  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
def test_each_change_alone_is_undone(kind: str) -> None:
    model = Kept()
    before = description(model)
    with restored(model):
        CHANGES[kind](model)
        assert description(model) != before
    assert description(model) == before


def test_nothing_is_written_where_nothing_changed() -> None:
    model = Kept()
    versions = [version_of(t) for t in (*model.parameters(), *model.buffers())]
    with restored(model):
        pass
    assert [version_of(t) for t in (*model.parameters(), *model.buffers())] == versions
    with torch.inference_mode():
        assert version_of(torch.ones(1)) == -1
    assert version_of(torch.ones(1).zero_()) == 1


def test_gradient_hooks_are_set_aside_and_come_back() -> None:
    model, called = Kept(), []
    model.layer.weight.register_hook(lambda g: called.append("tensor"))
    model.layer.bias.register_post_accumulate_grad_hook(lambda p: called.append("accumulated"))
    model.layer.register_full_backward_hook(lambda *a: called.append("module"))
    model.layer.register_full_backward_pre_hook(lambda *a: called.append("before"))

    with restored(model):
        torch.autograd.grad(model.layer(torch.ones(1, 2, requires_grad=True)).sum(), list(model.layer.parameters()))
        assert not called
    model.layer(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert sorted(called) == ["accumulated", "before", "module", "tensor"]


def test_tensors_of_inference_mode_are_replaced_meanwhile_once_each() -> None:
    with torch.inference_mode():
        shared = torch.ones(2)
    model = nn.Module()
    model.register_buffer("a", shared)
    model.register_buffer("b", shared)
    with restored(model):
        assert not model.a.is_inference() and model.a is model.b and model.a.equal(torch.ones(2))
    assert model.a is shared and model.b is shared


def test_everything_comes_back_after_an_exception_too() -> None:
    model = Kept()
    before = description(model)
    with pytest.raises(ZeroDivisionError), restored(model):
        in_place(model.layer.weight)
        raise ZeroDivisionError
    assert description(model) == before


DRAWS: dict[str, Callable[[], Any]] = {"torch": lambda: torch.rand(1), "numpy": np.random.rand, "python": random.random}


@pytest.mark.parametrize("kind", DRAWS)
def test_each_random_state_counts_and_comes_back(kind: str) -> None:
    for preserving in (preserved_random_state(), restored(nn.Linear(1, 1))):
        before = random_states()
        hash(before)
        with preserving:
            assert random_states() == before
            DRAWS[kind]()
            assert random_states() != before
        assert random_states() == before


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_waits_for_the_next_safe_point() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupts() as checkpoint:
        checkpoint()
        press()
        done.append("went on")
        checkpoint()
        done.append("never")
    assert done == ["went on"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_after_the_last_safe_point_is_not_forgotten() -> None:
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():
        press()
    with deferred_interrupts() as checkpoint:
        checkpoint()


def test_a_second_interrupt_does_not_wait() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():
        press()
        done.append("once")
        press()
        done.append("twice")
    assert done == ["once"]


def test_a_callers_own_handler_stays_where_it_is() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with deferred_interrupts() as checkpoint:
            press()
            checkpoint()
        assert seen == [signal.SIGINT]
        with uninterrupted():
            press()
            assert len(seen) == 1
        assert len(seen) == 2
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_must_be_finished_is_and_then_the_interrupt_comes() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            press()
            press()
            done.append("finished")
        done.append("never")
    assert done == ["finished"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_are_left_alone() -> None:
    done: list[str] = []

    def work() -> None:
        with deferred_interrupts() as checkpoint, uninterrupted():
            checkpoint()
            done.append("ran")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert done == ["ran"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler

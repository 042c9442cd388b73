"""Functions of torch that crash or have no second derivative run in another form during a session, and only then."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from layerhess.objective.kernels import plain_kernels

Gate = Callable[[Tensor], Tensor]


class _Gated(nn.Module):
    """Squeeze and excitation behind a normalisation of groups."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4)
        self.down, self.up, self.head = nn.Linear(4, 3), nn.Linear(3, 4), nn.Linear(4, 3)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.first(x)))
        scale = self.gate(3.0 * self.up(torch.tanh(self.down(x.mean((2, 3))))))
        return self.head((x * scale[:, :, None, None]).mean((2, 3)))


def _written_out(x: Tensor) -> Tensor:
    return (x + 3.0).clamp(0.0, 6.0) / 6.0


def _network(gate: Gate) -> _Gated:
    torch.manual_seed(0)
    return _Gated(gate).double()


X = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(6) % 3


def _dense(model: nn.Module) -> Tensor:
    """The Hessian by torch's double backward, contiguous and with the gate written out."""
    parameters = list(model.parameters())
    grads = torch.autograd.grad(F.cross_entropy(model(X), Y), parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in grads])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True) for entry in flat]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize(
    "gate",
    [F.hardsigmoid, nn.Hardsigmoid(), nn.Hardsigmoid(inplace=True), lambda x: F.hardsigmoid(x, inplace=True)],
    ids=["function", "module", "module in place", "function in place"],
)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_gates_and_groups_have_their_hessian_in_every_spelling_and_layout(gate: Gate, last: bool) -> None:
    model = _network(gate)
    x = X.contiguous(memory_format=torch.channels_last) if last else X
    if last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = lh.Hessian(lh.Objective(model, (x, Y), nn.CrossEntropyLoss())).to_dense()
    assert torch.allclose(found, _dense(_network(_written_out)), rtol=1e-9, atol=1e-12)


def test_a_bias_alone_may_be_differentiated_where_the_channels_are_last() -> None:
    """Outside, torch 2.13 ends the process here."""
    x = X.contiguous(memory_format=torch.channels_last)
    for weight in (None, torch.ones(2, dtype=torch.float64)):
        bias = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        with plain_kernels([torch.device("cpu")], nn.Linear(1, 1)):
            made = F.group_norm(x, 2, weight, bias)
            (slope,) = torch.autograd.grad(made.exp().sum(), bias)
        assert made.stride() == x.stride()
        expected = F.group_norm(X, 2).exp().sum((0, 2, 3))
        torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("n", [1, 3])
def test_instance_norms_gradient_does_not_depend_on_the_layout_of_what_comes_back(n: int) -> None:
    """Outside, torch 2.13 gives another one for a single example."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, 3, 2, 3, generator=generator, dtype=torch.float64).requires_grad_()
    weight, bias = (torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    mean, variance = torch.zeros(3).double(), torch.ones(3).double()
    expected = mean.clone(), variance.clone()
    with plain_kernels([torch.device("cpu")], nn.Linear(1, 1)):
        made = F.instance_norm(x, mean, variance, weight, bias)
        loss = made.flatten(2).transpose(1, 2)[:, -1].square().sum()
        found = torch.autograd.grad(loss, [x, weight, bias])
    centred = x - x.mean((2, 3), keepdim=True)
    normal = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    plain = normal * weight.view(3, 1, 1) + bias.view(3, 1, 1)
    torch.testing.assert_close(found, torch.autograd.grad(plain[:, :, 1, 2].square().sum(), [x, weight, bias]))
    torch.testing.assert_close(made, F.instance_norm(x, *expected, weight, bias))
    torch.testing.assert_close((mean, variance), expected)


@pytest.mark.parametrize(
    ("strided", "dims"),
    [(X.permute(0, 2, 3, 1), 4), (X.flatten(2).mT, 3), (X[..., None].permute(0, 2, 3, 4, 1), 5), (X[:, :, ::2], 4)],
    ids=["images", "sequences", "volumes", "a part"],
)
def test_the_layout_is_the_one_torch_leaves(strided: Tensor, dims: int) -> None:
    expected = F.group_norm(strided, 2)
    with plain_kernels([torch.device("cpu")], nn.Linear(1, 1)):
        made = F.group_norm(strided, 2)
    assert strided.ndim == dims and made.stride() == expected.stride()
    torch.testing.assert_close(made, expected)


def test_hardsigmoid_is_torchs_to_the_last_bit_and_its_kinks_are_flat() -> None:
    x = torch.linspace(-4.0, 4.0, 33).requires_grad_()
    with plain_kernels([torch.device("cpu")], nn.Linear(1, 1)):
        ours, changed = F.hardsigmoid(x), x.detach().clone()
        assert F.hardsigmoid(changed, inplace=True) is changed
    theirs = F.hardsigmoid(x)
    assert torch.equal(ours, theirs) and torch.equal(changed, theirs)
    assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (ours, theirs)))


def test_torch_is_as_it_was_after_the_last_of_several_sessions() -> None:
    before = torch.group_norm, torch.instance_norm, torch._C._nn.hardsigmoid, torch._C._nn.hardsigmoid_
    opened, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with plain_kernels([torch.device("cpu")], nn.Linear(1, 1)):
            opened.set()
            leave.wait(10.0)

    thread = threading.Thread(target=hold)
    with pytest.raises(KeyboardInterrupt), plain_kernels([torch.device("cpu")], nn.Linear(1, 1)):
        thread.start()
        assert opened.wait(10.0)
        raise KeyboardInterrupt
    assert torch.group_norm is not before[0]
    leave.set()
    thread.join()
    assert before == (torch.group_norm, torch.instance_norm, torch._C._nn.hardsigmoid, torch._C._nn.hardsigmoid_)

"""P from the optimizer's state, and its stability threshold, against update rules written out here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import layerhess as lh
from layerhess.monitor.preconditioner import preconditioner, torch_optimizer


def radius(rule: str, curvature: float, lr: float, b: float = 0.0, dampening: float = 0.0, decay: float = 0.0) -> float:
    """Spectral radius of one step of the rule on curvature/2 w^2 with P = 1; the state is (w, averaged gradient)."""
    w, m = np.array([1.0, 0.0]), np.array([0.0, 1.0])  # as rows: what they are made of
    g = curvature * w
    if rule == "average":  # Adam: m' = b m + (1 - b) g, w' = w - lr m' (AdamW: w shrinks first)
        m_next = b * m + (1.0 - b) * g
        w_next = (1.0 - lr * decay) * w - lr * m_next
    else:
        m_next = b * m + (1.0 - dampening) * g
        w_next = w - lr * (g + b * m_next if rule == "nesterov" else m_next)
    return float(np.abs(np.linalg.eigvals(np.stack([w_next, m_next]))).max())


def at_the_threshold(rule: str, threshold: float, **settings: float) -> tuple[float, float]:
    return radius(rule, threshold * (1 - 1e-4), **settings), radius(rule, threshold * (1 + 1e-4), **settings)


def one(cls, **settings):
    w = nn.Parameter(torch.ones(3))
    optimizer = cls([w], **settings)
    (w.square() * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    optimizer.step()
    return preconditioner(optimizer, {"w": w}), optimizer, w


CASES = [
    ("heavy ball", torch.optim.SGD, {"lr": 0.1}, {}),
    ("heavy ball", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, {"b": 0.9}),
    ("heavy ball", torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3}, {"b": 0.8, "dampening": 0.3}),
    ("nesterov", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}, {"b": 0.9}),
    ("average", torch.optim.Adam, {"lr": 0.01, "betas": (0.9, 0.999)}, {"b": 0.9}),
    ("average", torch.optim.Adam, {"lr": 0.01, "betas": (0.0, 0.99)}, {}),
    ("average", torch.optim.AdamW, {"lr": 0.01, "betas": (0.95, 0.99), "weight_decay": 0.0}, {"b": 0.95}),
    ("heavy ball", torch.optim.RMSprop, {"lr": 0.01}, {}),
    ("heavy ball", torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.7}, {"b": 0.7}),
]


@pytest.mark.parametrize(("rule", "cls", "settings", "of_rule"), CASES)
def test_the_rule_is_stable_just_below_the_threshold_and_unstable_just_above(rule, cls, settings, of_rule) -> None:
    found, _, _ = one(cls, **settings)
    below, above = at_the_threshold(rule, found.threshold, lr=settings["lr"], **of_rule)
    assert below < 1.0 < above


def test_decoupled_decay_moves_the_threshold_as_the_module_says() -> None:
    lr, decay, b = 0.01, 0.5, 0.9
    found, _, _ = one(torch.optim.AdamW, lr=lr, betas=(b, 0.999), weight_decay=decay)
    below, above = at_the_threshold("average", found.threshold * (1 - lr * decay / 2), lr=lr, b=b, decay=decay)
    assert below < 1.0 < above


@pytest.mark.parametrize("settings", [{"momentum": 0.0}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_torchs_own_sgd_shrinks_below_the_threshold_and_grows_above(settings) -> None:
    lr = 0.1
    w = nn.Parameter(torch.ones(1, dtype=torch.float64))
    threshold = preconditioner(torch.optim.SGD([w], lr=lr, **settings), {"w": w}).threshold
    sizes = []
    for curvature in (0.95 * threshold, 1.05 * threshold):
        w = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = torch.optim.SGD([w], lr=lr, **settings)
        for _ in range(400):
            optimizer.zero_grad()
            (curvature / 2 * w.square()).sum().backward()
            optimizer.step()
        sizes.append(abs(float(w.detach())))
    assert sizes[0] < 1e-2 and sizes[1] > 1e2


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.AdamW])
def test_the_preconditioner_of_adam_is_the_one_of_its_next_step(cls, amsgrad: bool) -> None:
    """The step is lr m / P up to the bias correction of m, which P has: m is read, and P computed backwards."""
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(5, dtype=torch.float64))
    optimizer = cls([w], lr=0.01, betas=(0.9, 0.95), eps=1e-3, weight_decay=0.0, amsgrad=amsgrad)
    for step in range(7):
        before = w.detach().clone()
        optimizer.zero_grad()
        (w.square() * torch.arange(1.0, 6.0).double() * (1 + step % 3)).sum().backward()
        optimizer.step()
    moved = before - w.detach()
    found = preconditioner(optimizer, {"w": w})
    p = found.inverse_roots["w"] ** -2
    torch.testing.assert_close(moved, 0.01 * optimizer.state[w]["exp_avg"] / p, rtol=1e-9, atol=0.0)
    assert not found.plain


@pytest.mark.parametrize("centered", [False, True])
def test_the_preconditioner_of_rmsprop_is_the_one_of_its_step(centered: bool) -> None:
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(5, dtype=torch.float64))
    optimizer = torch.optim.RMSprop([w], lr=0.01, alpha=0.9, eps=1e-3, centered=centered)
    for step in range(6):
        before = w.detach().clone()
        optimizer.zero_grad()
        (w.square() * torch.arange(1.0, 6.0).double() * (1 + step % 3)).sum().backward()
        optimizer.step()
    assert w.grad is not None
    p = preconditioner(optimizer, {"w": w}).inverse_roots["w"] ** -2
    torch.testing.assert_close(before - w.detach(), 0.01 * w.grad / p, rtol=1e-9, atol=0.0)


def test_learning_rates_of_groups_are_in_the_preconditioner() -> None:
    """Unstable where lr_i h_i = 2, whichever group it is in."""
    a, b = (nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.02}])
    found = preconditioner(optimizer, {"a": a, "b": b})
    scaled = {name: float(root) ** 2 for name, root in found.inverse_roots.items()}
    assert 20.0 * scaled["a"] / found.threshold == pytest.approx(1.0)  # h = 2 / lr
    assert 100.0 * scaled["b"] / found.threshold == pytest.approx(1.0)
    assert not found.plain


def test_what_the_optimizer_does_not_move_has_no_part() -> None:
    a, b, c, d = (nn.Parameter(torch.ones(2)) for _ in range(4))
    optimizer = torch.optim.Adam([{"params": [a, b]}, {"params": [c], "lr": 0.0}], lr=0.1)
    a.sum().backward()  # b has no gradient, c no rate, d no group
    c.sum().backward()
    optimizer.step()
    found = preconditioner(optimizer, {"a": a, "b": b, "c": c, "d": d})
    assert [bool((root == 0).all()) for root in found.inverse_roots.values()] == [False, True, True, True]


def test_a_rate_of_zero_everywhere_has_an_infinite_threshold() -> None:
    found, _, _ = one(torch.optim.SGD, lr=0.0)
    assert found.threshold == math.inf and found.plain


def test_wrappers_are_taken_off() -> None:
    class Wrapper:
        def __init__(self, optimizer) -> None:
            self.optimizer = optimizer

    inner = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    assert torch_optimizer(Wrapper(Wrapper(inner))) is torch_optimizer(Wrapper(inner)) is inner


def refused(optimizer, parameters=None) -> str:
    with pytest.raises(lh.InputError) as caught:
        preconditioner(torch_optimizer(optimizer), parameters or {})
    assert caught.value.what_to_do
    return str(caught.value)


def test_what_has_no_known_threshold_is_refused_in_words() -> None:
    w, v = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    assert "Adagrad is not known" in refused(torch.optim.Adagrad([w]))
    assert "int is not known" in refused(3)
    assert "maximises" in refused(torch.optim.SGD([w], lr=0.1, maximize=True))
    groups = [{"params": [w], "momentum": 0.9}, {"params": [v], "momentum": 0.0}]
    assert "different momentum" in refused(torch.optim.SGD(groups, lr=0.1))
    groups = [{"params": [w], "betas": (0.9, 0.99)}, {"params": [v], "betas": (0.8, 0.99)}]
    assert "different momentum" in refused(torch.optim.Adam(groups))
    assert "none of the objective's" in refused(torch.optim.SGD([w], lr=0.1), {"v": v})

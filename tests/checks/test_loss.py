"""Is the loss one function of the parameters, and a sum over its examples? Faults of every kind and size."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from checked_network import Moving, X, Y, mlp, objective
from layerhess.checks.forward_trace import Trace, trace
from layerhess.checks.loss import check_additivity, check_determinism
from layerhess.checks.randomness import randomness_refused, refuse_state_that_follows, repeats
from layerhess.errors import InputError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_values_repeat_up_to_the_order_of_summation(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    assert repeats(2.0, 2.0 * (1 + 99 * eps), dtype) and not repeats(2.0, 2.0 * (1 + 102 * eps), dtype)
    assert repeats(-2.0, -2.0 * (1 + 99 * eps), dtype) and not repeats(1e-9, -1e-9, dtype)
    assert repeats(0.0, 0.0, dtype) and repeats(math.inf, math.inf, dtype) and not repeats(math.nan, math.nan, dtype)


class Random(nn.Module):
    def __init__(self, size: float, train_only: bool) -> None:
        super().__init__()
        self.size, self.train_only = size, train_only

    def forward(self, x: Tensor) -> Tensor:
        return x + self.size * torch.randn(x.shape).to(x) if self.training or not self.train_only else x


@pytest.mark.parametrize("train_only", [True, False])
def test_a_random_loss_names_its_modules_and_whether_eval_mode_helps(train_only: bool) -> None:
    made = objective(nn.Sequential(mlp(), Random(0.1, train_only)).double())
    before = torch.get_rng_state()
    with made.session():
        with pytest.raises(InputError, match="the loss is random") as caught:
            check_determinism(made, (X, Y), trace(made, (X, Y)))
        refusal = randomness_refused(made, (X, Y), 1.0, 2.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert caught.value.where == refusal.where == "active randomness in 1 (Random)" and "gave 1, then 2" in str(refusal)
    assert ("mode='eval'" in caught.value.what_to_do) is train_only and made.model.training


def test_a_tiny_randomness_is_no_rounding_and_a_state_is_called_one() -> None:
    made = objective(nn.Sequential(mlp(), Random(1e-15, False)).double())
    with made.session(), pytest.raises(InputError, match="the loss is random"):
        check_determinism(made, (X, Y), Trace())
    state = objective(nn.Sequential(mlp(), Moving()).double())
    with state.session():
        seen = trace(state, (X, Y))
        with pytest.raises(InputError, match="changes from call to call") as caught:
            check_determinism(state, (X, Y), seen)
    assert seen.stateful == ["1"] and caught.value.where == "a state kept by 1 (Moving)"
    fixed = objective()
    with fixed.session():
        assert check_determinism(fixed, (X, Y), trace(fixed, (X, Y))).detail.endswith("to 0.0e+00")
        with pytest.raises(InputError, match="changes parameters") as caught:
            check_determinism(fixed, (X, Y), Trace(changed=["a", "b"]))
    assert caught.value.where == "a, b"


def test_a_state_that_follows_the_weights_is_refused_and_the_weights_come_back() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5)), nn.Linear(5, 3)).double()
    made = objective(model)
    plain = objective()
    with made.session(), plain.session():
        for _ in range(50):
            made.terms((X, Y))
        before = [p.detach().clone() for p in made.parameters.values()]
        with pytest.raises(InputError, match="a state that every call adapts") as caught:
            refuse_state_that_follows(made, (X, Y), ["0"])
        assert all(torch.equal(p, old) for p, old in zip(made.parameters.values(), before, strict=True))
        refuse_state_that_follows(plain, (X, Y), ["0"])
    assert caught.value.where == "the buffers of 0"


def test_a_batch_is_held_against_its_parts() -> None:
    added = objective()
    for made, uncut, words in (
        (added, "", "equals the sum over its two parts"),
        (objective(data=[(X, torch.tensor(1))], loss=lambda o, t: o.sum()), "the sample cannot be split", "not applic"),
        (
            objective(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()),
            "BatchNorm runs in train mode",
            "not app",
        ),
        (
            objective(loss=lh.batch_loss(lambda m, b: (m(b[0]).sum() ** 2, 1))),
            "is not the sum over its examples",
            "split",
        ),
    ):
        with made.session():
            found = check_additivity(made, [next(iter(made.batches()))])
        assert (found.uncut == uncut or uncut in found.uncut) and words in found.check.detail
        assert bool(found.note) is (words == "split") and found.check.passed is (words != "split")
    bad = lh.batch_loss(lambda m, b: (m(b[0]).sum() ** 2, 1))
    for options, words in (
        ({"batch_size": 4}, "of a batch is not the sum over its parts"),
        (
            {"data": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 9, shuffle=True)},
            "the loader shuffles",
        ),
    ):
        made = objective(loss=bad, **options)
        with made.session(), pytest.raises(InputError, match=words):
            check_additivity(made, [(X, Y)])


def test_what_differs_between_a_batch_and_its_parts_is_told() -> None:
    """With a count that is wrong alone, the two sums are the same figure."""
    for count, words in ((lambda n: n, "loss of a batch"), (lambda n: 7, r"count of a batch .*\(7 against 14\)")):
        made = objective(
            loss=lh.batch_loss(lambda m, b, count=count: (m(b[0]).sum() ** (1 + (count(1) == 1)), count(len(b[1])))),
            batch_size=4,
        )
        with made.session(), pytest.raises(InputError, match=words) as caught:
            check_additivity(made, [(X, Y)])
        one, other = re.findall(r"\((\S+) against (\S+)\)", str(caught.value))[0]
        assert one != other

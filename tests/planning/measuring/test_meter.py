"""Increases of the loss against explicit sums over examples; the model is as it was, whatever happens."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import layerhess as lh
from ctrl_c import press_ctrl_c
from layerhess.errors import CheckError, InputError
from layerhess.planning.measuring.meter import Meter, Room, fixed, ratio
from layerhess.planning.weights.applied import changed
from layerhess.results.options import Quantize, option_of
from witness import untouched

CE = nn.CrossEntropyLoss()
X = torch.randn(17, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (17,), generator=torch.Generator().manual_seed(1))
Y[3] = Y[11] = -100
CHOICES = [{"0.weight": Quantize(2)}, {"0.weight": Quantize(3), "2.weight": Quantize(2)}]


def mlp(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def with_choice(model: nn.Module, choice: Any) -> nn.Module:
    """A copy with the changed weights."""
    other = copy.deepcopy(model)
    weights = dict(other.named_parameters())
    with torch.no_grad():
        for name, option in choice.items():
            weights[name].copy_(changed(option, weights[name]))
    return other


def losses(model: nn.Module, weight: Tensor | None = None) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        found = F.cross_entropy(
            model(X).double(), Y, weight=None if weight is None else weight.double(), reduction="none"
        )
    return found.numpy()


def test_increases_and_their_errors_are_those_of_paired_differences_of_examples() -> None:
    weight = torch.tensor([0.5, 2.0, 1.0])
    model = mlp()
    made = lh.Objective(model, [(X[:7], Y[:7]), (X[7:8], Y[7:8]), (X[8:], Y[8:])], nn.CrossEntropyLoss(weight))
    with untouched(model), made.session():
        meter = Meter(made)
        found = meter.measure(CHOICES)
        scores = [meter.increase(one) for one in found]
        between = meter.increase(found[1], found[0])
    counts = np.where(Y.numpy() == -100, 0.0, weight.double().numpy()[np.maximum(Y.numpy(), 0)])
    before = losses(model, weight)
    apart = [losses(with_choice(model, choice), weight) - before for choice in CHOICES]
    n = len(X)
    for score, own in [*zip(scores, apart, strict=True), (between, apart[1] - apart[0])]:
        value = own.sum() / counts.sum()
        assert score.value == pytest.approx(value, rel=1e-5)
        # Cochran 1977, (6.13): the variance of a ratio estimator, written with the mean count.
        rest = own - value * counts
        variance = (rest**2).sum() / (n - 1) / (n * counts.mean() ** 2)
        assert score.error == pytest.approx(math.sqrt(variance), rel=1e-5)
    assert meter.loss == pytest.approx(before.sum() / counts.sum(), rel=1e-6)
    assert meter.forwards == pytest.approx(3.0)


def test_the_error_of_a_ratio_is_that_of_the_jackknife() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 4, 2000).astype(float)
    sums = counts * rng.standard_normal(2000) + 0.3 * counts
    left_out = np.array([(sums.sum() - s) / (counts.sum() - c) for s, c in zip(sums, counts, strict=True)])
    jackknife = math.sqrt((1999 / 2000) * ((left_out - left_out.mean()) ** 2).sum())
    assert ratio(sums, counts).error == pytest.approx(jackknife, rel=2e-3)
    summed = ratio(sums, None)
    assert summed.value == pytest.approx(sums.sum()) and summed.error == pytest.approx(
        math.sqrt(2000) * sums.std(ddof=1)
    )
    assert math.isnan(ratio(sums[:1], counts[:1]).error) and math.isnan(ratio(sums, 0.0 * counts).value)


def test_batches_of_any_size_give_the_numbers_of_one() -> None:
    found = []
    for cuts in ([17], [5, 1, 11], [1] * 17):
        data = list(zip(X.split(cuts), Y.split(cuts), strict=True))
        made = lh.Objective(mlp(torch.float64), [(x.double(), y) for x, y in data], CE)
        with made.session():
            meter = Meter(made)
            one = meter.measure(CHOICES[:1], outputs=True)[0]
            found.append([*vars(meter.increase(one)).values(), *vars(meter.divergence(one)).values()])
            assert sum(len(part) for part in one.outputs) == len(X)
    np.testing.assert_allclose(found[1:], [found[0]] * 2, rtol=1e-12)


def test_kl_is_from_the_float_model_and_leaves_ignored_targets_out() -> None:
    model = mlp()
    made = lh.Objective(model, [(X[:7], Y[:7]), (X[7:], Y[7:])], CE)
    with made.session():
        meter = Meter(made)
        score = meter.divergence(meter.measure(CHOICES[:1])[0])
    with torch.no_grad():
        z, w = model(X).double().numpy(), with_choice(model, CHOICES[0])(X).double().numpy()
    p, q = (np.exp(a) / np.exp(a).sum(1, keepdims=True) for a in (z, w))
    apart = (p * np.log(p / q)).sum(1)[Y.numpy() != -100]
    assert score.value == pytest.approx(apart.mean(), rel=1e-5)
    kept = (Y.numpy() != -100).astype(float)
    rest = np.zeros(17)
    rest[kept > 0.0] = apart - apart.mean()
    assert score.error == pytest.approx(math.sqrt(17 / 16 * (rest**2).sum()) / 15, rel=1e-5)
    regression = lh.Objective(nn.Linear(4, 1), (X, X[:, :1]), nn.MSELoss())
    with regression.session():
        meter = Meter(regression)
        assert math.isnan(meter.divergence(meter.measure([{"weight": Quantize(2)}])[0]).value)


def test_changes_of_the_outputs_are_kept() -> None:
    model = mlp()
    made = lh.Objective(model, [(X[:7], Y[:7]), (X[7:], Y[7:])], CE)
    with made.session():
        (one,) = Meter(made).measure(CHOICES[1:], outputs=True)
    with torch.no_grad():
        wanted = with_choice(model, CHOICES[1])(X) - model(X)
    torch.testing.assert_close(torch.cat(one.outputs), wanted, rtol=1e-5, atol=1e-6)


def test_a_sum_is_not_divided() -> None:
    made = lh.Objective(mlp(), (X, Y), nn.CrossEntropyLoss(reduction="sum"))
    with made.session():
        meter = Meter(made)
        score = meter.increase(meter.measure(CHOICES[:1])[0])
    apart = losses(with_choice(mlp(), CHOICES[0])) - losses(mlp())
    assert score.value == pytest.approx(apart.sum(), rel=1e-5)
    assert score.error == pytest.approx(math.sqrt(17) * apart.std(ddof=1), rel=1e-5)


# -- what can go wrong ----------------------------------------------------------------------------------------------


class Failing(nn.Module):
    """Raises, or is interrupted, from one of its forward passes on."""

    def __init__(self, number: int, act: Callable[[], None]) -> None:
        super().__init__()
        self.inner, self.number, self.act = mlp(), number, act

    def forward(self, x: Tensor) -> Tensor:
        self.number -= 1
        if self.number <= 0:
            self.act()
        return self.inner(x)


def broken() -> None:
    raise ValueError("no such kernel")


@pytest.mark.parametrize("act", [broken, press_ctrl_c], ids=["raises", "ctrl-c"])
@pytest.mark.usefixtures("ctrl_c_raises")
@pytest.mark.parametrize("number", [3, 6])  # of the float model one for each of two batches, one more of its check
def test_the_model_is_as_it_was_after_an_exception(act: Callable[[], None], number: int) -> None:
    model = Failing(number, act)
    made = lh.Objective(model, [(X[:7], Y[:7]), (X[7:], Y[7:])], CE)
    model_before = {name: value.clone() for name, value in model.state_dict().items()}
    choices = [{f"inner.{name}": option for name, option in choice.items()} for choice in CHOICES]
    with pytest.raises((ValueError, KeyboardInterrupt)), made.session():
        Meter(made).measure(choices)
    assert all(torch.equal(value, model_before[name]) for name, value in model.state_dict().items())


def test_batch_norm_in_training_is_measured_with_its_own_batches_and_comes_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).train()
    made = lh.Objective(model, (X, Y), CE)
    with untouched(model), made.session():
        meter = Meter(made)
        meter.refuse_random()
        score = meter.increase(meter.measure(CHOICES[:1])[0])
    apart = losses(with_choice(model, CHOICES[0])) - losses(copy.deepcopy(model))
    assert score.value == pytest.approx(apart.sum() / 15, rel=1e-5)


def test_active_dropout_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)).train()
    made = lh.Objective(model, (X, Y), CE)
    with (
        untouched(model),
        pytest.raises(CheckError, match="another when it is computed again") as caught,
        made.session(),
    ):
        Meter(made).refuse_random()
    assert "Dropout" in str(caught.value) or "1" in caught.value.where
    off = lh.Objective(model, (X, Y), CE, mode="eval")
    with off.session():
        Meter(off).refuse_random()


class Changing:
    """Batches that are others in every pass."""

    def __init__(self, how: str) -> None:
        self.how, self.passes = how, 0

    def __iter__(self) -> Any:
        self.passes += 1
        later = self.passes > 1
        if self.how == "targets":
            yield X, (Y + later) % 3
        elif self.how == "fewer":
            yield from [(X[:7], Y[:7]), (X[7:], Y[7:])][: 1 if later else 2]
        elif self.how == "more":
            yield from [(X[:7], Y[:7]), (X[7:], Y[7:])][: 2 if later else 1]
        else:
            yield (X[:9], Y[:9]) if later else (X, Y)


CHANGES = [(how, known) for how in ("fewer", "more", "smaller") for known in (True, False)]


@pytest.mark.parametrize(("how", "known"), [("targets", True), *CHANGES])  # what a function compares with is not known
def test_data_that_changes_is_refused(how: str, known: bool) -> None:
    loss: Any = CE if known else lh.batch_loss(lambda model, batch: (model(batch[0]).square().sum(), len(batch[0])))
    made = lh.Objective(mlp(), Changing(how), loss)
    with pytest.raises(InputError, match="changed between two passes") as caught, made.session():
        Meter(made).measure(CHOICES)
    assert "shuffle=False" in caught.value.what_to_do


class Augmented:
    """The same examples with other noise in every pass."""

    def __iter__(self) -> Any:
        yield X + 0.01 * torch.randn_like(X), Y


def test_random_augmentation_is_refused() -> None:
    made = lh.Objective(mlp(), Augmented(), CE)
    with pytest.raises(InputError, match="the inputs of batch 0 are others"), made.session():
        Meter(made).refuse_random()


def test_a_loader_that_shuffles_is_read_once() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True)
    made, note = fixed(lh.Objective(mlp(), loader, CE))
    assert "shuffles" in note and len(made.data) == 4
    with made.session():
        meter = Meter(made)
        score = meter.increase(meter.measure(CHOICES[:1])[0])
    apart = losses(with_choice(mlp(), CHOICES[0])) - losses(mlp())
    assert score.value == pytest.approx(apart.sum() / 15, rel=1e-5)
    steady = lh.Objective(mlp(), [(X, Y)], CE)
    assert fixed(steady) == (steady, "")


def huge(weight: Tensor) -> Tensor:
    return weight * 1e25


@pytest.mark.parametrize("loss", [nn.MSELoss(), lambda z, y: (z - y).pow(2).mean()], ids=["criterion", "callable"])
def test_an_option_whose_loss_is_no_number_says_so_and_the_others_are_measured(loss: Any) -> None:
    model, y = mlp(), torch.randn(17, 3, generator=torch.Generator().manual_seed(2))
    made = lh.Objective(model, [(X[:7], y[:7]), (X[7:], y[7:])], loss)
    with untouched(model), made.session():
        meter = Meter(made)
        bad, good = meter.measure([{"2.weight": option_of(huge)}, {"2.weight": Quantize(4)}], outputs=True)
        assert bad.why == "the loss is NaN or infinite" and not good.why
        assert meter.increase(bad).value == math.inf and math.isfinite(meter.increase(good).value)
        assert math.isnan(meter.increase(bad, bad).value) and math.isnan(meter.increase(good, bad).value)
        (again,) = meter.measure([{"2.weight": Quantize(4)}])
    np.testing.assert_array_equal(again.losses, good.losses)
    with torch.no_grad():
        apart = ((with_choice(model, {"2.weight": Quantize(4)})(X) - y).pow(2) - (model(X) - y).pow(2)).mean()
    assert meter.increase(good).value == pytest.approx(float(apart), rel=1e-4)


def test_a_models_own_loss_that_becomes_nan_puts_the_option_out_and_nothing_else() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=23, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    ).eval()
    ids = torch.randint(0, 23, (3, 7), generator=torch.Generator().manual_seed(0))
    made = lh.Objective(model, {"input_ids": ids, "labels": ids})
    name = "transformer.wpe.weight"
    with untouched(model), made.session():
        meter = Meter(made)

        def enormous(weight: Tensor) -> Tensor:
            return torch.full_like(weight, 3e38) * torch.arange(weight.shape[1]).cos().sign()

        bad, good = meter.measure([{name: option_of(enormous)}, {name: Quantize(4)}], outputs=True)
        again = meter.measure([{name: Quantize(4)}])[0]
    assert bad.why and not good.why and len(good.losses) == 3
    np.testing.assert_array_equal(again.losses, good.losses)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = mlp(dtype)
    made = lh.Objective(model, (X.to(dtype), Y), CE)
    with untouched(model), made.session():
        meter = Meter(made)
        (one,) = meter.measure(CHOICES[:1], outputs=True)
        score = meter.increase(one)
    other = with_choice(model, CHOICES[0])
    with torch.no_grad():
        before, after = (F.cross_entropy(m(X.to(dtype)).double(), Y) for m in (model, other))
    assert score.value == pytest.approx(float(after - before), rel=1e-10)
    assert one.outputs[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_tied_weights_change_together_and_frozen_ones_stay() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.middle, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.embedding.weight
            self.middle.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.middle(self.embedding(x)).tanh())

    model, ids = Tied(), torch.arange(9)
    made = lh.Objective(model, (ids, ids.roll(1)), CE)
    with untouched(model), made.session():
        meter = Meter(made)
        score = meter.increase(meter.measure([{"embedding.weight": Quantize(3)}])[0])
    weight = changed(Quantize(3), model.embedding.weight.detach())
    with torch.no_grad():
        logits = [model.middle(w[ids]).tanh() @ w.T for w in (model.embedding.weight, weight)]
        before, after = (F.cross_entropy(z.double(), ids.roll(1)) for z in logits)
    assert score.value == pytest.approx(float(after - before), rel=1e-5)


def test_a_sample_of_rows_is_kept_where_not_all_fit() -> None:
    model = mlp()
    made = lh.Objective(model, [(X[:7], Y[:7]), (X[7:], Y[7:])], CE)
    with made.session():
        meter = Meter(made, room=Room(outputs=7 * 3 * 4 * 2.0, copies=1.0, batches=2))
        kept = meter.float_model
        assert kept.share == pytest.approx(0.5)
        with torch.no_grad():
            whole = model(X)
        parts = []
        for rows, output, first in zip(kept.rows, kept.outputs, (0, 7), strict=True):
            assert rows is not None and output is not None
            assert torch.equal(output, whole[first + rows]) and (Y[first + rows] != -100).all()
            parts.append(first + rows)
        (one,) = meter.measure(CHOICES[:1], outputs=True)
        moved = with_choice(model, CHOICES[0])(X).detach() - whole
        torch.testing.assert_close(torch.cat(one.outputs), moved[torch.cat(parts)], rtol=1e-5, atol=1e-6)
        assert len(one.losses) == 17  # losses are of all rows


def test_neighbours_are_joined_where_there_are_very_many_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    made = lh.Objective(mlp(), (X, Y), CE)
    with made.session():
        meter = Meter(made)
        whole = meter.increase(meter.measure(CHOICES[:1])[0])
        monkeypatch.setattr("layerhess.planning.measuring.meter.MOST_UNITS", 6)
        meter = Meter(made)
        (one,) = meter.measure(CHOICES[:1])
        assert len(one.losses) == len(meter.float_model.losses) == len(meter.float_model.counts) == 6
        joined = meter.increase(one)
    assert joined.value == pytest.approx(whole.value, rel=1e-12)
    assert 0.2 * whole.error < joined.error < 5.0 * whole.error


def test_what_does_not_fit_into_memory_is_not_held() -> None:
    """Of a loss of the user's own no rows can be taken, and its batches hold the inputs."""
    made = lh.Objective(mlp(), [(X[:7], Y[:7].abs() % 3), (X[7:], Y[7:].abs() % 3)], lambda z, y: F.cross_entropy(z, y))
    with made.session():
        meter = Meter(made, room=Room(outputs=10.0))
        kept = meter.float_model
        assert not kept.has_outputs and kept.outputs == kept.judges == kept.targets == [None, None]
        (one,) = meter.measure(CHOICES[:1], outputs=True)
        assert one.outputs == () and len(one.losses) == 17 and one.kl is None


def test_nothing_changed_is_no_increase() -> None:
    made = lh.Objective(mlp(), (X, Y), CE)
    with made.session():
        meter = Meter(made)
        (one,) = meter.measure([{}])
        assert (meter.increase(one).value, meter.increase(one).error) == (0.0, 0.0)

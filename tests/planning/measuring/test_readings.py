"""Losses example by example: against the criterion called on every example alone, and sums that are the loss itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from layerhess.planning.measuring import judges
from layerhess.planning.measuring.readings import PIECES, Reader, Reading

N, C = 7, 4


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, ignored: bool = False) -> Tensor:
    found = torch.randint(0, C, shape, generator=torch.Generator().manual_seed(2))
    if ignored:
        found.view(-1)[::3] = -100
    return found


class Given(nn.Module):
    """Its output is what it holds for each example, times a weight that is 1."""

    def __init__(self, output: Tensor, then: Callable[[Tensor], Tensor] = lambda z: z) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=output.dtype))
        self.output, self.then = output, then

    def forward(self, index: Tensor) -> Tensor:
        return self.then(self.output[index] * self.weight)


def objective(output: Tensor, target: Any, loss: Any, then: Callable[[Tensor], Tensor] = lambda z: z) -> lh.Objective:
    return lh.Objective(Given(output, then), (torch.arange(len(output)), target), loss)


def read(made: lh.Objective) -> tuple[Reader, Reading]:
    reader = Reader(made.evaluation)
    with made.session():
        (batch,) = made.batches()
        return reader, reader.read(made.model, batch)


PROBABILITIES = drawn(N, C, seed=5).softmax(1)
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.25])
CASES: dict[str, tuple[nn.Module, Tensor, Tensor, Callable[[Tensor], Tensor]]] = {
    "cross entropy": (nn.CrossEntropyLoss(), drawn(N, C), classes(N), lambda z: z),
    "ignored targets": (nn.CrossEntropyLoss(ignore_index=2), drawn(N, C), classes(N), lambda z: z),
    "class weights, smoothed": (
        nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.1), drawn(N, C), classes(N, ignored=True), lambda z: z,
    ),
    "probabilities": (nn.CrossEntropyLoss(WEIGHTS), drawn(N, C), PROBABILITIES, lambda z: z),
    "pixels": (nn.CrossEntropyLoss(WEIGHTS), drawn(N, C, 2, 3), classes(N, 2, 3, ignored=True), lambda z: z),
    "summed": (nn.CrossEntropyLoss(reduction="sum"), drawn(N, C), classes(N, ignored=True), lambda z: z),
    "nll": (nn.NLLLoss(WEIGHTS), drawn(N, C), classes(N, ignored=True), lambda z: F.log_softmax(z, 1)),
    "mse": (nn.MSELoss(), drawn(N, 3), drawn(N, 3, seed=3), lambda z: z),
    "mse, one target for all columns": (nn.MSELoss(), drawn(N, 3), drawn(N, 1, seed=3), lambda z: z),
    "mse summed": (nn.MSELoss(reduction="sum"), drawn(N), drawn(N, seed=3), lambda z: z),
    "bce with logits": (
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0, 1.0, 0.5])), drawn(N, 3), drawn(N, 3, seed=3).sigmoid(),
        lambda z: z,
    ),
    "bce": (nn.BCELoss(), drawn(N, 3), drawn(N, 3, seed=3).sigmoid(), torch.sigmoid),
    "huber": (nn.HuberLoss(delta=0.3), drawn(N, 3), drawn(N, 3, seed=3), lambda z: z),
    "smooth l1": (nn.SmoothL1Loss(), drawn(N, 3), drawn(N, 3, seed=3), lambda z: z),
    "poisson": (nn.PoissonNLLLoss(), drawn(N, 3), drawn(N, 3, seed=3).abs().round(), lambda z: z),
    "kl": (nn.KLDivLoss(reduction="batchmean"), drawn(N, C), PROBABILITIES, lambda z: F.log_softmax(z, 1)),
    "soft margin": (nn.SoftMarginLoss(), drawn(N, 3), drawn(N, 3, seed=3).sign(), lambda z: z),
    "multi margin": (nn.MultiMarginLoss(), drawn(N, C), classes(N), lambda z: z),
    "multi label": (nn.MultiLabelSoftMarginLoss(), drawn(N, C), drawn(N, C, seed=3).sign().relu(), lambda z: z),
}  # fmt: skip


def alone(loss: nn.Module, z: Tensor, y: Tensor) -> float:
    """The loss sum of one example, from torch's own criterion in float64."""
    own = {name: getattr(loss, name) for name in getattr(loss, "__constants__", ()) if hasattr(loss, name)}
    own |= {name: value.double() for name, value in loss.named_buffers()}
    own.pop("size_average", None), own.pop("reduce", None)
    own["reduction"] = "sum"
    if isinstance(loss, nn.MultiLabelSoftMarginLoss):  # torch's sum is of the means over classes
        own = {"reduction": "sum"}
    return float(type(loss)(**own)(z.double(), y.double() if y.is_floating_point() else y))


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", CASES)
def test_every_example_has_the_loss_it_has_alone(name: str) -> None:
    loss, output, target, then = CASES[name]
    made = objective(output, target, loss, then)
    reader, reading = read(made)
    assert not reader.coarse and reading.judge is not None and reading.output is not None
    wanted = [alone(loss, then(output[i : i + 1]), target[i : i + 1]) for i in range(N)]
    np.testing.assert_allclose(reading.losses.numpy(), wanted, rtol=1e-6, atol=1e-7)
    with made.session():
        (batch,) = made.batches()
        total, count = made.terms(batch)
    assert float(reading.losses.sum()) == pytest.approx(float(total.detach()), rel=1e-5)
    assert float(reading.counts.sum()) == pytest.approx(count, rel=1e-12)
    if not made.evaluation.is_sum:  # torch's own mean
        mean = float(loss(then(output), target))
        assert float(reading.losses.sum() / reading.counts.sum()) == pytest.approx(mean, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", CASES)
def test_several_outputs_are_judged_as_each_alone_and_sums_carry_the_gradient(name: str) -> None:
    loss, output, target, then = CASES[name]
    _, reading = read(objective(output, target, loss, then))
    assert reading.judge is not None
    stacked = torch.stack([then(output), then(output * 0.5)]).requires_grad_()
    found = reading.judge.losses(stacked.detach())
    assert found.shape == (2, N)
    for row, z in zip(found, (output, output * 0.5), strict=True):
        wanted = [alone(loss, then(z[i : i + 1]), target[i : i + 1]) for i in range(N)]
        np.testing.assert_allclose(row.numpy(), wanted, rtol=1e-6, atol=1e-7)
    sums = reading.judge.sums(stacked)
    torch.testing.assert_close(sums.detach().cpu(), found.sum(1), rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(sums.sum(), stacked)
    leaf = then(output).detach().double().requires_grad_()
    summed = sum(_one(loss, leaf[i : i + 1], target[i : i + 1]) for i in range(N))
    (wanted_slope,) = torch.autograd.grad(summed, leaf)
    torch.testing.assert_close(slope[0].double(), wanted_slope, rtol=1e-5, atol=1e-7)


def _one(loss: nn.Module, z: Tensor, y: Tensor) -> Any:
    copied = lh.Objective(nn.Linear(1, 1), (torch.ones(1, 1), torch.ones(1, 1)), loss).evaluation
    criterion = copied.criterion.to(torch.float64, torch.device("cpu"))  # type: ignore[attr-defined]
    z = (
        F.log_softmax(z, 1) if isinstance(loss, (nn.NLLLoss, nn.KLDivLoss)) else z
    )  # of log-probabilities: no change, but in the slope
    return criterion(z, y.double() if y.is_floating_point() else y)[0]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", CASES)
def test_rows_of_an_output_can_be_judged_alone(name: str) -> None:
    loss, output, target, then = CASES[name]
    _, reading = read(objective(output, target, loss, then))
    assert reading.judge is not None and reading.output is not None
    rows = torch.tensor([1, 4, 6])
    judge = reading.judge.taken(rows)
    assert judge is not None
    found = judge.losses(reading.output[rows][None])[0]
    torch.testing.assert_close(found, reading.losses[rows], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(judge.counts, reading.counts[rows], rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("name", ["class weights, smoothed", "pixels", "bce with logits", "mse"])
def test_large_outputs_are_judged_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, output, target, then = CASES[name]
    _, reading = read(objective(output, target, loss, then))
    assert reading.judge is not None
    stacked = torch.stack([output, 2.0 * output])
    whole, apart = reading.judge.losses(stacked), reading.judge.divergence(output, 2.0 * output)
    monkeypatch.setattr(judges, "AT_ONCE", 3 * output[0].numel())
    torch.testing.assert_close(reading.judge.losses(stacked), whole, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(reading.judge.sums(stacked).cpu(), whole.sum(1), rtol=1e-14, atol=0.0)
    again = reading.judge.divergence(output, 2.0 * output)
    assert (apart is None) == (again is None) == (name == "mse")
    if apart is not None and again is not None:
        torch.testing.assert_close(again, apart, rtol=1e-14, atol=0.0)


def test_one_target_for_all_rows_is_one_unit_even_where_its_length_is_the_number_of_rows() -> None:
    output, target = drawn(3, 3), drawn(3, seed=3)
    _, reading = read(objective(output, target, nn.MSELoss()))
    wanted = float(((output.double() - target.double()) ** 2).sum())
    assert reading.judge is not None
    np.testing.assert_allclose(reading.losses.sum(), wanted, rtol=1e-6)
    both = reading.judge.losses(torch.stack([output, output]))
    np.testing.assert_allclose(both.sum(1), [wanted, wanted], rtol=1e-6)
    assert reading.judge.taken(torch.tensor([1])) is None


def test_kl_is_a_sum_over_predictions_that_take_part() -> None:
    z, w = drawn(N, C, 2, 3).double(), drawn(N, C, 2, 3, seed=8).double()
    target = classes(N, 2, 3, ignored=True)
    _, reading = read(objective(z.float(), target, nn.CrossEntropyLoss()))
    assert reading.judge is not None
    found = reading.judge.divergence(z, w)
    assert found is not None
    p, q = (np.exp(a.numpy()) / np.exp(a.numpy()).sum(1, keepdims=True) for a in (z, w))
    apart = (p * np.log(p / q)).sum(1) * (target.numpy() != -100)
    np.testing.assert_allclose(found[0].numpy(), apart.reshape(N, -1).sum(1), rtol=1e-10)
    np.testing.assert_array_equal(found[1].numpy(), (target.numpy() != -100).reshape(N, -1).sum(1))


def test_kl_of_yes_or_no_is_that_of_two_outcomes() -> None:
    z, w = drawn(N, 3).double(), drawn(N, 3, seed=8).double()
    _, reading = read(objective(z.float(), drawn(N, 3, seed=3).sigmoid(), nn.BCEWithLogitsLoss()))
    assert reading.judge is not None
    found = reading.judge.divergence(z, w)
    assert found is not None
    p, q = (1.0 / (1.0 + np.exp(-a.numpy())) for a in (z, w))
    apart = p * np.log(p / q) + (1.0 - p) * np.log((1.0 - p) / (1.0 - q))
    np.testing.assert_allclose(found[0].numpy(), apart.sum(1), rtol=1e-10)
    np.testing.assert_array_equal(found[1].numpy(), np.full(N, 3.0))


# -- functions of the user's ----------------------------------------------------------------------------------------


def test_a_callable_is_read_by_example_or_by_group_of_them() -> None:
    def cubed(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).abs().pow(3).mean()

    output, target = drawn(100, 2), drawn(100, 2, seed=3)
    reader, reading = read(objective(output, target, cubed))
    each = ((output - target).double().abs() ** 3).mean(1).numpy()
    edges = np.round(np.linspace(0, 100, judges.GROUPS + 1)).astype(int)
    assert not reader.coarse and reading.losses.shape == (judges.GROUPS,)
    np.testing.assert_allclose(reading.losses.numpy(), np.add.reduceat(each, edges[:-1]), rtol=1e-5)
    np.testing.assert_array_equal(reading.counts.numpy(), np.diff(edges))


def test_a_batch_loss_with_an_output_is_read_by_group_and_one_without_by_piece() -> None:
    def squared(z: Tensor, batch: Any) -> tuple[Tensor, float]:
        return ((z - batch[1]) ** 2).sum(), batch[1].numel()

    output, target = drawn(N, 2), drawn(N, 2, seed=3)
    wanted = ((output - target).double() ** 2).sum(1).numpy()
    _, reading = read(objective(output, target, lh.batch_loss(squared, output=lambda model, batch: model(batch[0]))))
    np.testing.assert_allclose(reading.losses.numpy(), wanted, rtol=1e-5)
    np.testing.assert_array_equal(reading.counts.numpy(), np.full(N, 2.0))
    assert reading.output is not None and reading.output.shape == (N, 2)
    _, whole = read(objective(output, target, lh.batch_loss(lambda model, batch: squared(model(batch[0]), batch))))
    assert whole.output is None and whole.judge is None
    np.testing.assert_allclose(whole.losses.numpy(), wanted, rtol=1e-5)  # seven examples are seven pieces
    np.testing.assert_array_equal(whole.counts.numpy(), np.full(N, 2.0))


def test_pieces_are_at_most_sixteen_and_those_that_do_not_add_up_are_not_used() -> None:
    def squared(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        return ((model(batch[0]) - batch[1]) ** 2).sum(), batch[1].numel()

    def spread(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        z = model(batch[0])
        return (z - z.mean(0)).pow(2).sum(), z.numel()

    output, target = drawn(40, 2), drawn(40, 2, seed=3)
    made = objective(output, target, lh.batch_loss(squared))
    _, reading = read(made)
    assert len(reading.losses) == PIECES == 16
    with made.session():
        (batch,) = made.batches()
        assert float(reading.losses.sum()) == pytest.approx(float(made.terms(batch)[0].detach()), rel=1e-6)
    made = objective(output, target, lh.batch_loss(spread))
    _, reading = read(made)
    with made.session():
        (batch,) = made.batches()
        assert reading.losses.tolist() == [float(made.terms(batch)[0].detach())]


def test_a_loss_that_looks_at_the_whole_batch_is_read_by_batch() -> None:
    def spread(output: Tensor, target: Tensor) -> Tensor:  # of a batch: no sum of losses of its examples
        return (output - output.mean(0)).pow(2).mean()

    reader, _ = read(objective(drawn(N, 2), drawn(N, 2), spread))
    assert reader.coarse


# -- models' own losses ---------------------------------------------------------------------------------------------

transformers = pytest.importorskip("transformers")


def causal() -> nn.Module:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=23, n_positions=12, n_embd=16, n_layer=1, n_head=2)
    ).eval()


def token_batches() -> list[dict[str, Tensor]]:
    """Padded unequally, between the sequences and between the batches."""
    found = []
    for seed, (rows, length) in enumerate([(3, 9), (2, 6)]):
        ids = torch.randint(0, 23, (rows, length), generator=torch.Generator().manual_seed(seed))
        labels = ids.clone()
        for row in range(rows):
            labels[row, length - row - seed :] = -100
        found.append({"input_ids": ids, "labels": labels})
    return found


def test_a_causal_language_model_is_read_by_sequence() -> None:
    model, data = causal(), token_batches()
    made, total, count = lh.Objective(model, data), 0.0, 0.0
    reader = Reader(made.evaluation)
    with made.session():
        for batch in made.batches():
            reading = reader.read(made.model, batch)
            with torch.no_grad():
                logits = model(input_ids=batch["input_ids"]).logits
            apart = F.cross_entropy(logits[:, :-1].transpose(1, 2).double(), batch["labels"][:, 1:], reduction="none")
            np.testing.assert_allclose(reading.losses.numpy(), apart.sum(1).numpy(), rtol=1e-6)
            kept = (batch["labels"][:, 1:] != -100).sum(1)
            np.testing.assert_array_equal(reading.counts.numpy(), kept.numpy())
            total, count = total + float(made.terms(batch)[0].detach()), count + made.terms(batch)[1]
            assert float(reading.losses.sum()) == pytest.approx(float(made.terms(batch)[0].detach()), rel=1e-5)
    assert not reader.coarse and count == 21 + 7  # of 24 and of 10 next tokens, those that are not padding
    mean = total / count
    assert math.isfinite(mean)


@dataclass
class Output:
    loss: Tensor
    logits: Tensor


class Classifier(nn.Module):
    """As Hugging Face's: classes, or numbers where the labels are."""

    def __init__(self, outputs: int, extra: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head, self.extra = nn.Embedding(11, 6), nn.Linear(6, outputs), extra

    def forward(self, input_ids: Tensor, labels: Tensor) -> Output:
        hidden = self.embedding(input_ids).mean(1)
        logits = self.head(hidden)
        loss = F.mse_loss(logits[:, 0], labels) if labels.is_floating_point() else F.cross_entropy(logits, labels)
        return Output(loss + self.extra * hidden.pow(2).mean(), logits)


IDS = torch.randint(0, 11, (5, 4), generator=torch.Generator().manual_seed(0))


def test_a_sequence_classification_model_is_read_by_sequence() -> None:
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
        )
    ).eval()
    labels = torch.tensor([0, 1, 2, 1, 0])
    reader, reading = read(lh.Objective(model, {"input_ids": IDS, "labels": labels}))
    with torch.no_grad():
        wanted = F.cross_entropy(model(input_ids=IDS).logits.double(), labels, reduction="none")
    np.testing.assert_allclose(reading.losses.numpy(), wanted.numpy(), rtol=1e-6)
    assert not reader.coarse and reading.output is not None


@pytest.mark.parametrize("case", ["numbers", "more than the logits say"])
def test_a_loss_that_the_logits_do_not_explain_is_read_by_piece(case: str) -> None:
    numbers = case == "numbers"
    model = Classifier(1 if numbers else 3, extra=0.0 if numbers else 0.1)
    labels = torch.linspace(0.0, 1.0, 5) if numbers else torch.tensor([0, 1, 2, 1, 0])
    made = lh.Objective(model, {"input_ids": IDS, "labels": labels})
    reader, _ = read(made)
    assert reader.coarse
    with made.session():
        (batch,) = made.batches()
        again = reader.read(made.model, batch)
        assert again.output is None and len(again.losses) == 5
        assert float(again.losses.sum()) == pytest.approx(float(made.terms(batch)[0].detach()), rel=1e-6)


def test_labels_beside_a_criterion_are_read_by_sequence() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, C)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.embedding(input_ids)

    model, labels = Tagger(), classes(5, 4, ignored=True)
    reader, reading = read(lh.Objective(model, {"input_ids": IDS, "labels": labels}, nn.CrossEntropyLoss()))
    apart = F.cross_entropy(model.embedding(IDS).transpose(1, 2).double(), labels, reduction="none").sum(1)
    assert not reader.coarse
    np.testing.assert_allclose(reading.losses.numpy(), apart.detach().numpy(), rtol=1e-6)
    np.testing.assert_array_equal(reading.counts.numpy(), (labels != -100).sum(1).numpy())


# -- arithmetic -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [30.0, 3e3, 1e5])
def test_a_sure_network_is_still_read_by_example(scale: float) -> None:
    """In float32 a loss of 1e-9 is rounded to nothing: that does not mean that it is no function of the logits."""
    target = classes(N)
    output = scale * F.one_hot(target, C).float() + drawn(N, C)
    reader, reading = read(objective(output, target, nn.CrossEntropyLoss()))
    assert not reader.coarse and reading.output is not None


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e30])
def test_a_loss_that_is_no_number_is_told_and_says_nothing_of_the_reader(value: float) -> None:
    output = drawn(N, 3)
    output[2, 1] = value  # 1e60 is too large for float32, and not for the float64 of the losses
    reader, reading = read(objective(output, drawn(N, 3, seed=3), nn.MSELoss()))
    assert not reader.coarse
    assert not torch.isfinite(reading.losses).all()


def test_log_probabilities_stay_normalised_where_changes_are_added_up() -> None:
    """Adding changes of log-probabilities up gives none; their loss is that of what they are proportional to."""
    output, target = F.log_softmax(drawn(N, C), 1), classes(N, ignored=True)
    _, reading = read(objective(output, target, nn.NLLLoss(WEIGHTS)))
    moved = output + drawn(N, C, seed=4)
    assert reading.judge is not None
    wanted = F.nll_loss(F.log_softmax(moved.double(), 1), target, WEIGHTS.double(), reduction="none")
    torch.testing.assert_close(reading.judge.losses(moved[None])[0], wanted, rtol=1e-10, atol=1e-12)
    raw = drawn(N, C)  # no log-probabilities: whoever gives these to NLL means it
    _, reading = read(objective(raw, target, nn.NLLLoss()))
    assert reading.judge is not None
    wanted = F.nll_loss(moved.double(), target, reduction="none")
    torch.testing.assert_close(reading.judge.losses(moved[None])[0], wanted, rtol=1e-10, atol=1e-12)


def test_of_several_outputs_the_loss_is_read_in_pieces() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(x)

    def apart(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return (output[0] - output[1]).pow(2).mean() + (output[0] - target).abs().mean()

    made = lh.Objective(Two(), (drawn(20, 3), drawn(20, 2, seed=2)), apart)
    reader, _ = read(made)
    assert reader.coarse
    with made.session():
        (batch,) = made.batches()
        reading, (total, count) = reader.read(made.model, batch), made.terms(batch)
    assert len(reading.losses) == PIECES and float(reading.counts.sum()) == count == 20.0
    assert float(reading.losses.sum()) == pytest.approx(float(total.detach()), rel=1e-5)


def test_an_ignored_output_that_is_nan_does_not_matter() -> None:
    output, target = drawn(N, C), classes(N)
    output[2], target[2] = math.nan, -100
    reader, reading = read(objective(output, target, nn.CrossEntropyLoss()))
    assert not reader.coarse and reading.losses[2] == 0.0 and torch.isfinite(reading.losses).all()


def test_an_empty_batch_says_nothing_about_the_others() -> None:
    made = lh.Objective(nn.Linear(3, C), [(drawn(5, 3), classes(5)), (drawn(0, 3), classes(0))], nn.CrossEntropyLoss())
    reader = Reader(made.evaluation)
    with made.session():
        sizes = [len(reader.read(made.model, batch).losses) for batch in made.batches()]
    assert sizes[0] == 5 and not reader.coarse


def test_log_probabilities_of_a_divergence_stay_normalised_too() -> None:
    for shape, along in (((N, C), 1), ((N, 5, C), 2)):
        output, target = F.log_softmax(drawn(*shape), along), drawn(*shape, seed=5).softmax(along)
        _, reading = read(objective(output, target, nn.KLDivLoss(reduction="batchmean")))
        moved = output + drawn(*shape, seed=4)
        assert reading.judge is not None
        wanted = F.kl_div(F.log_softmax(moved.double(), along), target.double(), reduction="none")
        found = reading.judge.losses(moved[None])[0]
        torch.testing.assert_close(found, wanted.reshape(N, -1).sum(1), rtol=1e-6, atol=1e-7)

"""Every criterion as a sum and a count: unequal batches give torch's own mean over all the data, exactly."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
import zoo_models as nets
from witness import refused
from zoo import grow

SIZES = (5, 1, 3)
CLASSES = 4
WEIGHTS = torch.tensor([0.5, 2.0, 1.25, 0.75], dtype=torch.float64)


class Scaled(nn.Module):
    """Its output is its input times one parameter, which is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Example(NamedTuple):
    """All outputs and all targets of a data set."""

    output: Tensor
    target: Tensor


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def classes(*shape: int, ignored: int | None = None) -> Tensor:
    target = torch.randint(0, CLASSES, shape)
    if ignored is not None:
        target.view(-1)[[0, 2, 5, 6]] = ignored  # all of the batch of one, parts of the others
    return target


N = sum(SIZES)


def logits(ignored: int | None = None) -> Example:
    return Example(numbers(N, CLASSES), classes(N, ignored=ignored))


def sequences(ignored: int | None = None) -> Example:
    return Example(numbers(N, CLASSES, 6), classes(N, 6, ignored=ignored))


def log_probabilities(ignored: int | None = None) -> Example:
    return Example(numbers(N, CLASSES).log_softmax(1), classes(N, ignored=ignored))


def distributions() -> Example:
    return Example(numbers(N, CLASSES), numbers(N, CLASSES).softmax(1))


def values() -> Example:
    return Example(numbers(N, 3), numbers(N, 3))


def bits() -> Example:
    return Example(numbers(N, 3), torch.randint(0, 2, (N, 3)).double())


def probabilities() -> Example:
    return Example(torch.rand(N, 3, dtype=torch.float64), torch.rand(N, 3, dtype=torch.float64))


def signs() -> Example:
    return Example(numbers(N, 3), torch.randint(0, 2, (N, 3)).double() * 2 - 1)


def counts() -> Example:
    return Example(numbers(N, 3), torch.randint(0, 5, (N, 3)).double())


def log_pairs() -> Example:
    return Example(numbers(N, CLASSES).log_softmax(1), numbers(N, CLASSES).softmax(1))


def label_lists() -> Example:
    return Example(numbers(N, CLASSES), torch.tensor([[1, 3, -1, 0]] * N))


CRITERIA: dict[str, tuple[Callable[..., nn.Module], Callable[[], Example]]] = {
    "cross entropy": (nn.CrossEntropyLoss, logits),
    "cross entropy, ignored": (nn.CrossEntropyLoss, lambda: logits(-100)),
    "cross entropy, ignore_index=2": (functools.partial(nn.CrossEntropyLoss, ignore_index=2), logits),
    "cross entropy, weights": (functools.partial(nn.CrossEntropyLoss, weight=WEIGHTS), logits),
    "cross entropy, smoothing": (functools.partial(nn.CrossEntropyLoss, label_smoothing=0.2), lambda: logits(-100)),
    "cross entropy, everything": (
        functools.partial(nn.CrossEntropyLoss, weight=WEIGHTS, label_smoothing=0.2, ignore_index=-1),
        lambda: logits(-1),
    ),
    "cross entropy, sequences": (functools.partial(nn.CrossEntropyLoss, weight=WEIGHTS), lambda: sequences(-100)),
    "cross entropy, distributions": (nn.CrossEntropyLoss, distributions),
    "cross entropy, distributions, weights": (
        functools.partial(nn.CrossEntropyLoss, weight=WEIGHTS, label_smoothing=0.1),
        distributions,
    ),
    "nll": (nn.NLLLoss, log_probabilities),
    "nll, weights, ignored": (functools.partial(nn.NLLLoss, weight=WEIGHTS), lambda: log_probabilities(-100)),
    "nll, sequences": (functools.partial(nn.NLLLoss, weight=WEIGHTS), lambda: sequences(-100)),
    "mse": (nn.MSELoss, values),
    "l1": (nn.L1Loss, values),
    "smooth l1": (functools.partial(nn.SmoothL1Loss, beta=0.3), values),
    "huber": (functools.partial(nn.HuberLoss, delta=0.7), values),
    "bce": (nn.BCELoss, probabilities),
    "bce logits": (functools.partial(nn.BCEWithLogitsLoss, pos_weight=WEIGHTS[:3]), bits),
    "poisson": (functools.partial(nn.PoissonNLLLoss, full=True), counts),
    "soft margin": (nn.SoftMarginLoss, signs),
    "hinge embedding": (nn.HingeEmbeddingLoss, signs),
    "kl": (nn.KLDivLoss, log_pairs),
    "kl, batchmean": (functools.partial(nn.KLDivLoss, reduction="batchmean"), log_pairs),
    "multi label margin": (nn.MultiLabelMarginLoss, label_lists),
    "multi label soft margin": (functools.partial(nn.MultiLabelSoftMarginLoss, weight=WEIGHTS[:3]), bits),
    "multi margin": (functools.partial(nn.MultiMarginLoss, margin=0.6, weight=WEIGHTS), logits),
}

FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[], Example]]] = {
    "cross_entropy": (F.cross_entropy, lambda: logits(-100)),
    "cross_entropy, options": (
        functools.partial(F.cross_entropy, weight=WEIGHTS, label_smoothing=0.1, ignore_index=1),
        logits,
    ),
    "nll_loss": (functools.partial(F.nll_loss, weight=WEIGHTS), lambda: log_probabilities(-100)),
    "mse_loss": (F.mse_loss, values),
    "l1_loss": (F.l1_loss, values),
    "smooth_l1_loss": (functools.partial(F.smooth_l1_loss, beta=0.5), values),
    "huber_loss": (F.huber_loss, values),
    "binary_cross_entropy": (F.binary_cross_entropy, probabilities),
    "binary_cross_entropy_with_logits": (
        functools.partial(F.binary_cross_entropy_with_logits, pos_weight=WEIGHTS[:3]),
        bits,
    ),
    "poisson_nll_loss": (functools.partial(F.poisson_nll_loss, log_input=True), counts),
    "soft_margin_loss": (F.soft_margin_loss, signs),
    "kl_div": (functools.partial(F.kl_div, reduction="batchmean"), log_pairs),
}


def totals(loss: Any, example: Example, sizes: tuple[int, ...] = SIZES) -> tuple[float, float, bool]:
    """Sum of the batches' sums, of their counts, and whether the loss is itself a sum."""
    batches = list(zip(example.output.split(sizes), example.target.split(sizes), strict=True))
    objective = lh.Objective(Scaled(), batches, loss)
    with objective.session():
        pairs = [objective.terms(batch) for batch in objective.batches()]
    return sum(value.item() for value, _ in pairs), sum(count for _, count in pairs), objective.evaluation.is_sum


@pytest.mark.filterwarnings("ignore:reduction")  # torch's advice about KLDivLoss
@pytest.mark.parametrize("name", CRITERIA)
def test_unequal_batches_give_the_mean_that_torch_takes_over_everything(name: str) -> None:
    make, example = CRITERIA[name][0], CRITERIA[name][1]()
    total, count, is_sum = totals(make(), example)
    expected = float(make()(example.output, example.target))
    assert not is_sum
    assert total / count == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in CRITERIA if "batchmean" not in name])
def test_a_sum_stays_a_sum(name: str) -> None:
    make, example = CRITERIA[name][0], CRITERIA[name][1]()
    total, _, is_sum = totals(make(reduction="sum"), example)
    assert is_sum
    assert total == pytest.approx(float(make(reduction="sum")(example.output, example.target)), rel=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_and_their_partial_forms_are_known_too(name: str) -> None:
    loss, example = FUNCTIONS[name][0], FUNCTIONS[name][1]()
    total, count, _ = totals(loss, example)
    assert total / count == pytest.approx(float(loss(example.output, example.target)), rel=1e-12)
    options = {**getattr(loss, "keywords", {}), "reduction": "sum"}
    summed = functools.partial(getattr(loss, "func", loss), **options)
    total, _, is_sum = totals(summed, example)
    assert is_sum and total == pytest.approx(float(summed(example.output, example.target)), rel=1e-12)


def test_a_mean_of_batch_means_would_be_wrong() -> None:
    """What all this is for."""
    example = logits(-100)
    parts = zip(example.output.split(SIZES), example.target.split(SIZES), strict=True)
    means = torch.stack([F.cross_entropy(*part) for part in parts]).nan_to_num()
    exact = float(F.cross_entropy(*example))
    assert abs(float(means.mean()) - exact) > 0.05 * exact


def test_an_unknown_callable_is_a_mean_over_the_first_dimension() -> None:
    example = values()

    def focal(output: Tensor, target: Tensor) -> Tensor:
        return ((output - target).abs() ** 3).sum(1).mean()

    total, count, _ = totals(focal, example)
    assert count == N
    assert total / count == pytest.approx(float(focal(*example)), rel=1e-12)


def test_an_unknown_callable_without_a_hash_is_taken() -> None:
    class Loss:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, output: Tensor, target: Tensor) -> Tensor:
            return (output - target).square().mean()

    total, count, _ = totals(Loss(), values())
    assert count == N and total > 0.0


@pytest.mark.parametrize("empty", [0, 1, 2], ids=["first", "middle", "last"])
def test_an_empty_batch_among_others_adds_nothing(empty: int) -> None:
    sizes = tuple(0 if i == empty else N // 2 + i % 2 for i in range(3))
    example = Example(*(t[: sum(sizes)] for t in values()))
    for loss in (nn.MSELoss(), lambda o, t: (o - t).square().mean()):
        total, count, _ = totals(loss, example, sizes)
        assert total / count == pytest.approx(float(F.mse_loss(*example)), rel=1e-12)


def test_losses_that_cancel_are_no_failed_mean() -> None:
    """A signed loss may be zero over a batch and large on its parts; rounding is judged by the parts."""
    advantages = torch.tensor([3e4, -1e4, -2e4, 3e4, -1e4, -2e4])
    data = [(torch.ones(6, 2), advantages), (torch.ones(6, 2), advantages)]

    def policy_gradient(output: Tensor, advantage: Tensor) -> Tensor:
        return (output.square().sum(1) * advantage).mean()

    assert lh.analyze(lh.Objective(nn.Linear(2, 1), data, policy_gradient), blocks="weight", max_passes=1)


# -- mapping batches and Hugging Face models ---------------------------------------------------------------------------


class Encoder(nn.Module):
    """Takes keywords, knows no labels."""

    def __init__(self, accepts_labels: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(3, CLASSES).double()
        if accepts_labels:
            self.forward = self.with_labels  # type: ignore[method-assign]

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features)

    def with_labels(self, features: Tensor, **rest: Any) -> Any:
        assert "labels" in rest
        return type("Output", (), {"logits": self.layer(features), "loss": None})()


@pytest.mark.parametrize("accepts_labels", [False, True])
@pytest.mark.parametrize("ndim", [1, 2], ids=["a label each", "a label for every token"])
def test_a_criterion_holds_logits_against_the_labels_of_a_mapping(accepts_labels: bool, ndim: int) -> None:
    model = Encoder(accepts_labels)
    shape = (6, 5)[:ndim]
    batches = [{"features": numbers(*shape, 3), "labels": classes(*shape)} for _ in range(2)]
    objective = lh.Objective(model, batches, nn.CrossEntropyLoss())
    with objective.session():
        pairs = [objective.terms(batch) for batch in objective.batches()]
    logits_of = [model.layer(batch["features"]).reshape(-1, CLASSES) for batch in batches]
    labels = torch.cat([batch["labels"].flatten() for batch in batches])
    expected = F.cross_entropy(torch.cat(logits_of), labels).detach()
    total, count = sum(value.item() for value, _ in pairs), sum(count for _, count in pairs)
    assert total / count == pytest.approx(float(expected), rel=1e-12)


def language_batches(first_ignored: bool = False) -> list[dict[str, Tensor]]:
    """Right-padded to lengths between 2 and 6: nothing is equal between the two batches."""
    made = []
    for lengths in ([6, 2, 3], [4, 4]):
        longest = max(lengths)
        mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
        ids = torch.randint(1, 11, mask.shape) * mask
        labels = ids.masked_fill(mask == 0, -100)
        if first_ignored:
            labels[:, 0] = -100
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def causal(logits_: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return logits_[:, :-1].reshape(-1, 11), labels[:, 1:].reshape(-1)


def in_place(logits_: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return logits_.reshape(-1, 11), labels.reshape(-1)


@pytest.mark.parametrize("first_ignored", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_the_loss_of_a_hugging_face_model_is_counted_in_labels(kind: str, first_ignored: bool) -> None:
    """A causal model predicts the next label, so each sequence's first does not count; a masked one predicts all."""
    pytest.importorskip("transformers")
    make = nets.gpt2 if kind == "gpt2" else functools.partial(nets.bert, "words")
    model = grow(make, torch.float32, 0).eval()
    batches = language_batches(first_ignored)
    pairing = causal if kind == "gpt2" else in_place
    objective = lh.Objective(model, batches)
    with objective.session():
        found = [objective.terms(batch) for batch in objective.batches()]
    with torch.no_grad():
        parts = [pairing(model(**batch).logits, batch["labels"]) for batch in batches]
    expected = F.cross_entropy(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))
    assert [count for _, count in found] == [float((labels != -100).sum()) for _, labels in parts]
    total, count = sum(value.item() for value, _ in found), sum(count for _, count in found)
    assert total / count == pytest.approx(float(expected), rel=1e-5)
    assert lh.analyze(objective, blocks="weight", full=False, max_passes=1).loss_count == count


def test_how_labels_are_counted_does_not_hang_on_the_first_batch() -> None:
    """One whose first labels are all ignored, or whose only label is a first one, decides nothing."""
    pytest.importorskip("transformers")
    model = grow(nets.gpt2, torch.float32, 0).eval()
    only_first = language_batches()[0]
    only_first["labels"][:, 1:] = -100
    batches = [language_batches(first_ignored=True)[0], only_first, *language_batches()]
    objective = lh.Objective(model, batches)
    with objective.session():
        counts_ = [objective.terms(batch)[1] for batch in objective.batches()]
    assert counts_ == [float((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
    assert counts_[1] == 0.0


def test_a_refusal_for_dropout_leaves_no_wrong_count_behind() -> None:
    """While the loss is random, how labels are counted cannot be found out; later it can, with the same object."""
    pytest.importorskip("transformers")
    model = grow(nets.gpt2, torch.float32, 0)
    model.transformer.drop.p = 0.5
    objective = lh.Objective(model.train(), language_batches())
    with refused(model, "random", "transformer.drop"):
        lh.analyze(objective)
    model.eval()
    with objective.session():
        found = sum(objective.terms(batch)[1] for batch in objective.batches())
    assert found == sum(float((batch["labels"][:, 1:] != -100).sum()) for batch in language_batches())


def test_token_mappings_of_transformers_are_batches() -> None:
    transformers = pytest.importorskip("transformers")
    model = grow(functools.partial(nets.bert, "sentence"), torch.float32, 0).eval()
    plain = {k: v for k, v in language_batches()[0].items() if k != "labels"} | {"labels": torch.tensor([0, 2, 1])}
    encoding = transformers.BatchEncoding(plain)
    analyses = [
        lh.analyze(lh.Objective(model, data), blocks="weight", full=False, max_passes=2) for data in (plain, encoding)
    ]
    assert analyses[0].loss == analyses[1].loss and analyses[1].loss_count == analyses[1].examples == 3


# -- batch_loss --------------------------------------------------------------------------------------------------------


def test_batch_loss_says_itself_how_batches_add_up() -> None:
    def totals_of(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        error = (model(batch["x"]) - batch["y"]).square().sum(1)
        return (batch["w"] * error).sum().reshape(1), batch["w"].sum()

    batches = [{"x": numbers(n, 3), "y": numbers(n, 3), "w": numbers(n).abs()} for n in (4, 2)]
    objective = lh.Objective(Scaled(), batches, lh.batch_loss(totals_of))
    analysis = lh.analyze(objective)
    every = {key: torch.cat([batch[key] for batch in batches]) for key in "xyw"}
    expected = (every["w"] * (every["x"] - every["y"]).square().sum(1)).sum() / every["w"].sum()
    assert analysis.loss == pytest.approx(float(expected), rel=1e-12)
    assert analysis.loss_count == pytest.approx(float(every["w"].sum()), rel=1e-12)


def test_batch_loss_takes_batches_of_any_form() -> None:
    """Strings, NumPy arrays and objects pass through; objects that can move are moved."""

    class Graph:
        moved = False

        def to(self, device: torch.device) -> Graph:
            graph = Graph()
            graph.moved = True
            return graph

        def keys(self) -> list[str]:
            return ["x"]

        def __getitem__(self, key: str) -> Any:
            return None

    def check(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        words, graph, x = batch
        assert words == ["a", "b"] and isinstance(graph, Graph) and graph.moved
        return model(x).square().sum(), 2

    data = [(["a", "b"], Graph(), numbers(2, 3))]
    assert lh.analyze(lh.Objective(Scaled(), data, lh.batch_loss(check))).converged

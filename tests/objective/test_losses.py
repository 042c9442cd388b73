"""From a model and a batch to a sum and a count: mappings, Hugging Face losses, and functions of one's own."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import layerhess as lh
import zoo_models as nets
from outputs_and_targets import CLASSES, Scaled, classes, numbers
from refusals import Table, X, analysis
from witness import refused
from zoo import grow


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


@pytest.mark.parametrize("kind", ["gpt2", "bert", "criterion", "function"])
def test_no_warning_of_torch_is_the_users(kind: str) -> None:
    """Such as that a tensor with a graph becomes a number, with a line of ours beside it."""
    if kind in ("gpt2", "bert"):
        pytest.importorskip("transformers")
        make = nets.gpt2 if kind == "gpt2" else functools.partial(nets.bert, "words")
        objective = lh.Objective(grow(make, torch.float32, 0).eval(), language_batches())
    else:
        model, data = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), (torch.ones(6, 3), torch.ones(6, 1))
        own = lh.batch_loss(lambda net, batch: (F.mse_loss(net(batch[0]), batch[1], reduction="sum"), 6))
        objective = lh.Objective(model, data, nn.MSELoss() if kind == "criterion" else own)
    torch.set_warn_always(True)  # else only the first test of a process would see one
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lh.analyze(objective, blocks="weight", trace=True, density=True, max_passes=3)
            lh.Hessian(objective).block("(full)").to_scipy()
    finally:
        torch.set_warn_always(False)


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


class Packed(nn.Module):
    """A recurrent network from packed sequence to packed sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.GRU(3, 4), nn.Linear(4, 2)

    def forward(self, x: PackedSequence) -> PackedSequence:
        return self.inner(x)[0]._replace(data=self.outer(self.inner(x)[0].data))


def test_a_callable_takes_any_output_and_what_needs_one_tensor_says_so() -> None:
    torch.manual_seed(0)
    sequences = [torch.randn(n, 3).double() for n in (4, 2, 3)]
    packed, model, y = pack_sequence(sequences, enforce_sorted=False), Packed().double(), torch.arange(9) % 2
    summed = lh.batch_loss(lambda m, b: (F.cross_entropy(m(b[0]).data, b[1], reduction="sum"), len(b[1])))
    mean = lambda output, target: F.cross_entropy(output.data, target)  # noqa: E731
    found, expected = (lh.Hessian(lh.Objective(model, (packed, y), loss)).to_dense() for loss in (mean, summed))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    with refused(model, "one tensor", "PackedSequence"):
        lh.analyze(lh.Objective(model, (packed, y), mean), operator="gauss_newton")
    with refused(model, "no batch can be cut", "batch_loss"):
        lh.analyze(lh.Objective(model, [(packed, y)] * 2, mean))
    with refused(model, "returned PackedSequence", "criterion needs a tensor"):
        lh.analyze(lh.Objective(model, (packed, y), nn.CrossEntropyLoss()))


def test_batch_loss_takes_batches_of_any_form() -> None:
    """Strings, NumPy arrays and objects pass through; objects that can move are moved."""

    class BatchGraph:
        moved = False

        def to(self, device: torch.device) -> BatchGraph:
            graph = BatchGraph()
            graph.moved = True
            return graph

        def keys(self) -> list[str]:
            return ["x"]

        def __getitem__(self, key: str) -> Any:
            return None

    def check(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        words, graph, x = batch
        assert words == ["a", "b"] and isinstance(graph, BatchGraph) and graph.moved
        return model(x).square().sum(), 2

    data = [(["a", "b"], BatchGraph(), numbers(2, 3))]
    assert lh.analyze(lh.Objective(Scaled(), data, lh.batch_loss(check))).converged


# -- refused in words --------------------------------------------------------------------------------------------------

TABLE = Table()
case = TABLE.case

case("no scalar: one loss an example", "shape (7,), not a scalar", "batch 0", "batch_loss")(
    analysis(loss=lambda o, t: F.cross_entropy(o, t, reduction="none"))
)
case("no scalar: a number", "float, not a scalar")(analysis(loss=lambda o, t: F.cross_entropy(o, t).item()))
case("no scalar: nothing returned", "NoneType, not a scalar")(analysis(loss=lambda o, t: None))
case("no loss for tuples", "no loss was given", "third argument")(analysis(loss=None))
case("no loss in the model's output", "returned no .loss")(analysis([{"input": X}], None))
case("a mapping without labels", "no 'labels'", "keys 'input'")(analysis([{"input": X}]))
case("batch_loss: no pair", "not a pair", "(loss_sum, count)")(
    analysis(loss=lh.batch_loss(lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])))
)
for _count in (-1.0, float("nan"), float("inf")):
    case(f"batch_loss: a count of {_count}", f"count {_count}")(
        analysis(loss=lh.batch_loss(lambda model, batch, n=_count: (model(batch[0]).sum(), n)))
    )


@pytest.mark.parametrize("name", TABLE)
def test_bad_data_and_losses_are_refused_in_words(name: str) -> None:
    TABLE.check(name)

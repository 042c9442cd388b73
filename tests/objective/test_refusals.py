"""Models and losses that are no objective: each refusal in words, by the objective itself."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import layerhess as lh
from layerhess.errors import InputError, LayerhessWarning
from layerhess.objective.batch_norm import TiedNorms, tied_norms
from layerhess.objective.losses import CriterionLoss, evaluation_of
from layerhess.objective.model_loss import ModelLoss
from layerhess.objective.objective import Objective

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
CE = nn.CrossEntropyLoss()
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def inferred() -> nn.Module:
    with torch.inference_mode():
        return mlp()


MODELS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "no module": (lambda: len, "the model is builtin_function_or_method, not a torch.nn.Module", "model"),
    "lazy": (lambda: nn.LazyLinear(3), "'weight' of a lazy module has no shape", "weight"),
    "complex": (lambda: nn.Linear(4, 3, dtype=torch.complex64), "'weight' is complex", "weight"),
    "made in inference mode": (inferred, "inside torch.inference_mode", "0.weight"),
    "meta": (lambda: nn.Linear(4, 3, device="meta"), "'weight' is on the meta device", "weight"),
    "frozen": (lambda: mlp().requires_grad_(False), r"no trainable parameters \(4 are frozen\)", "Sequential"),
    "no parameters": (nn.Tanh, "no trainable parameters\\.", "Tanh"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models_that_cannot_be_differentiated(kind: str) -> None:
    build, words, where = MODELS[kind]
    with pytest.raises(InputError, match=words) as caught:
        Objective(build(), (X, Y), CE)
    assert caught.value.where == where and caught.value.what_to_do


def test_frozen_and_integer_parameters_are_left_out_and_named() -> None:
    model = mlp()
    model[0].bias.requires_grad_(False)
    model.register_parameter("count", nn.Parameter(torch.arange(3), requires_grad=False))
    objective = Objective(model, (X, Y), CE)
    assert objective.frozen == ("count", "0.bias") and list(objective.parameters) == ["0.weight", "2.weight", "2.bias"]
    assert objective.numel == 20 + 15 + 3


@pytest.mark.parametrize(
    ("options", "words"),
    [({"mode": "train"}, "unknown mode 'train'"), ({"batch_size": 0}, "batch_size is 0"), ({"batch_size": 2.0}, "2.0")],
)
def test_options_that_are_none(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Objective(mlp(), (X, Y), CE, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_half_precision_weights_are_a_warning_and_a_note_and_others_are_none(dtype: torch.dtype) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        objective = Objective(mlp().to(dtype), (X.to(dtype), Y), CE)
    half = dtype in (torch.bfloat16, torch.float16)
    said = [str(w.message) for w in caught if issubclass(w.category, LayerhessWarning)]
    assert len(said) == half and objective.notes == said and objective.dtype == dtype
    if half:
        assert f"about {100 * torch.finfo(dtype).eps:.0%} of the largest" in said[0]


def test_the_coarsest_dtype_of_all_parameters_counts() -> None:
    model = mlp().double()
    model[2].float()
    assert Objective(model, (X.double(), Y), CE).dtype == torch.float32


# -- what ties a batch together ----------------------------------------------------------------------------------------


def normed(track: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=track), nn.Linear(5, 3))


def test_tied_norms_are_those_that_use_the_batch_at_hand() -> None:
    assert tied_norms(normed(), "as-is") == TiedNorms(("1",), ()) and not tied_norms(normed(), "eval")
    assert not tied_norms(normed().eval(), "as-is")
    for mode in ("as-is", "eval"):
        assert tied_norms(normed(track=False).eval(), mode) == TiedNorms((), ("1",))
    both = nn.Sequential(normed(), normed(track=False))
    assert tied_norms(both, "as-is") == TiedNorms(("0.1",), ("1.1",)) and not tied_norms(mlp(), "as-is")
    assert not TiedNorms() and TiedNorms(("a",)) and TiedNorms((), ("a",))


def test_what_is_said_of_tied_norms() -> None:
    train, none = TiedNorms(("a", "b", "c")), TiedNorms(("z",), ("a", "b", "c", "d"))
    assert (train.where, none.where) == ("a, b, c", "a, b, c, ...")
    assert "train mode" in train.what and "mode='eval'" in train.cure
    assert "every mode" in none.what and "track_running_stats" in none.cure


def test_what_would_split_a_tied_batch_is_refused() -> None:
    loader = DataLoader(TensorDataset(X, Y), 3, shuffle=True)
    for options, words in (({"data": loader}, "the loader shuffles"), ({"batch_size": 2}, "batch_size would change")):
        given = {"data": (X, Y), **options}
        with pytest.raises(InputError, match=words) as caught:
            Objective(normed(), given.pop("data"), CE, **given)
        assert caught.value.where == "1"
        Objective(normed(), mode="eval", loss=CE, **{"data": (X, Y), **options})
    assert any("BatchNorm runs in train mode (1)" in note for note in Objective(normed(), (X, Y), CE).notes)
    assert not Objective(normed(), (X, Y), CE, mode="eval").notes and not Objective(mlp(), (X, Y), CE).notes


def test_active_dropout_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Dropout(0.0), nn.LSTM(4, 3, 2, dropout=0.1))
    model.extend([nn.LSTM(4, 3, 1), nn.MultiheadAttention(4, 2, dropout=0.2), nn.MultiheadAttention(4, 2)])
    assert Objective(model, (X, Y), CE).random_modules == ["1", "3", "5"]
    assert Objective(model, (X, Y), CE, mode="eval").random_modules == []
    assert Objective(copy.deepcopy(model).eval(), (X, Y), CE).random_modules == []


# -- losses ------------------------------------------------------------------------------------------------------------


def totals(model: Any, batch: Any) -> Any:
    return (model(batch[0]) ** 2).sum(), len(batch[0])


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (torch.tensor(1.0), "returned Tensor, not a pair"),
        ((torch.tensor(1.0), 1, 2), "returned tuple, not a pair"),
        ((torch.zeros(2), 1), r"tensor of shape \(2,\)"),
        ((torch.tensor(1.0), -1), "the count -1.0"),
        ((torch.tensor(1.0), math.inf), "the count inf"),
        ((torch.tensor(1.0), math.nan), "the count nan"),
    ],
)
def test_a_batch_loss_returns_a_sum_and_a_count(result: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        lh.batch_loss(lambda model, batch: result)(mlp(), (X, Y))
    assert caught.value.where == "loss"
    assert lh.batch_loss(lambda model, batch: [torch.tensor([2.0]), 0])(mlp(), (X, Y))[1] == 0.0


def test_a_batch_loss_is_made_of_functions_and_says_where_the_output_is() -> None:
    for arguments, words in (((3,), "given int"), ((totals, 3), "output=3")):
        with pytest.raises(InputError, match=words):
            lh.batch_loss(*arguments)  # type: ignore[arg-type]
    one_step = lh.batch_loss(totals)
    assert one_step.name == "batch_loss(totals)" and not one_step.is_sum and one_step.count_is_exact
    with pytest.raises(InputError, match="needs to know the model's output"):
        one_step.with_output(mlp(), (X, Y))
    with pytest.raises(InputError, match="output= of batch_loss returned list"):
        lh.batch_loss(totals, output=lambda model, batch: [1]).with_output(mlp(), (X, Y))
    cut = lh.batch_loss(lambda out, batch: ((out**2).sum(), 4), output=lambda model, batch: model(batch[0]))
    model = mlp()
    judged = cut.with_output(model, (X, Y))
    assert judged.output.equal(model(X)) and judged.loss.allclose((model(X) ** 2).sum()) and judged.count == 4.0
    assert not judged.convex and cut(model, (X, Y))[0].equal(judged.loss)
    seen = cut.surveyed(model, (X, Y), "")
    assert seen.output is not None and seen.again is not None and float(seen.again(torch.ones(2, 3))) == 6.0
    assert one_step.surveyed(model, (X, Y), "").again is None


def test_batches_for_a_criterion_are_pairs_or_have_labels() -> None:
    evaluation = evaluation_of(CE)
    assert isinstance(evaluation, CriterionLoss) and isinstance(evaluation_of(None), ModelLoss)
    for batch, words in (
        ((X,), "tuple of 1, not a pair"), ((X, Y, Y), "tuple of 3"), (X, "a batch is a Tensor, not a pair"),
        ({"x": X}, "no 'labels'"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            evaluation(mlp(), batch)
    model = mlp()
    for batch in ((X, Y), [X, Y], ((X,), Y), ([X], Y)):
        assert evaluation(model, batch)[0].equal(F.cross_entropy(model(X), Y, reduction="sum"))


def test_torchs_own_refusals_are_put_into_words() -> None:
    evaluation = evaluation_of(nn.BCELoss())
    with pytest.raises(InputError, match=r"BCELoss does not take an output \(6, 3\) of float32 .*\(5,\) of float32"):
        evaluation.surveyed(mlp(), (X, torch.zeros(5)), "batch 1")


class Talker(nn.Module):
    """Something like a Hugging Face model: returns what it is told to."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.result = result

    def forward(self, **batch: Any) -> Any:
        return self.result


def test_a_models_own_loss_is_there_and_counted() -> None:
    loss = ModelLoss()
    with pytest.raises(InputError, match=r"no \.loss") as caught:
        loss(Talker({"logits": X}), {"labels": Y})
    assert caught.value.where == "Talker"
    with pytest.raises(InputError, match="a batch is no mapping"):
        loss.surveyed(Talker({}), (X, Y), "batch 0")
    with pytest.raises(InputError, match=r"\.logits beside its \.loss"):
        loss.with_output(Talker({"loss": torch.tensor(2.0)}), {"labels": Y})
    two = {"loss": torch.tensor([2.0]), "logits": LOGITS}
    for labels, count in (
        (Y, 6.0),
        (Y.float(), 6.0),
        (None, 6.0),
        (torch.where(Y == 0, -100, Y), 4.0),
        (0 * Y - 100, 0.0),
    ):
        batch = {"x": X} if labels is None else {"x": X, "labels": labels}
        value, found = ModelLoss()(Talker(two), batch)
        assert (float(value), found, value.shape) == (2.0 * count, count, torch.Size([]))
    seen = loss.surveyed(Talker(two), {"labels": Y}, "")
    assert seen.again is not None and float(seen.again(LOGITS)) == pytest.approx(float(LOGITS.exp().sum(1).log().sum()))
    assert loss.with_output(Talker(two), {"labels": Y}).output is LOGITS


# -- variants of an objective ------------------------------------------------------------------------------------------


def test_variants_keep_everything_else() -> None:
    objective = Objective(mlp(), [(X, Y), (X[:2], Y[:2])], CE, batch_size=4)
    assert [len(y) for _, y in objective.batches()] == [4, 2, 2]
    assert [len(y) for _, y in objective.resized(5).batches()] == [5, 1, 2]
    assert [len(y) for _, y in objective.with_batch_size(None).batches()] == [6, 2]
    narrow = objective.narrowed([(X[:3], Y[:3])])
    assert narrow.batch_size is None and narrow.model is objective.model and len(list(narrow.batches())) == 1
    assert objective.with_mode("eval").mode == "eval" and objective.with_mode("eval").batch_size == 4
    assert objective.to("cpu") is objective
    for device in ("cuda:99", "meta", "nowhere", 3.5):
        with pytest.raises(InputError, match="cannot be used"):
            objective.to(device)  # type: ignore[arg-type]
    double = objective.cast(torch.float64, [(X, Y)])
    assert double.dtype == torch.float64 and double.data[0][0].dtype == torch.float64 and double.batch_size is None
    assert {p.dtype for p in double.parameters.values()} == {torch.float64} and objective.dtype == torch.float32
    with double.session():
        value, count = double.terms(double.data[0])
    reference = F.cross_entropy(copy.deepcopy(objective.model).double()(X.double()), Y, reduction="sum")
    assert value.item() == pytest.approx(reference.item(), rel=1e-12) and count == 6.0


def test_a_subset_is_drawn_without_replacement_and_keeps_the_order() -> None:
    data = [(X[:4], torch.arange(4)), (X[4:], torch.arange(4, 6)), (X[:0], torch.arange(0))]
    for seed in range(5):
        made = Objective(mlp(), data, nn.MSELoss()).subset(3, seed)
        kept = [int(y) for _, part in made.batches() for y in part]
        assert len(kept) == 3 and kept == sorted(set(kept)) and set(kept) <= set(range(6))
        assert any(f"3 of 6 examples (seed {seed})" in note for note in made.notes)
    whole = Objective(mlp(), data, nn.MSELoss())
    assert whole.subset(6) is whole and whole.subset(5) is not whole
    with pytest.raises(InputError, match="no common first dimension") as caught:
        Objective(mlp(), [(X, Y), (X, Y[:2])], CE).subset(2)
    assert caught.value.where == "batch 1"

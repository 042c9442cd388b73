"""The objective: what is data, batch sizes, modes, precision, and the contexts it may be called in."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import layerhess as lh
from refusals import PAIRS, Table, analysis
from tanh_network import CE, EXPECTED, X, Y, assert_same, mlp, pair, product
from witness import random_states, refused, untouched

# -- what is data ------------------------------------------------------------------------------------------------------


class Pairs:
    """A re-iterable of one's own."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(X[:5], Y[:5]), (X[5:], Y[5:])])


class Indexed:
    """The old protocol: indices from 0 until IndexError."""

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return [(X[:5], Y[:5]), (X[5:], Y[5:])][i]


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        [(X, Y)],
        [[X, Y]],
        [(X[:7], Y[:7]), [X[7:], Y[7:]]],
        ((X,), Y),
        DataLoader(TensorDataset(X, Y), batch_size=5),
        DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True),
        Pairs(),
        Indexed(),
    ],
    ids=["tuple", "list", "list of lists", "mixed", "tuple of inputs", "loader", "shuffled", "iterable", "indexed"],
)
def test_every_spelling_of_the_data_gives_the_same_hessian(data: Any) -> None:
    assert_same(product(lh.Objective(mlp(), data, CE)))


def test_an_unbatched_example_is_data_too() -> None:
    """As in the notebook: one x without a batch dimension, a target of shape (1,) against a scalar output."""
    model = nn.Linear(2, 1, bias=False).double()
    data = [(torch.tensor([3.0, 4.0]).double(), torch.tensor([2.0]).double())]
    hessian = lh.Hessian(lh.Objective(model, data, lambda output, target: (output - target).square().mean()))
    assert_same(hessian.to_dense(), torch.tensor([[18.0, 24.0], [24.0, 32.0]]).double())


def test_a_loader_with_workers_is_not_started_by_looking_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=5, num_workers=2)
    monkeypatch.setattr(DataLoader, "__iter__", lambda self: pytest.fail("a pass was started"))
    lh.Objective(mlp(), loader, CE)


# -- batch_size and subsets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 12, 100])
@pytest.mark.parametrize(
    "data",
    [(X, Y), [(X[:7], Y[:7]), (X[7:], Y[7:])], {"input": X, "labels": Y}],
    ids=["one batch", "two batches", "mapping"],
)
def test_batch_size_splits_and_changes_nothing(data: Any, size: int) -> None:
    objective = lh.Objective(mlp(), data, CE, batch_size=size)
    assert_same(product(objective))
    with objective.session():
        counts = [objective.terms(batch)[1] for batch in objective.batches()]
    assert max(counts) <= size and sum(counts) == 12


def test_a_subset_is_fixed_by_its_seed_and_exact() -> None:
    data = [(X[:7], Y[:7]), (X[7:], Y[7:])]
    objective = lh.Objective(mlp(), data, CE)
    before = random_states()
    first, again, other = (objective.subset(6, seed) for seed in (0, 0, 1))
    assert random_states() == before
    assert_same(product(first), product(again))
    assert not torch.allclose(product(first), product(other))
    chosen = [batch[0] for batch in first.data]
    assert sum(map(len, chosen)) == 6
    labels = torch.cat([batch[1] for batch in first.data])
    assert_same(product(first), product(lh.Objective(mlp(), (torch.cat(chosen), labels), CE)))
    assert objective.subset(12) is objective and "6 of 12 examples" in first.notes[-1]


# -- modes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [nn.Dropout(0.5), nn.BatchNorm1d(5)], ids=["dropout", "batch norm"])
def test_eval_mode_is_that_of_the_model_in_eval_mode(extra: nn.Module) -> None:
    model = mlp(extra)
    model(X)
    with untouched(model):
        found = product(lh.Objective(model.train(), (X, Y), CE, mode="eval"))
    assert model.training
    assert_same(found, product(lh.Objective(model.eval(), (X, Y), CE)))


def test_batch_norm_in_train_mode_is_said_and_uses_the_batch() -> None:
    model = mlp(nn.BatchNorm1d(5))
    analysis = lh.analyze(lh.Objective(model, (X, Y), CE), max_passes=2)
    assert any("BatchNorm runs in train mode" in note for note in analysis.notes)
    unknown = [(X[:6], Y[:6]), (X[6:], Y[6:])]
    assert lh.analyze(lh.Objective(model, unknown, lambda o, t: F.cross_entropy(o, t)), max_passes=2)


# -- precision ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.bfloat16, "78%"), (torch.float16, "10%")])
def test_half_precision_weights_warn_with_the_accuracy_to_expect(dtype: torch.dtype, accuracy: str) -> None:
    with pytest.warns(lh.LayerhessWarning, match=accuracy) as caught:
        objective = lh.Objective(mlp(dtype=dtype), pair(dtype=dtype), CE)
    assert Path(caught[0].filename).name == Path(__file__).name, "the warning points to the caller"
    analysis = lh.analyze(objective, max_passes=2)
    assert any(accuracy in note and "float()" in note for note in analysis.notes)


def test_half_precision_inside_the_network_is_said() -> None:
    class Casts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.bfloat16().float()

    analysis = lh.analyze(lh.Objective(mlp(Casts(), dtype=torch.float32), pair(dtype=torch.float32), CE), max_passes=2)
    assert any("runs in bfloat16" in note and "78%" in note for note in analysis.notes)


def test_single_precision_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lh.analyze(lh.Objective(mlp(dtype=torch.float32), pair(dtype=torch.float32), CE), max_passes=2)


# -- the contexts of the caller ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_it_works_where_gradients_are_off(context: Callable[[], Any]) -> None:
    model = mlp()
    with context(), untouched(model):
        data = [(X[:5].clone(), Y[:5].clone()), (X[5:].clone(), Y[5:].clone())]
        criterion = nn.CrossEntropyLoss(weight=torch.ones(3, dtype=torch.float64))
        objective = lh.Objective(model, data, criterion)
        assert_same(product(objective))
        analysis = lh.analyze(objective)
        assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
        assert not torch.is_grad_enabled()
    assert analysis.converged
    assert torch.is_grad_enabled()


def test_the_callers_autocast_is_off_and_that_is_said() -> None:
    objective = lh.Objective(mlp(dtype=torch.float32), pair(dtype=torch.float32), CE)
    outside = product(objective)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(product(objective), outside)
        analysis = lh.analyze(objective, max_passes=2)
        assert torch.is_autocast_enabled("cpu")
    assert sum("autocast is off" in note for note in analysis.notes) == 1


# -- parts of models ---------------------------------------------------------------------------------------------------


def test_sparse_embedding_gradients_are_made_dense_meanwhile() -> None:
    tokens = torch.tensor([[1, 2, 1, 0]] * 6 + [[3, 3, 0, 2]] * 6)

    def model(sparse: bool) -> nn.Sequential:
        torch.manual_seed(0)
        layers = nn.Embedding(4, 3, sparse=sparse), nn.Flatten(), nn.Tanh(), nn.Linear(12, 3)
        return nn.Sequential(*layers).double()

    sparse = model(True)
    with untouched(sparse):
        found = product(lh.Objective(sparse, (tokens, Y), CE))
    assert sparse[0].sparse
    assert_same(found, product(lh.Objective(model(False), (tokens, Y), CE)))


def test_spectral_norm_is_refused_in_train_mode_and_exact_in_eval_mode() -> None:
    """In train mode each call adapts the singular vectors to the weights, and autograd takes them for constants."""
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 3)).double()
    for _ in range(50):
        model(X)
    with refused(model, "state", "0.parametrizations.weight.0", "mode='eval'"):
        lh.analyze(lh.Objective(model, (X, Y), CE))
    assert lh.analyze(lh.Objective(model, (X, Y), CE, mode="eval")).converged


def test_a_counter_in_the_model_is_no_state_to_refuse() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x

    model = mlp(Counting())
    with untouched(model):
        assert lh.analyze(lh.Objective(model, (X, Y), CE), max_passes=2)


def test_a_gate_without_gradients_is_no_reason_to_refuse() -> None:
    """A module called a second time under no_grad, for a figure that does not enter the loss."""

    class Logging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.inner(x).argmax(1)
            return self.inner(x)

    assert lh.analyze(lh.Objective(Logging(), (X, Y), CE)).converged


def test_a_model_that_keeps_activations_is_copied_without_their_graphs() -> None:
    """So that its rounding can be measured: deepcopy refuses tensors that carry a graph."""

    class Keeps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.latest = x
            self.history = [x, {"again": x}]
            return x

    model = mlp(Keeps())
    model(X)
    analysis = lh.analyze(lh.Objective(model, (X, Y), CE))
    assert {spectrum.rounding_source for spectrum in analysis.spectra()} == {"measured"}


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].requires_grad_(False),
        lambda m: setattr(m[0], "weight", nn.Parameter(torch.ones(5, 4).double())),
        lambda m: m.float(),
        lambda m: m.append(nn.Linear(3, 3).double()),
    ],
    ids=["frozen", "replaced", "cast", "extended"],
)
def test_a_model_changed_after_the_objective_was_made_is_refused(change: Callable[[nn.Module], Any]) -> None:
    model = mlp()
    objective = lh.Objective(model, (X, Y), CE)
    change(model)
    with refused(model, "after the Objective was made", "make a new"):
        lh.analyze(objective)
    with refused(model, "after the Objective was made"):
        product(objective)


def test_a_step_of_training_is_no_change_of_that_kind() -> None:
    model = mlp()
    objective = lh.Objective(model, (X, Y), CE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    assert not torch.allclose(product(objective), EXPECTED)


def test_which_parameters_count() -> None:
    """Tied ones once, under their first name; frozen and integer ones not, but listed."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight
            self.a.bias.requires_grad_(False)
            self.index = nn.Parameter(torch.arange(4), requires_grad=False)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.b(self.a(x)))[:, self.index])

    objective = lh.Objective(Mixed().double(), (X, Y), CE)
    assert list(objective.parameters) == ["a.weight", "head.weight", "head.bias"]
    assert objective.frozen == ("index", "a.bias") or set(objective.frozen) == {"index", "a.bias"}
    analysis = lh.analyze(objective, max_passes=2)
    assert set(analysis.frozen) == {"index", "a.bias"} and analysis.total_numel == objective.numel == 16 + 15


def test_the_loss_is_that_of_training() -> None:
    model = mlp()
    analysis = lh.analyze(lh.Objective(model, [(X[:5], Y[:5]), (X[5:], Y[5:])], CE), max_passes=2)
    assert analysis.loss == pytest.approx(F.cross_entropy(model(X), Y).item(), rel=1e-12)
    assert (analysis.examples, analysis.batches, analysis.loss_count) == (12, 2, 12.0)
    gradients = torch.autograd.grad(F.cross_entropy(model(X), Y), list(model.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    assert analysis.gradient_norm == pytest.approx(norm, rel=1e-10)


# -- refused in words --------------------------------------------------------------------------------------------------

TABLE = Table()
case = TABLE.case

case("no trainable parameters: none at all", "no trainable parameters", "Tanh")(analysis(model=nn.Tanh))
case("no trainable parameters: all frozen", "4 are frozen", "requires_grad_(True)")(
    analysis(model=lambda: mlp().requires_grad_(False))
)
case("complex parameters", "complex", "weight", "real and imaginary")(
    analysis(model=lambda: nn.Linear(4, 3, dtype=torch.complex64))
)
case("no module", "function, not a torch.nn.Module")(lambda: (None, lambda: lh.Objective(lambda x: x, PAIRS, CE)))
case("a lazy module", "no shape yet", "one batch")(lambda: (None, lambda: lh.Objective(nn.LazyLinear(3), PAIRS, CE)))
case("a model without values", "meta device")(
    lambda: (None, lambda: lh.Objective(nn.Linear(4, 3, device="meta"), PAIRS, CE))
)


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return mlp()


case("a model made in inference_mode", "inference_mode", "0.weight", "outside")(analysis(model=made_in_inference_mode))


@pytest.mark.parametrize("name", TABLE)
def test_models_that_cannot_be_analysed_are_refused_in_words(name: str) -> None:
    TABLE.check(name)

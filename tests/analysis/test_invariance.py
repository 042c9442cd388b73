"""What must not change anything changes nothing; and identities of curvature that hold for every network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import layerhess as lh
from zoo import BY_NAME, Built, batches_of, grow
from zoo_models import Attention

# Losses that count something else than examples, or that meet an ignored target: a mean of batch means is wrong here.
SPLITTABLE = (
    "mlp-relu-ce",
    "mlp-tanh-mse",
    "mlp-gelu-smoothing-weights-ignored",
    "mlp-silu-nll-weights",
    "cnn-residual-eval",
    "lstm",
    "transformer-tied-ignore",
    "bert-words-own-loss",
    "bert-words-logits",
    "gpt2-own-loss",
    "weighted-examples",
    "two-inputs",
)


def product(built: Built, data: Any = None, **kwargs: Any) -> Tensor:
    """The Hessian times one fixed vector, with other data or keywords."""
    built = built._replace(data=built.data if data is None else data, kwargs=built.kwargs | kwargs)
    size = sum(p.numel() for p in built.model.parameters() if p.requires_grad)
    vector = torch.randn(size, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    return lh.Hessian(built.objective(), "parameter", check=False).matvec(
        vector.to(next(built.model.parameters()).dtype)
    )


def accuracy_of(name: str) -> float:
    return 1e-6 if "own loss" in BY_NAME[name].tags else 1e-12


def assert_same(found: Tensor, expected: Tensor, accuracy: float) -> None:
    assert (found - expected).norm() <= accuracy * expected.norm()


def pieces(batch: Any, sizes: Sequence[int]) -> list[Any]:
    """A batch cut along its first dimension, whatever it is made of."""
    if isinstance(batch, Tensor):
        return list(batch.split(list(sizes)))
    if isinstance(batch, dict):
        cut = {key: pieces(value, sizes) for key, value in batch.items()}
        return [{key: value[i] for key, value in cut.items()} for i in range(len(sizes))]
    columns = [pieces(part, sizes) for part in batch]
    return [tuple(column[i] for column in columns) for i in range(len(sizes))]


def first_dimension(batch: Any) -> int:
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    return len(batch)


@pytest.mark.parametrize("name", SPLITTABLE)
def test_the_order_of_batches_does_not_matter(name: str) -> None:
    built = BY_NAME[name].build(torch.float64, 0)
    assert_same(product(built, batches_of(built.data)[::-1]), product(built), accuracy_of(name))


@pytest.mark.parametrize("name", SPLITTABLE)
def test_examples_may_be_split_into_batches_at_will(name: str) -> None:
    """One by one, and ragged: the first batch in two unequal parts."""
    built = BY_NAME[name].build(torch.float64, 0)
    whole = product(built)
    batches = batches_of(built.data)
    single = [piece for batch in batches for piece in pieces(batch, [1] * first_dimension(batch))]
    assert_same(product(built, single), whole, accuracy_of(name))
    ragged = [*pieces(batches[0], [1, first_dimension(batches[0]) - 1]), *batches[1:]]
    assert_same(product(built, ragged), whole, accuracy_of(name))


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("name", SPLITTABLE)
def test_batch_size_splits_without_changing_the_result(name: str, size: int) -> None:
    built = BY_NAME[name].build(torch.float64, 0)
    assert_same(product(built, batch_size=size), product(built), accuracy_of(name))


@pytest.mark.parametrize("name", ["mlp-relu-ce", "cnn-residual-eval", "lstm"])
def test_one_batch_of_everything_equals_a_loader_with_a_ragged_end(name: str) -> None:
    """A DataLoader yields lists; its last batch is smaller."""
    built = BY_NAME[name].build(torch.float64, 0)
    inputs, target = (torch.cat(parts) for parts in zip(*built.data, strict=True))
    dataset = TensorDataset(inputs, target)
    assert len(dataset) % 3 != 0
    assert_same(product(built, DataLoader(dataset, batch_size=3)), product(built, (inputs, target)), 1e-12)
    assert_same(product(built, (inputs, target)), product(built), 1e-12)


def test_a_shuffling_loader_gives_the_same_curvature() -> None:
    built = BY_NAME["mlp-relu-ce"].build(torch.float64, 0)
    inputs, target = (torch.cat(parts) for parts in zip(*built.data, strict=True))
    loader = DataLoader(TensorDataset(inputs, target), batch_size=5, shuffle=True)
    assert_same(product(built, loader), product(built), 1e-12)
    shuffled = lh.analyze(built._replace(data=loader).objective(), top=2, bottom=1)
    ordered = lh.analyze(built.objective(), top=2, bottom=1)
    for found, expected in [
        (shuffled.full, ordered.full),
        *zip(shuffled.blocks.values(), ordered.blocks.values(), strict=True),
    ]:
        assert all(found.converged)
        assert (np.abs(found.eigenvalues - expected.eigenvalues) <= found.error_bounds + expected.error_bounds).all()


def test_a_shuffling_loader_is_refused_where_the_split_is_part_of_the_loss() -> None:
    built = BY_NAME["cnn-batchnorm-train"].build(torch.float64, 0)
    inputs, target = (torch.cat(parts) for parts in zip(*built.data, strict=True))
    loader = DataLoader(TensorDataset(inputs, target), batch_size=5, shuffle=True)
    with pytest.raises(lh.InputError, match="(?i)batch.?norm|shuffl"):
        lh.analyze(built._replace(data=loader).objective())


def test_batch_norm_in_training_mode_depends_on_the_split() -> None:
    """The counterpart of the tests above: where the split is part of the loss, it is not hidden."""
    built = BY_NAME["cnn-batchnorm-train"].build(torch.float64, 0)
    inputs, target = (torch.cat(parts) for parts in zip(*built.data, strict=True))
    whole = product(built, (inputs, target))
    assert (product(built) - whole).norm() > 1e-3 * whole.norm()


def test_the_number_of_threads_does_not_matter() -> None:
    """On batches large enough for torch to share the work between threads."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(1000, 40, generator=generator, dtype=torch.float64)
    data = (inputs, torch.randint(0, 5, (1000,), generator=generator))
    model = grow(lambda: nn.Sequential(nn.Linear(40, 20), nn.GELU(), nn.Linear(20, 5)), torch.float64, 0)
    built = Built(model, data, nn.CrossEntropyLoss(), {})
    found: list[tuple[Tensor, lh.Analysis]] = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append((product(built), lh.analyze(built.objective(), blocks="weight", full=False)))
    (alone, one), (together, two) = found
    assert_same(together, alone, 1e-12)
    for left, right in zip(one.blocks.values(), two.blocks.values(), strict=True):
        assert (np.abs(left.eigenvalues - right.eigenvalues) <= left.error_bounds + right.error_bounds).all()


# --- identities ----------------------------------------------------------------------------------------------------


few = settings(max_examples=2 * settings.default.max_examples // 5)  # whole analyses
seeds = st.integers(0, 10_000)
widths = st.integers(1, 6)
activations = st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU, nn.Softplus])


def random_problem(
    seed: int, sizes: Sequence[int], activation: type[nn.Module], classes: int
) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A fully connected classifier with random weights on two unequal random batches."""

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), activation()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))

    generator = torch.Generator().manual_seed(seed)
    data = [
        (
            torch.randn(n, sizes[0], generator=generator, dtype=torch.float64),
            torch.randint(0, classes, (n,), generator=generator),
        )
        for n in (5, 3)
    ]
    return grow(make, torch.float64, seed), data


@given(seed=seeds, sizes=st.lists(widths, min_size=1, max_size=3), activation=activations, classes=st.integers(2, 4))
def test_traces_of_the_blocks_add_up_to_the_trace_of_the_whole(
    seed: int, sizes: list[int], activation: type[nn.Module], classes: int
) -> None:
    model, data = random_problem(seed, sizes, activation, classes)
    hessian = lh.Hessian(lh.Objective(model, data, nn.CrossEntropyLoss()), "parameter", check=False)
    diagonal = torch.as_tensor(hessian.to_dense()).diagonal()
    names = [name for name, _ in model.named_parameters()]
    traces = [float(torch.as_tensor(hessian.block(name).to_dense()).trace()) for name in names]
    assert abs(sum(traces) - float(diagonal.sum())) <= 1e-12 * float(diagonal.abs().sum())


@few
@given(seed=seeds, sizes=st.lists(widths, min_size=1, max_size=3), activation=activations, classes=st.integers(2, 4))
def test_eigenvalues_of_blocks_interlace_those_of_the_whole(
    seed: int, sizes: list[int], activation: type[nn.Module], classes: int
) -> None:
    """Cauchy: the i-th largest of a block is at most the i-th largest of the whole, and so from below."""
    model, data = random_problem(seed, sizes, activation, classes)
    analysis = lh.analyze(lh.Objective(model, data, nn.CrossEntropyLoss()), blocks="module", top=2, bottom=2)
    whole = analysis.full
    for block in analysis.blocks.values():
        slack = whole.error_bounds.max() + block.error_bounds.max()
        k = min(2, block.numel)
        assert (block.eigenvalues[:k] <= whole.eigenvalues[:k] + slack).all()
        assert (block.eigenvalues[-k:] >= whole.eigenvalues[-k:] - slack).all()


class ScaledBeforeNorm(nn.Module):
    """A linear layer, scaled, in front of BatchNorm with a vanishing eps: the loss does not see the scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3, bias=False)
        self.norm = nn.BatchNorm1d(3, eps=1e-30)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.first(x))))


@given(seed=seeds, scale=st.floats(0.05, 20.0))
def test_curvature_before_batch_norm_falls_with_the_square_of_the_scale(seed: int, scale: float) -> None:
    """L(a W) = L(W) gives H(a W) = H(W) / a^2, and H(W) W = -grad L(W) (Euler, degree -1 of the gradient)."""
    model = grow(ScaledBeforeNorm, torch.float64, seed).train()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (8,), generator=generator)

    def block() -> Tensor:
        objective = lh.Objective(model, (x, y), nn.CrossEntropyLoss())
        return torch.as_tensor(lh.Hessian(objective, "parameter", check=False).block("first.weight").to_dense())

    before = block()
    weight = model.get_parameter("first.weight")
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), weight)
    euler = before @ weight.detach().reshape(-1) + gradient.reshape(-1)
    assert euler.norm() <= 1e-9 * (before.norm() * weight.norm())
    with torch.no_grad():
        weight.mul_(scale)
    assert (block() * scale**2 - before).norm() <= 1e-9 * before.norm()


@few
@given(seed=seeds, causal=st.booleans(), fused=st.booleans())
def test_the_bias_of_the_keys_has_no_curvature(seed: int, causal: bool, fused: bool) -> None:
    """Softmax does not see a number added to all scores of a row: eigenvalue 0.0, and a status that says zero."""

    def make() -> nn.Module:
        return nn.Sequential(
            Attention(4, heads=2, fused=fused, causal=causal), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)
        )

    generator = torch.Generator().manual_seed(seed)
    data = (torch.randn(5, 3, 4, generator=generator).double(), torch.randint(0, 2, (5,), generator=generator))
    objective = lh.Objective(grow(make, torch.float64, seed), data, nn.CrossEntropyLoss())
    result = lh.analyze(objective, blocks={"key": "0.key.bias", "query": "0.query.bias"}, top=1, bottom=1, full=False)
    assert (result.blocks["key"].eigenvalues == 0.0).all()
    assert "zero" in result.blocks["key"].status.lower()
    assert not result.blocks["query"].status.startswith("zero")


@few
@given(seed=seeds, factor=st.floats(1e-3, 1e3))
def test_eigenvalues_scale_with_the_loss(seed: int, factor: float) -> None:
    def loss(scale: float) -> Any:
        return lh.batch_loss(lambda m, b: (scale * F.cross_entropy(m(b[0]), b[1], reduction="sum"), len(b[1])))

    model, data = random_problem(seed, [3, 4], nn.Tanh, 3)
    values = [lh.analyze(lh.Objective(model, data, loss(scale)), top=3, bottom=3).full for scale in (1.0, factor)]
    assert np.abs(values[1].eigenvalues / factor - values[0].eigenvalues).max() <= (
        values[0].error_bounds.max() + values[1].error_bounds.max() / factor
    )

"""Products with graphs in segments: those of a dense Hessian, to float64's last digits, for every kind of matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL, DataPass, Request
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.curvature.matrices import CURVATURE_MATRICES
from layerhess.curvature.segments.found import Segment, found_segments
from layerhess.curvature.segments.segmented import Segmented
from layerhess.objective.blocks import make_block
from references import dense
from repeated_blocks import LENGTH, REPEATED, VOCABULARY, Recycled, Tied
from witness import untouched
from zoo_losses import cross_entropy_totals


def vectors(numel: int, rows: int) -> Tensor:
    """The same for every caller."""
    return torch.randn(rows, numel, dtype=torch.float64, generator=torch.Generator().manual_seed(numel))


def products(objective: lh.Objective, make: Any, rows: int = 2) -> dict[str, Tensor]:
    """Of the full matrix and of every parameter's block, with random vectors, over all the data."""
    parameters = objective.parameters
    blocks = {name: make_block(name, {name: p}) for name, p in parameters.items()}
    blocks[FULL] = make_block(FULL, parameters)
    asked = {key: Request(block, vectors(block.numel, rows)) for key, block in blocks.items()}
    with objective.session():
        return DataPass(objective, list(parameters), Counters(), make_graph=make).run(asked)


def furthest(here: dict[str, Tensor], there: dict[str, Tensor]) -> float:
    """Relative to the largest product of any block: some blocks are exactly zero."""
    assert here.keys() == there.keys()
    size = max(float(product.norm()) for product in there.values())
    return max(float((here[key] - there[key]).norm()) for key in there) / size


@pytest.mark.parametrize("name", REPEATED)
def test_a_product_in_segments_is_that_of_the_dense_hessian(name: str) -> None:
    objective = REPEATED[name].build()
    segments = found_segments(objective.model)
    assert tuple(map(str, segments)) == REPEATED[name].segments
    reference = dense.reference_for(objective.model, objective.data, cross_entropy_totals)
    made = products(objective, Segmented(HessianGraph, segments, len(segments) // 2))
    for key, product in made.items():
        names = list(objective.parameters) if key == FULL else [key]
        matrix = torch.from_numpy(reference.block(names))
        v = vectors(len(matrix), 2)
        assert float((product - v @ matrix).norm()) <= 1e-13 * reference.norm * float(v.norm()), key


@pytest.mark.parametrize(
    ("name", "matrix"),
    [("resnet", "gauss_newton"), ("plain layers", "empirical_fisher"), ("transformer", "empirical_fisher:token")],
)
def test_every_matrix_may_be_made_in_segments(name: str, matrix: str) -> None:
    objective, make = REPEATED[name].build(), CURVATURE_MATRICES[matrix].make_graph
    with untouched(objective.model):
        made = products(objective, Segmented(make, found_segments(objective.model)), rows=1)
    assert furthest(made, products(objective, make, rows=1)) <= 1e-14


def test_a_layer_that_is_called_three_times() -> None:
    torch.manual_seed(0)
    x, y = torch.randint(0, VOCABULARY, (3, LENGTH)), torch.randint(0, VOCABULARY, (3, LENGTH))
    objective = lh.Objective(Recycled().double(), (x, y), nn.CrossEntropyLoss())
    there = products(objective, HessianGraph)
    for held in (0, 1):
        made = products(objective, Segmented(HessianGraph, (Segment("layer"),), held))
        assert furthest(made, there) <= 1e-14


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_layers_of_transformers_with_their_masks_and_caches(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    if kind == "gpt2":  # with a cache, into which every layer writes
        config = transformers.GPT2Config(n_positions=LENGTH, n_embd=4, n_layer=2, n_head=2, n_inner=5, **small)
        model = transformers.GPT2LMHeadModel(config)
        assert config.use_cache
    else:
        sizes = {"hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 5}
        model = transformers.BertForMaskedLM(transformers.BertConfig(max_position_embeddings=LENGTH, **sizes, **small))
    words, mask = torch.randint(1, VOCABULARY, (2, LENGTH)), torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, 3:] = 0
    batch = {"input_ids": words, "attention_mask": mask, "labels": words.masked_fill(mask == 0, -100)}
    objective = lh.Objective(model.eval(), [batch])
    segments = found_segments(objective.model)
    assert len(segments) == 2
    with untouched(objective.model):
        made = products(objective, Segmented(HessianGraph, segments), rows=1)
    assert furthest(made, products(objective, HessianGraph, rows=1)) <= 1e-5


def test_a_loss_that_differentiates_the_network_itself() -> None:
    """Third derivatives of the segments: the penalty is on the gradient with respect to the input."""
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(3) for layer in (nn.Linear(3, 3), nn.Tanh())], nn.Linear(3, 1))
    objective = lh.Objective(model.double(), [torch.randn(4, 3).double()], lh.batch_loss(_slopes))
    segments = found_segments(objective.model)
    assert len(segments) == 3
    made = products(objective, Segmented(HessianGraph, segments, held=2))
    assert furthest(made, products(objective, HessianGraph)) <= 1e-13


def _slopes(model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
    x = batch.requires_grad_(True)
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return ((slope.square().sum(1) - 1.0).square()).sum() + model(x).square().sum(), len(x)


class _Noisy(nn.Module):
    """Dropout and a random number of its own in every block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 4)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(3)
        for block in self.blocks:
            x = x + block(x)
        return x


def test_random_numbers_are_those_of_the_first_evaluation() -> None:
    torch.manual_seed(0)
    data = (torch.randn(6, 4).double(), torch.randint(0, 4, (6,)))
    objective = lh.Objective(_Noisy().double(), data, nn.CrossEntropyLoss())
    segments = tuple(Segment(f"blocks.{i}") for i in range(3))
    made = products(objective, Segmented(HessianGraph, segments, held=2))
    there = products(objective, HessianGraph)
    assert furthest(made, there) <= 1e-14 and float(there["blocks.0.0.weight"].norm()) > 0.0


def test_autocast_is_the_same_in_what_is_computed_anew() -> None:
    """The embedding is cast inside a segment and outside of it: a cached cast would have lost its gradient."""
    torch.manual_seed(0)
    x, y = torch.randint(0, VOCABULARY, (3, LENGTH)), torch.randint(0, VOCABULARY, (3, LENGTH))

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[0])
        return F.cross_entropy(logits.float(), batch[1], reduction="sum"), batch[1].numel()

    objective = lh.Objective(Tied(), [(x, y)], lh.batch_loss(loss))
    made = products(objective, Segmented(HessianGraph, found_segments(objective.model)))
    assert furthest(made, products(objective, HessianGraph)) <= torch.finfo(torch.bfloat16).eps


class _Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.tanh_())


def test_a_batch_with_a_call_that_cannot_be_repeated_is_made_without_segments() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), _Writes(), _Writes()).double()
    data = (torch.randn(4, 3).double(), torch.randint(0, 3, (4,)))
    objective = lh.Objective(model, data, nn.CrossEntropyLoss())
    segments = found_segments(model)
    assert len(segments) == 2
    with untouched(model):
        made = products(objective, Segmented(HessianGraph, segments))
    assert furthest(made, products(objective, HessianGraph)) == 0.0


def test_weights_that_moved_are_not_mixed_with_those_of_the_graph() -> None:
    objective = REPEATED["transformer"].build()
    make = Segmented(HessianGraph, found_segments(objective.model))
    with objective.session():
        names = list(objective.parameters)
        graph = make(objective, next(objective.batches()), names, Counters())
        vector = {name: torch.ones_like(p) for name, p in objective.parameters.items()}
        with torch.no_grad():
            objective.parameters["layers.0.inner.0.weight"].add_(0.1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            graph.product(names, vector)


def test_no_dependence_is_still_no_dependence() -> None:
    objective = REPEATED["transformer"].build()
    first, last = (f"layers.{i}.inner.2.bias" for i in (0, 1))
    unused = nn.Parameter(torch.ones(2).double())
    objective.model.layers[0].register_parameter("unused", unused)
    objective = lh.Objective(objective.model, objective.data, nn.CrossEntropyLoss())
    with objective.session():
        names = list(objective.parameters)
        make = Segmented(HessianGraph, found_segments(objective.model))
        graph = make(objective, next(objective.batches()), names, Counters())
        assert graph.gradient["layers.0.unused"] is None
        rows = ["layers.0.unused", first]
        parts = graph.product([last], {last: torch.ones_like(objective.parameters[last])}, rows)
        assert parts[0] is None and parts[1] is not None

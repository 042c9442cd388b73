"""The default budget; batches cut to one, or left whole where they cannot be; pieces of unequal kinds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from layerhess.analysis import microbatches
from layerhess.analysis.microbatches import step_bytes
from layerhess.checks.survey import survey
from layerhess.curvature.counters import Counters
from layerhess.curvature.device import KEPT_SHARE, Budget, memory_limit
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.objective.blocks import make_block
from wide_network import GIB, wide


class _OfTransforms(nn.Module):
    """Runs torch.func inside, which does not let anybody watch what is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        slopes = torch.func.vmap(torch.func.grad(lambda row: self.layer(row).logsumexp(-1)))(x)
        return self.layer(x) + slopes[:, :3]


def test_a_model_of_transforms_takes_a_budget() -> None:
    torch.manual_seed(0)
    objective = lh.Objective(_OfTransforms(), (torch.randn(50, 8), torch.randint(0, 3, (50,))), nn.CrossEntropyLoss())
    free, held = lh.analyze(objective), lh.analyze(objective, memory="1GB")
    assert free.converged and held.converged
    np.testing.assert_allclose(held.full.eigenvalues, free.full.eigenvalues, rtol=2e-3)


@pytest.mark.parametrize("other", ["e", torch.tensor(0.0), torch.zeros(7)], ids=["a word", "0-d", "another length"])
def test_a_batch_that_cannot_be_cut_is_left_whole(other: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    x, y = torch.randn(20000, 8), torch.randint(0, 3, (20000,))
    loss = lh.batch_loss(lambda m, b: (F.cross_entropy(m(b["x"]), b["y"], reduction="sum"), len(b["y"])))
    data = [{"x": x, "y": y}, {"x": x[:100], "y": y[:100], "id": other}]
    found = lh.analyze(lh.Objective(model, data, loss), tol=1e-2, path="exact", full=False, memory="10MB")
    assert found.converged and found.batches > 2
    assert all("of which a forward pass" in note for note in found.notes if "cut into pieces" in note)


def test_rounding_is_measured_where_batches_have_images_of_other_sizes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Tanh(), nn.Conv2d(4, 3, 1))
    with torch.no_grad():
        model[2].weight.mul_(12.0)

    def batch(side: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(12, 2, side, side) * 4.0
        x[0] *= 0.05
        return x, model(x).argmax(1)

    found = lh.analyze(lh.Objective(model, [batch(5), batch(6), batch(7)], nn.CrossEntropyLoss()), path="exact")
    assert found.full.rounding_source == "measured" and not any("another precision" in note for note in found.notes)


class _SinglePrecisionOnly(nn.Module):
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        assert output.dtype == torch.float32
        return F.cross_entropy(output, target)


def test_a_criterion_that_refuses_float64_in_its_own_way_is_taken_in_float32() -> None:
    torch.manual_seed(0)
    data = [(torch.randn(40, 3), torch.randint(0, 2, (40,))) for _ in range(2)]
    model = nn.Linear(3, 2)
    found = lh.analyze(lh.Objective(model, data, _SinglePrecisionOnly()))
    same = lh.analyze(lh.Objective(model, data, nn.CrossEntropyLoss()))
    assert found.converged and same.converged
    np.testing.assert_allclose(found.full.eigenvalues, same.full.eigenvalues, rtol=2e-3)


# -- by default --------------------------------------------------------------------------------------------------------


def test_a_training_step_is_what_its_backward_pass_needs() -> None:
    """The inputs of the layers and the outputs of Tanh, of every example; gradients, and an optimiser's."""
    objective = wide(n=500)
    with objective.session():
        surveyed = survey(objective, Counters())
        found = step_bytes(objective, surveyed)
    weights = 2 * 4 * objective.numel
    saved = 500 * 4 * (16 + 256 + 256)  # the input, and each Tanh's output, which is the next layer's input
    assert saved + weights <= found <= 1.1 * saved + weights


def test_by_default_a_few_training_steps_or_the_usual_but_never_more_than_is_free() -> None:
    free = Budget(100 * GIB)
    assert microbatches.default_budget(1 << 20, free).limit == microbatches.USUAL
    assert microbatches.default_budget(20 * GIB, free).limit == 50 * GIB
    assert microbatches.default_budget(60 * GIB, free).limit == 100 * GIB
    assert not microbatches.default_budget(1, free).asked and lh.analyze(wide(), full=False).settings["memory"] is None


@pytest.mark.parametrize("path", ["exact", "factors"])
def test_a_batch_too_large_for_the_default_is_cut_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).double()
    data = (torch.randn(1500, 16, dtype=torch.float64), torch.randint(0, 10, (1500,)))
    arguments: dict[str, Any] = {"blocks": "weight", "full": False, "path": path, "tol": 1e-6}
    free = lh.analyze(lh.Objective(model, data, nn.CrossEntropyLoss()), **arguments)
    monkeypatch.setattr(microbatches, "USUAL", 4 << 20)
    held = lh.analyze(lh.Objective(model, data, nn.CrossEntropyLoss()), **arguments)
    assert not any("cut into pieces" in note for note in free.notes)
    assert any("cut into pieces" in note for note in held.notes)
    if path == "factors":  # what an exact graph holds is not known where a process does not grow
        assert any("memory='1GiB' would keep them all" in note for note in held.notes)
    assert not any("would keep" in note for note in free.notes)
    for name, block in free.blocks.items():
        assert block.converged.all() and held.blocks[name].converged.all()
        np.testing.assert_allclose(held.blocks[name].eigenvalues, block.eigenvalues, rtol=1e-9)


def trained(width: int, steps: int, seed: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A ReLU network after some steps of Adam, with its 9,000 examples and labels, in float64."""
    torch.manual_seed(seed)
    layers = [nn.Linear(24, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
    model = nn.Sequential(*layers).double()
    x = torch.randn(9000, 24).double() * torch.logspace(0.5, -1.0, 24)
    y = (x @ torch.randn(24, 10).double()).argmax(1)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model, x, y


def in_batches(model: nn.Module, x: Tensor, y: Tensor, size: int = 1500) -> lh.Objective:
    return lh.Objective(model, list(zip(x.split(size), y.split(size), strict=True)), nn.CrossEntropyLoss())


@pytest.fixture(scope="module")
def trained_network() -> tuple[lh.Objective, dict[str, np.ndarray]]:
    """The objective of a trained network, and NumPy's eigenvalues of its explicit blocks, descending.

    They are Gauss-Newton's (Botev, Ritter & Barber 2017): the mean of (D S D') x (a a'), with a layer's input a and the
    logits' derivatives D with respect to its output.
    """
    model, x, y = trained(width=24, steps=30, seed=0)
    with torch.no_grad():
        inputs, p = [x, model[:2](x), model[:4](x)], model(x).softmax(1)
        s = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        d, spectra = torch.eye(10).double().expand_as(s), {}
        for layer, a in zip((4, 2, 0), reversed(inputs), strict=True):
            outer, inner = (d @ s @ d.mT).flatten(1), (a[:, :, None] * a[:, None]).flatten(1)
            m, n = d.shape[1], a.shape[1]
            block = (outer.T @ inner / len(x)).view(m, m, n, n).transpose(1, 2).reshape(m * n, m * n)
            spectra[f"{layer}.weight"] = np.linalg.eigvalsh(block.numpy())[::-1]
            d = (a > 0.0)[:, :, None] * (model[layer].weight.T @ d)
    return in_batches(model, x, y), spectra


@pytest.mark.parametrize("top", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_factors_that_cannot_be_kept_are_made_for_eight_vectors_at_a_time(
    trained_network: tuple[lh.Objective, dict[str, np.ndarray]], top: int
) -> None:
    """Two thirds of the passes or less, and every eigenvalue within its bound of NumPy's for the explicit block."""
    objective, spectra = trained_network
    kept, streamed = (
        lh.analyze(objective, blocks="weight", top=top, full=False, memory=memory) for memory in (None, "25MB")
    )
    assert streamed.converged and 3 * streamed.counts.passes <= 2 * kept.counts.passes
    assert any("cut into pieces" in note for note in streamed.notes)
    for name, found in streamed.blocks.items():
        assert (np.abs(found.eigenvalues - spectra[name][:top]) <= found.error_bounds).all(), name
        assert found.missed_factor <= 1.1 or top > 1


@pytest.mark.parametrize(("memory", "kept"), [("64GiB", True), ("4MB", False)])
def test_whether_all_graphs_fit_is_known_beforehand(memory: str, kept: bool) -> None:
    objective = wide(batches=20)
    with objective.session():
        surveyed = survey(objective, Counters())
        blocks = [make_block(name, {name: p}) for name, p in objective.parameters.items()]
        limit = Budget(1 << 50, memory_limit(memory))
        found = microbatches.microbatches(objective, surveyed, HessianGraph, blocks, limit, step=1 << 20, directions=0)
        each = microbatches.graph_bytes(objective, surveyed.sample, HessianGraph, blocks) / len(surveyed.sample[0])
    assert found.kept is kept
    assert (each * 20 * 64 <= KEPT_SHARE * (limit.limit or 0)) is kept


@pytest.mark.parametrize("path", ["auto", "exact"])
def test_batches_that_are_views_of_all_the_data_count_as_what_they_are(path: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(250, 2, 1000), torch.randint(2, (250, 2))
    model = nn.Sequential(nn.Linear(1000, 4), nn.Tanh(), nn.Linear(4, 2))
    objective = lh.Objective(model, list(zip(x, y, strict=True)), nn.CrossEntropyLoss())
    found = lh.analyze(objective, blocks="weight", full=False, memory="10MB", path=path, max_passes=1, exclude=None)
    assert not any("pieces" in note for note in found.notes), "a batch has 8 kB, of 2 MB"

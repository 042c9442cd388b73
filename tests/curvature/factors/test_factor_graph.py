"""Products by factors, and where the Hessian's block is Gauss-Newton's, against dense matrices over the whole zoo."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import layerhess as lh
from layerhess.curvature.counters import Counters
from layerhess.curvature.factors.factor_graph import FactorGraph
from layerhess.curvature.factors.output_hessian import output_directions
from piecewise_linear import LICENSED, TRICKY, Branches
from references import curvature, dense
from zoo import BY_NAME, CASES, Case
from zoo_blocks import TIED, Blocks, built, schemes


def products(
    objective: lh.Objective, blocks: Blocks
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]], set[str]]:
    """Vectors and products of the blocks factored in every batch, and which of these are linear in all of them."""
    drawn = torch.Generator().manual_seed(3)
    vectors = {n: torch.randn(p.shape, generator=drawn, dtype=p.dtype) for n, p in objective.parameters.items()}
    sums = {key: torch.zeros(sum(vectors[n].numel() for n in names)).double() for key, names in blocks.items()}
    good, linear, count = set(blocks), set(blocks), 0.0
    with objective.session():
        for batch in objective.batches():
            graph = FactorGraph(objective, batch, blocks, Counters())
            good &= graph.factored
            linear &= graph.linear
            count += graph.count
            for key in good:
                parts = graph.product(blocks[key], vectors)
                zeros = [torch.zeros_like(vectors[n]) for n in blocks[key]]
                sums[key] += torch.cat(
                    [(z if part is None else part).reshape(-1) for part, z in zip(parts, zeros, strict=True)]
                ).double()
    flat = {key: torch.cat([vectors[n].reshape(-1) for n in blocks[key]]).double().numpy() for key in good}
    return flat, {key: (sums[key] / count).numpy() for key in good}, linear & good


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in TIED], ids=str)
def test_factor_products_are_those_of_dense_gauss_newton_blocks(case: Case) -> None:
    objective = built(case)
    blocks = schemes(objective)
    reference = curvature.of_case(case.name, "gauss_newton")
    flat, found, _ = products(objective, blocks)
    for key, product in found.items():
        expected = reference.block(blocks[key]) @ flat[key]
        scale = max(np.linalg.norm(expected), 1e-12 * reference.norm * np.linalg.norm(flat[key]))
        assert np.linalg.norm(product - expected) <= case.tolerance * scale, key


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in TIED], ids=str)
def test_where_the_output_is_called_linear_the_hessians_block_is_gauss_newtons(case: Case) -> None:
    objective = built(case)
    blocks = schemes(objective)
    hessian = dense.of_case(case.name)
    flat, found, linear = products(objective, blocks)
    for key in linear:
        expected = hessian.block(blocks[key]) @ flat[key]
        scale = max(np.linalg.norm(expected), 1e-12 * hessian.norm * np.linalg.norm(flat[key]))
        assert np.linalg.norm(found[key] - expected) <= max(case.tolerance, case.inherent) * scale, key


@pytest.mark.parametrize("name", LICENSED)
def test_the_blocks_in_which_a_network_is_piecewise_linear(name: str) -> None:
    objective = built(BY_NAME[name])
    blocks = {n: [n] for n in objective.parameters}
    with objective.session():
        graph = FactorGraph(objective, next(iter(objective.batches())), blocks, Counters())
    expected = LICENSED[name]
    unused = {"unused.weight", "unused.bias"}
    assert graph.linear - unused == (set(blocks) if expected is None else expected) - unused


# -- networks that look piecewise linear and are not -------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRICKY)
def test_what_looks_piecewise_linear_and_is_not(kind: str) -> None:
    torch.manual_seed(0)
    model = Branches(kind).double()
    objective = lh.Objective(model, (torch.randn(11, 5).double(), torch.randint(3, (11,))), nn.CrossEntropyLoss())
    weights = {name: [f"{name}.weight"] for name in ("stem", "left", "right", "head")}
    flat, found, linear = products(objective, weights)
    unused = {"right"} if kind in ("twice", "shifted weights") else set()
    assert linear - unused == TRICKY[kind]
    matrix = lh.Hessian(objective, blocks={key: names[0] for key, names in weights.items()})
    for key in found:
        exact = matrix.block_matvec({key: torch.from_numpy(flat[key])})[key].numpy()
        close = np.linalg.norm(found[key] - exact) <= 1e-10 * np.linalg.norm(exact)
        assert close or key not in linear, key


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in TIED], ids=str)
def test_products_of_several_vectors_are_those_of_each(case: Case) -> None:
    objective = built(case)
    blocks = schemes(objective)
    drawn = torch.Generator().manual_seed(4)
    rows = {n: torch.randn((3, *p.shape), generator=drawn, dtype=p.dtype) for n, p in objective.parameters.items()}
    with objective.session():
        graph = FactorGraph(objective, next(iter(objective.batches())), blocks, Counters())
        largest = 0.0
        for key in sorted(graph.factored, key=lambda key: -len(blocks[key])):  # everything first
            together = graph.products(blocks[key], rows)
            largest = max(largest, *(float(part.abs().max()) for part in together if part is not None), 0.0)
            for i in range(3):
                alone = graph.product(blocks[key], {n: part[i] for n, part in rows.items()})
                for one, many in zip(alone, together, strict=True):
                    assert (one is None) == (many is None)
                    if one is not None and many is not None:
                        assert torch.allclose(one, many[i], rtol=1e-9, atol=1e-14 * largest), key


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in TIED], ids=str)
def test_squared_rows_are_the_dense_diagonal_and_the_items_own_traces(case: Case) -> None:
    objective = built(case)
    blocks = schemes(objective)
    reference = curvature.of_case(case.name, "gauss_newton")
    diagonals: dict[str, Tensor] = {}
    traces = dict.fromkeys(blocks, 0.0)
    good, count = set(blocks), 0.0
    with objective.session():
        for batch in objective.batches():
            graph = FactorGraph(objective, batch, blocks, Counters())
            count += graph.count
            for key in list(good):
                found = graph.squares(blocks[key]) if key in graph.factored else None
                if found is None:
                    good.discard(key)
                    continue
                flat = torch.cat([part.reshape(-1) for part in found[0]]).double()
                diagonals[key] = diagonals[key] + flat if key in diagonals else flat
                traces[key] += float(found[1].sum())
                assert found[1].shape == (graph.items,)
    assert good or case.name not in (
        "mlp-relu-ce",
        "cnn-batchnorm-eval",
        "cnn-groups-stride-dilation",
        "tied-used-twice",
    )
    for key in good:
        expected = np.diag(reference.block(blocks[key]))
        scale = max(np.abs(expected).max(), 1e-12 * reference.norm)
        assert np.abs(diagonals[key].numpy() / count - expected).max() <= 10 * case.tolerance * scale, key
        assert traces[key] / count == pytest.approx(
            expected.sum(), rel=1e-9, abs=case.tolerance * scale * len(expected)
        )


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in TIED], ids=str)
def test_forms_are_those_of_single_items(case: Case) -> None:
    objective = built(case)
    blocks = schemes(objective)
    drawn = torch.Generator().manual_seed(5)
    rows = {n: torch.randn((2, *p.shape), generator=drawn, dtype=p.dtype) for n, p in objective.parameters.items()}
    with objective.session():
        graph = FactorGraph(objective, next(iter(objective.batches())), blocks, Counters())
        for key in graph.factored:
            forms = graph.forms(blocks[key], rows)
            assert forms.shape == (graph.items, 2)
            products = graph.products(blocks[key], rows)
            for i in range(2):
                parts = zip(blocks[key], products, strict=True)
                whole = sum(float((part[i] * rows[n][i]).sum()) for n, part in parts if part is not None)
                assert float(forms[:, i].sum()) == pytest.approx(whole, rel=1e-9, abs=1e-12)


def test_a_layer_that_is_computed_and_not_used_has_no_curvature() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.idle(x)
            return self.used(x)

    objective = lh.Objective(
        Idle().double(), (torch.randn(6, 4).double(), torch.randint(3, (6,))), nn.CrossEntropyLoss()
    )
    names = list(objective.parameters)
    with objective.session():
        graph = FactorGraph(objective, next(iter(objective.batches())), {"all": names}, Counters())
        found = graph.squares(names)
        product = graph.product(names, {name: torch.ones_like(p) for name, p in objective.parameters.items()})
    assert found is not None and not bool(found[0][2].any()) and bool(found[0][0].any())
    assert product[2] is None and product[0] is not None


@pytest.mark.parametrize("name", ["mlp-relu-ce", "cnn-batchnorm-eval", "partly-frozen", "tied-used-twice"])
def test_the_gradient_comes_along(name: str) -> None:
    objective = built(BY_NAME[name])
    with objective.session():
        batch = next(iter(objective.batches()))
        graph = FactorGraph(objective, batch, {"all": list(objective.parameters)}, Counters())
        loss, _ = objective.terms(batch)
        expected = torch.autograd.grad(loss, list(objective.parameters.values()))
    assert graph.factored == {"all"}
    for key, gradient in zip(objective.parameters, expected, strict=True):
        assert torch.allclose(graph.gradients[key], gradient, rtol=1e-10, atol=1e-14), key


def test_an_overwritten_input_is_not_used() -> None:
    """The layer's input is doubled in place after the layer has seen it."""

    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x) + 0.0
            z = self.second(h)
            h.mul_(2.0)
            return z

    model = Overwriting().double()
    objective = lh.Objective(model, (torch.randn(6, 4).double(), torch.randint(3, (6,))), nn.CrossEntropyLoss())
    with objective.session():
        blocks = {name: [name] for name in objective.parameters}
        graph = FactorGraph(objective, next(iter(objective.batches())), blocks, Counters())
    assert "second.weight" not in graph.factored and "first.weight" in graph.factored


# -- the output's own curvature ----------------------------------------------------------------------------------------


def test_roots_of_the_output_hessian_of_cross_entropy() -> None:
    """S = diag(p) - p p' per item, of rank C - 1."""
    torch.manual_seed(0)
    z = torch.randn(7, 5).double().requires_grad_()
    inner = z * 1.0
    loss = F.cross_entropy(inner, torch.randint(5, (7,)), reduction="sum")
    directions = output_directions(loss, inner)
    assert directions is not None
    roots, signs, slope = directions.roots, directions.signs, directions.slope
    p = torch.softmax(z.detach(), dim=1)
    expected = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    assert roots.shape == (7, 5, 4) and bool((signs >= 0).all())
    assert torch.allclose(slope, torch.autograd.grad(loss, inner)[0], atol=1e-15)
    assert torch.allclose((roots * signs.unsqueeze(1)) @ roots.mT, expected, atol=1e-14)


def test_roots_of_a_loss_that_is_not_convex_keep_their_signs() -> None:
    inner = torch.tensor([[0.3, -1.2], [2.0, 0.1]]).double().requires_grad_() * 1.0
    directions = output_directions(torch.sin(inner).sum() + (inner[:, 0] * inner[:, 1]).sum(), inner)
    assert directions is not None
    roots, signs = directions.roots, directions.signs
    z = inner.detach()
    expected = torch.diag_embed(-torch.sin(z)) + torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    assert torch.allclose((roots * signs.unsqueeze(1)) @ roots.mT, expected, atol=1e-14)
    assert bool((signs < 0).any()) and bool((signs > 0).any())


def test_outputs_with_many_numbers_an_item_have_no_factors() -> None:
    model = nn.Sequential(nn.Linear(3, 40))
    objective = lh.Objective(model, (torch.randn(5, 3), torch.randint(40, (5,))), nn.CrossEntropyLoss())
    with objective.session():
        graph = FactorGraph(objective, next(iter(objective.batches())), {"w": ["0.weight"]}, Counters())
    assert not graph.factored and not graph.linear


def test_a_very_sure_network_has_no_direction_more_in_float32() -> None:
    """1 - p of the sure class has no digits in float32; in float64 S has rank C - 1, and is the one of mathematics."""
    logits = torch.tensor([[12.0, 0.0, -1.0, 2.0], [-3.0, 14.0, 1.0, 0.0], [0.3, 0.1, 0.2, 0.0]])
    output = logits.clone().requires_grad_() + 0.0
    target = torch.tensor([0, 1, 2])
    criterion = nn.CrossEntropyLoss(reduction="sum")
    directions = output_directions(criterion(output, target), output, lambda z: criterion(z, target))
    assert directions is not None and directions.roots.shape == (3, 4, 3) and directions.roots.dtype == torch.float32
    p = logits.double().softmax(dim=1)
    exact = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    roots = directions.roots.double()
    made = roots @ torch.diag_embed(directions.signs.double()) @ roots.mT
    assert ((made - exact).abs() <= 1e-6 * exact.abs().amax(dim=(1, 2), keepdim=True)).all()
    weighted = nn.CrossEntropyLoss(weight=torch.ones(4), reduction="sum")  # float32 weights: no float64 loss of it
    there = output_directions(weighted(output, target), output, lambda z: weighted(z, target))
    assert there is not None and torch.isfinite(there.roots).all()


def test_a_criterion_that_minds_float64_outputs_keeps_its_factors() -> None:
    """HuberLoss takes a float64 output with a float32 target, and only its second derivative does not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    data = (torch.randn(20, 4), torch.randn(20, 2))
    found = lh.analyze(lh.Objective(model, data, nn.HuberLoss()), full=False, path="factors")
    exact = lh.analyze(lh.Objective(model, data, nn.HuberLoss()), full=False, path="exact")
    for one, other in zip(found.blocks.values(), exact.blocks.values(), strict=True):
        assert abs(one.eigenvalues[0] - other.eigenvalues[0]) <= one.error_bounds[0] + other.error_bounds[0]

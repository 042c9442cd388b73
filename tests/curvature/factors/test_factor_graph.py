"""Products by factors, and where the Hessian's block is Gauss-Newton's, against dense matrices over the whole zoo."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import layerhess as lh
import zoo
from complete_spectra import CE, batches, net
from layerhess.curvature.counters import Counters
from layerhess.curvature.factors.factor_graph import FactorGraph
from piecewise_linear import LICENSED, TRICKY, Branches
from references import curvature, dense
from zoo import BY_NAME, CASES, Case, twins
from zoo_blocks import TIED, Blocks, built, schemes

every_case = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case), marks=pytest.mark.slow if case in twins(2) else ())
        for case in CASES
        if case.name not in TIED
    ],
)


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


@every_case
def test_factor_products_are_those_of_dense_gauss_newton_blocks(case: Case) -> None:
    objective = built(case)
    blocks = schemes(objective)
    reference = curvature.of_case(case.name, "gauss_newton")
    flat, found, _ = products(objective, blocks)
    for key, product in found.items():
        expected = reference.block(blocks[key]) @ flat[key]
        scale = max(np.linalg.norm(expected), 1e-12 * reference.norm * np.linalg.norm(flat[key]))
        assert np.linalg.norm(product - expected) <= case.tolerance * scale, key


@every_case
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


@every_case
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


@every_case
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


@every_case
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


# -- explicit rows -----------------------------------------------------------------------------------------------------


@every_case
def test_explicit_rows_make_the_dense_gauss_newton_block(case: Case) -> None:
    objective = built(case)
    blocks = schemes(objective)
    reference = curvature.of_case(case.name, "gauss_newton")
    made = {key: np.zeros_like(reference.block(names)) for key, names in blocks.items()}
    good, count = set(blocks), 0.0
    with objective.session():
        for batch in objective.batches():
            graph = FactorGraph(objective, batch, blocks, Counters())
            count += graph.count
            for key in list(good):
                rows = graph.rows(blocks[key]) if key in graph.factored else None
                if rows is None:
                    good.discard(key)
                    continue
                for part, signs in rows:
                    assert part.shape == (len(signs), len(made[key])) and len(part) <= graph.items
                    made[key] += ((part.T * signs) @ part).numpy()
    for key in good:
        expected = reference.block(blocks[key])
        scale = max(np.abs(expected).max(), 1e-12 * reference.norm)
        assert np.abs(made[key] / count - expected).max() <= 10 * case.tolerance * scale, key


def test_ignored_targets_have_no_rows() -> None:
    (x, y) = batches(10)[0]
    y[3:] = zoo.IGNORED
    objective = lh.Objective(net(), (x, y), CE)
    with objective.session():
        graph = FactorGraph(objective, next(iter(objective.batches())), {"w": ["0.weight"]}, Counters())
        rows = graph.rows(["0.weight"])
        assert rows is not None
        assert [len(part) for part, _ in rows] == [3, 3, 3]


def test_where_every_layer_is_tied_nothing_is_factored() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            z = self.layer(x)
            return z - z.mean(dim=0)

    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    objective = lh.Objective(Centred(), (x, torch.arange(6) % 3), nn.CrossEntropyLoss())
    with objective.session():
        graph = FactorGraph(objective, objective.data, {"w": ["layer.weight"], "b": ["layer.bias"]}, Counters())
    assert graph.factored == graph.linear == frozenset() and graph.gradients == {} and graph.count == 6.0

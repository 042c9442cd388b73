"""One batch's graphs and the operators made of them, against dense matrices made by autograd alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerhess.curvature.autograd_graph import inputs_first, leaves, walk
from layerhess.curvature.batch_graph import add_part, one_by_one
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.curvature.matrices import CURVATURE_MATRICES, GAUSS_NEWTON, HESSIAN, ITEM_FISHER, TOKEN_FISHER
from layerhess.curvature.operator import UncheckedOperator
from layerhess.curvature.output_graph import FisherGraph, GaussNewtonGraph
from layerhess.errors import InputError
from layerhess.objective.losses import batch_loss
from layerhess.objective.objective import Objective
from unused_parameter import data, dense, objective, places

# -- graphs ------------------------------------------------------------------------------------------------------------


def graph_of(kind: Any, names: list[str] | None = None) -> tuple[Any, Objective, Counters]:
    made, counters = objective(), Counters()
    with made.session():
        return kind(made, data()[0], list(made.parameters) if names is None else names, counters), made, counters


def gauss_newton(made: Objective) -> np.ndarray:
    """J' S J of the first batch, J row by row."""
    z = made.model(data()[0][0])
    p = list(made.parameters.values())
    rows = []
    for entry in z.reshape(-1):
        parts = torch.autograd.grad(entry, p, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [torch.zeros_like(w).reshape(-1) if g is None else g.reshape(-1) for g, w in zip(parts, p, strict=True)]
            )
        )
    j = torch.stack(rows).view(5, 3, -1)
    q = z.detach().softmax(1)
    s = torch.diag_embed(q) - q.unsqueeze(2) * q.unsqueeze(1)
    return torch.einsum("nip,nij,njq->pq", j, s, j).detach().numpy()


def fisher(made: Objective) -> np.ndarray:
    x, y = data()[0]
    p = list(made.parameters.values())
    total = 0.0
    for i in range(5):
        parts = torch.autograd.grad(F.cross_entropy(made.model(x[i]), y[i]), p, allow_unused=True)
        g = torch.cat(
            [torch.zeros_like(w).reshape(-1) if v is None else v.reshape(-1) for v, w in zip(parts, p, strict=True)]
        )
        total = total + torch.outer(g, g)
    return total.numpy()  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [HessianGraph, GaussNewtonGraph, FisherGraph])
def test_a_graph_multiplies_by_its_batchs_matrix_and_has_its_gradient(kind: Any) -> None:
    graph, made, counters = graph_of(kind)
    matrix = {HessianGraph: lambda: dense(made, data()[:1]), GaussNewtonGraph: lambda: gauss_newton(made),
              FisherGraph: lambda: fisher(made)}[kind]()  # fmt: skip
    at, names = places(made), ["b.weight", "unused", "a.bias"]
    columns = np.concatenate([at[n] for n in names])
    vectors = {n: torch.randn(2, *made.parameters[n].shape).double() for n in names}
    flat = torch.cat([v.reshape(2, -1) for v in vectors.values()], dim=1).numpy()
    for rows in (None, ["a.weight", "unused", "b.bias"]):
        wanted = rows or names
        found = graph.products(names, vectors, rows)
        for name, part in zip(wanted, found, strict=True):
            expected = flat @ matrix[np.ix_(columns, at[name])]
            if name == "unused":
                assert part is None or not part.any()
            else:
                np.testing.assert_allclose(part.reshape(2, -1), expected, atol=1e-13)
        single = graph.product(names, {n: v[0] for n, v in vectors.items()}, rows)
        for one, many in zip(single, found, strict=True):
            assert (one is None) is (many is None)
            if one is not None:
                torch.testing.assert_close(one, many[0])
    assert [part is None for part in graph.product(["unused"], {"unused": torch.ones(2).double()}, ["a.bias"])] == [
        True
    ]
    x, y = data()[0]
    total = F.cross_entropy(made.model(x), y, reduction="sum")
    gradient = torch.autograd.grad(total, list(made.parameters.values()), allow_unused=True)
    for name, expected_part in zip(made.parameters, gradient, strict=True):
        found_part = graph.gradient[name]
        assert (found_part is None) is (expected_part is None)
        if found_part is not None and expected_part is not None:
            torch.testing.assert_close(found_part.detach(), expected_part)
    assert graph.loss_sum == pytest.approx(float(total.detach())) and graph.count == 5.0
    held = sum(p.numel() for n, p in made.parameters.items() if n != "unused") * 8
    assert graph.nbytes == held * (1 if kind is HessianGraph else 2)
    counted = (counters.total("forwards"), counters.total("backwards"), counters.total("products"))
    assert counted == (1, 1 if kind is HessianGraph else 2, 7)
    assert len(graph.differentiable) == 4 + (kind is GaussNewtonGraph) and all(
        t.requires_grad for t in graph.differentiable[:4]
    )


def test_an_output_is_pushed_forward_pulled_back_and_curved() -> None:
    graph, made, _ = graph_of(GaussNewtonGraph)
    x, _ = data()[0]
    v = {n: torch.randn_like(p) for n, p in made.parameters.items()}
    weights = {n: p.detach() for n, p in made.parameters.items()}
    moved = torch.func.jvp(lambda w: torch.func.functional_call(made.model, w, (x,)), (weights,), (v,))[1]
    torch.testing.assert_close(graph.push_forward(v), moved)
    assert graph.push_forward({"unused": v["unused"]}) is None
    u = torch.randn(5, 3).double()
    back = graph.pull_back(["a.weight", "unused"], u)
    expected = torch.autograd.grad((made.model(x) * u).sum(), made.parameters["a.weight"])[0]
    torch.testing.assert_close(back["a.weight"], expected)
    assert back["unused"] is None
    q = made.model(x).detach().softmax(1)
    torch.testing.assert_close(graph.curve(u), q * u - q * (q * u).sum(1, keepdim=True))
    plain = graph_of(GaussNewtonGraph, [])[0]
    assert plain.gradient == {} and plain.nbytes == 0 and plain.output.shape == (5, 3)


def test_several_vectors_from_single_products() -> None:
    class Partly:
        def product(self, names: Any, vector: dict[str, Tensor], rows: Any = None) -> list[Tensor | None]:
            own = vector["a"]
            return [2.0 * own, None, None if float(own.sum()) < 0 else own]

    found = one_by_one(Partly(), ["a"], {"a": torch.tensor([[1.0], [-3.0]])})  # type: ignore[arg-type]
    assert found[0] is not None and found[0].tolist() == [[2.0], [-6.0]] and found[1] is None
    assert found[2] is not None and found[2].tolist() == [[1.0], [0.0]]
    total: dict[str, Tensor] = {}
    first = torch.ones(1)
    add_part(total, "a", first)
    assert total["a"] is first
    add_part(total, "a", first)
    assert total["a"].tolist() == [2.0] and first.tolist() == [1.0]


def test_a_walk_meets_every_node_once_and_inputs_come_first() -> None:
    x, y = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    inner = x * y
    root = (inner + inner.sin()).sum()
    nodes = list(walk([root.grad_fn, None, root.grad_fn]))
    assert len(nodes) == len(set(nodes)) == 6  # sum, add, sin, mul and two leaves
    assert leaves(nodes) == {id(x), id(y)} and leaves([root.grad_fn]) == set()
    beyond = list(walk([root.grad_fn], before=inner.grad_fn))
    assert len(beyond) == 3 and inner.grad_fn not in beyond
    order = inputs_first(root.grad_fn)
    assert set(order) == set(nodes) and order[-1] is root.grad_fn
    for node in order:
        assert all(order.index(f) < order.index(node) for f, _ in node.next_functions if f is not None)


# -- matrices and operators --------------------------------------------------------------------------------------------


def test_which_objectives_have_which_matrix() -> None:
    assert list(CURVATURE_MATRICES.values()) == [HESSIAN, GAUSS_NEWTON, ITEM_FISHER, TOKEN_FISHER]
    assert list(CURVATURE_MATRICES) == ["hessian", "gauss_newton", "empirical_fisher", "empirical_fisher:token"]
    plain = objective()
    one_step = objective(batch_loss(lambda model, batch: (model(batch[0]).sum(), 1)))
    cut = objective(batch_loss(lambda out, batch: (out.sum(), 1), output=lambda model, batch: model(batch[0])))
    tied = objective(model=nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double())
    admitted = {
        matrix.name: [made for made in (plain, one_step, cut, tied) if _admits(matrix, made)]
        for matrix in CURVATURE_MATRICES.values()
    }
    assert admitted == {
        "hessian": [plain, one_step, cut, tied], "gauss_newton": [plain, cut, tied],
        "empirical_fisher": [plain, one_step, cut], "empirical_fisher:token": [plain],
    }  # fmt: skip


def _admits(matrix: Any, made: Objective) -> bool:
    try:
        matrix.admit(made)
    except InputError:
        return False
    return True


def test_an_unchecked_operator_has_blocks_and_their_products_with_and_without_a_session() -> None:
    made = objective()
    operator = UncheckedOperator(made, HESSIAN, {"b": "b.*"})
    assert list(operator.blocks) == ["b"] and operator.uncovered == ("unused", "a.weight", "a.bias")
    assert operator.spec("b") is operator.blocks["b"] and operator.spec(FULL).numel == made.numel
    with pytest.raises(InputError, match="no block named 'c'"):
        operator.spec("c")
    matrix, at = dense(made, data()) / 12, places(made)
    rows = np.concatenate([at[n] for n in operator.blocks["b"].parameters])
    v = torch.randn(2, len(rows))
    asked = {"x": (operator.blocks["b"], v)}
    expected = v.double().numpy() @ matrix[np.ix_(rows, rows)]
    np.testing.assert_allclose(operator.apply(asked)["x"], expected, atol=1e-13)
    with operator.session() as data_pass:
        np.testing.assert_allclose(operator.apply(asked)["x"], expected, atol=1e-13)
        assert data_pass.kept == 3
        with operator.session() as inner:
            assert inner is data_pass
    assert data_pass.kept == 0
    with operator.session(SimpleNamespace(room=0)) as nothing:  # type: ignore[arg-type]
        operator.apply(asked)
        assert nothing.kept == 0

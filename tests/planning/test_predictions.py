"""What curvature says of a change: against dense Hessians, Gauss-Newton and Fisher matrices of torch.func."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

import layerhess as lh
from layerhess.planning.layers import layers_of
from layerhess.planning.predictions import COLUMNS, hessian_couplings, predictions
from layerhess.planning.weights.applied import changed
from witness import untouched

X = torch.randn(14, 3, generator=torch.Generator().manual_seed(0)).double()
Y = torch.randint(0, 3, (14,), generator=torch.Generator().manual_seed(1))
DATA = [(X[:5], Y[:5]), (X[5:], Y[5:])]
CE = nn.CrossEntropyLoss()
NAMES = ["0.weight", "2.weight"]
OPTIONS = (2, 3, 8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


class Dense:
    """All matrices of the network's weights, by differentiating the mean loss of all data at once."""

    def __init__(self, model: nn.Module, scale: float = 1.0) -> None:
        parameters = {name: value.detach() for name, value in model.named_parameters()}
        self.sizes = [parameters[name].numel() for name in NAMES]
        own = torch.cat([parameters[name].reshape(-1) for name in NAMES])
        shapes = [parameters[name].shape for name in NAMES]

        def output(flat: Tensor) -> Tensor:
            parts = {n: p.view(s) for n, p, s in zip(NAMES, flat.split(self.sizes), shapes, strict=True)}
            return functional_call(model, {**parameters, **parts}, (X,))  # type: ignore[no-any-return]

        def loss(flat: Tensor) -> Tensor:
            return scale * F.cross_entropy(output(flat), Y)

        self.slope = jacrev(loss)(own).numpy()
        self.hessian = hessian(loss)(own).numpy()
        jacobian = jacrev(output)(own)
        p = output(own).softmax(1)
        bend = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        self.gauss_newton = scale * torch.einsum("nia,nij,njb->ab", jacobian, bend, jacobian).numpy() / len(X)
        each = jacrev(lambda flat: F.cross_entropy(output(flat), Y, reduction="none"))(own).numpy()
        self.fisher = scale * each.T @ each / len(X)
        self.changes = [
            [(changed(lh.Quantize(k), parameters[n]) - parameters[n]).reshape(-1).numpy() for k in OPTIONS]
            for n in NAMES
        ]

    def block(self, matrix: np.ndarray[Any, Any], layer: int) -> np.ndarray[Any, Any]:
        part = slice(sum(self.sizes[:layer]), sum(self.sizes[: layer + 1]))
        return matrix[part, part] if matrix.ndim == 2 else matrix[part]

    def table(self, form: Any) -> np.ndarray[Any, Any]:
        return np.array([[form(layer, d) for d in row] for layer, row in enumerate(self.changes)])


def found(model: nn.Module, loss: Any = CE, data: Any = DATA, **more: Any) -> Any:
    objective = lh.Objective(model, data, loss)
    layers = layers_of(objective, OPTIONS, "weight")
    heard: list[str] = []
    with untouched(model), objective.session():
        made = predictions(objective, layers, seed=0, told=heard.append, **more)
    return made, heard


@pytest.mark.parametrize("summed", [False, True])
def test_columns_are_forms_with_the_dense_matrices(summed: bool) -> None:
    model = network()
    loss = nn.CrossEntropyLoss(reduction="sum" if summed else "mean")
    made, heard = found(model, loss)
    dense = Dense(model, float(len(X)) if summed else 1.0)
    forms = {
        "curvature": lambda b, d: dense.block(dense.slope, b) @ d + 0.5 * d @ dense.block(dense.hessian, b) @ d,
        "gauss_newton": lambda b, d: dense.block(dense.slope, b) @ d + 0.5 * d @ dense.block(dense.gauss_newton, b) @ d,
        "fisher": lambda b, d: 0.5 * d @ dense.block(dense.fisher, b) @ d,
        "change": lambda b, d: d @ d,
    }
    if summed:
        forms.pop("fisher")  # tested below: its scale is the library's own matter
    for name, form in forms.items():
        wanted = dense.table(form)
        np.testing.assert_allclose(getattr(made, name), wanted, rtol=1e-8, atol=1e-12 * np.abs(wanted).max())
    top = dense.table(lambda b, d: max(np.linalg.eigvalsh(dense.block(dense.hessian, b))[-1], 0.0) * (d @ d))
    np.testing.assert_allclose(made.hawq, top, rtol=1e-3)
    mean = dense.table(lambda b, d: np.trace(dense.block(dense.hessian, b)) / dense.sizes[b] * (d @ d))
    np.testing.assert_allclose(made.hawq_v2, mean, rtol=0.2)
    own = [float(dict(model.named_parameters())[n].detach().square().sum()) for n in NAMES]
    relative = dense.table(lambda b, d: np.sqrt(d @ d / own[b]))
    np.testing.assert_allclose(made.relative_change, relative, rtol=1e-10)
    assert not made.notes and made.gradients > 0.0 and "second order" in heard


def test_mean_traces_are_within_their_error() -> None:
    model = network()
    dense, values = Dense(model), []
    objective = lh.Objective(model, DATA, CE)
    layers = layers_of(objective, OPTIONS, "weight")
    for seed in range(5):
        with objective.session():
            values.append(
                predictions(objective, layers, seed=seed, wanted=("hawq_v2",), told=lambda what: None).hawq_v2
            )
    wanted = dense.table(lambda b, d: np.trace(dense.block(dense.hessian, b)) / dense.sizes[b] * (d @ d))
    np.testing.assert_allclose(np.mean(values, axis=0), wanted, rtol=0.08)


def test_only_what_is_wanted_is_computed() -> None:
    made, heard = found(network(), wanted=("fisher",))
    assert heard == ["empirical Fisher"]
    known = {name for name in COLUMNS if np.isfinite(getattr(made, name)).all()}
    assert known == {"fisher"} and np.isnan(made.curvature).all() and np.isfinite(made.change).all()


def test_an_option_that_does_not_fit_is_not_computed() -> None:
    objective = lh.Objective(network(), DATA, CE)
    layers = layers_of(objective, (4, lh.Quantize(4, "group:4")), "weight")  # the first layer has rows of three
    with objective.session():
        made = predictions(objective, layers, seed=0, told=lambda what: None)
    for name in (*COLUMNS, "change", "relative_change"):
        np.testing.assert_array_equal(np.isfinite(getattr(made, name)), [[True, False], [True, True]], err_msg=name)


class Stopped(nn.Module):
    """Its derivative is not that of its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        return z + 0.3 * (z * z).detach()


def test_a_column_that_the_checks_refuse_is_missing_and_said() -> None:
    model = Stopped()
    made, _ = found(model)
    assert np.isnan(made.curvature).all() and np.isnan(made.hawq_v2).all() and np.isfinite(made.change).all()
    assert any("curvature" in note for note in made.notes) and any("hawq_v2" in note for note in made.notes)
    assert all(note.startswith("no column of ") and len(note) > 30 for note in made.notes)


def test_interactions_by_products_are_those_of_the_dense_hessian() -> None:
    model = network()
    dense = Dense(model)
    objective = lh.Objective(model, DATA, CE)
    layers = layers_of(objective, OPTIONS, "weight")
    with untouched(model):
        table, gradients = hessian_couplings(objective, layers, lambda what: None)
    rows = []
    for layer, own in enumerate(dense.changes):
        for d in own:
            row = np.zeros(sum(dense.sizes))
            row[sum(dense.sizes[:layer]) : sum(dense.sizes[: layer + 1])] = d
            rows.append(row)
    wanted = np.array(rows) @ dense.hessian @ np.array(rows).T
    np.testing.assert_allclose(table, wanted, rtol=1e-8, atol=1e-10 * np.abs(wanted).max())
    assert gradients == 12.0


def test_interactions_of_a_refused_hessian_are_refused() -> None:
    objective = lh.Objective(Stopped(), DATA, CE)
    with pytest.raises(lh.CheckError):
        hessian_couplings(objective, layers_of(objective, OPTIONS, "weight"), lambda what: None)

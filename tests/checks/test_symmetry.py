"""Asymmetry on matrices whose fault was put in with a size, and which block is failed for it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from checked_network import X, Y, objective
from layerhess.checks.forward_trace import Trace
from layerhess.checks.self_check import SelfCheck
from layerhess.checks.symmetry import Symmetry, asymmetric_tensors, size_of_product, start, symmetry
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective.blocks import make_block
from layerhess.objective.objective import Objective

N = 12
self_check: Any = importlib.import_module("layerhess.checks.self_check")  # the module, not its function


class Dense:
    """A pass that multiplies by a matrix, which need not be symmetric."""

    def __init__(self, matrix: np.ndarray, model: Any = None) -> None:
        self.matrix = torch.from_numpy(matrix)
        self.objective = model or SimpleNamespace(parameters={name: torch.zeros(1) for name in "vw"})
        self.vectors: list[Tensor] = []
        self.seconds = 0.0

    def run(self, requests: Mapping[str, Any]) -> dict[str, Tensor]:
        start, places = 0, {}
        if isinstance(self.objective, Objective):
            for name, p in self.objective.parameters.items():
                places[name] = range(start, start + p.numel())
                start += p.numel()
        made = {}
        for key, request in requests.items():
            self.vectors.append(request.vectors)
            own = [i for name in request.block.parameters for i in places.get(name, range(N))]
            made[key] = request.vectors @ self.matrix[np.ix_(own, own)].T
        return made


def one_tensor() -> Any:
    return {"b": make_block("b", {"w": torch.zeros(N)})}


def asymmetric(size: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, N, N))
    return (a + a.T) + size * (b - b.T)


@pytest.mark.parametrize("size", [0.0, 1e-6, 0.3])
def test_asymmetry_is_that_of_two_random_vectors_and_of_one_with_its_product(size: float) -> None:
    matrix = asymmetric(size)
    found = symmetry(Dense(matrix), one_tensor(), 3)["b"]  # type: ignore[arg-type]
    u, v = (random_unit(N, 3, "symmetry b", i).numpy() for i in (0, 1))
    norm = max(np.linalg.norm(matrix @ u), np.linalg.norm(matrix @ v))
    random = abs(v @ matrix @ u - u @ matrix @ v) / norm * math.sqrt(N)
    w = matrix @ u / np.linalg.norm(matrix @ u)
    steered = abs(w @ matrix @ u - u @ matrix @ w) / max(np.linalg.norm(matrix @ u), abs(u @ matrix @ w))
    assert found.norm == pytest.approx(norm, rel=1e-12)
    assert found.asymmetry == pytest.approx(max(random, steered), rel=1e-6, abs=1e-14)
    assert (found.asymmetry > 1e-9) is (size > 0.0)
    assert size_of_product(Dense(matrix), one_tensor()["b"], 3) == pytest.approx(np.linalg.norm(matrix @ u))  # type: ignore[arg-type]


def test_a_product_that_was_made_before_is_not_made_again() -> None:
    matrix = asymmetric(1e-3)
    u = start(one_tensor()["b"], "b", 3)
    known = {"b": torch.from_numpy(matrix @ u.numpy())}
    fresh, again = Dense(matrix), Dense(matrix)
    expected = symmetry(fresh, one_tensor(), 3)["b"]  # type: ignore[arg-type]
    found = symmetry(again, one_tensor(), 3, {"b": known["b"].clone()})["b"]  # type: ignore[arg-type]
    assert found.norm == pytest.approx(expected.norm) and found.asymmetry == pytest.approx(expected.asymmetry)
    assert sum(map(len, again.vectors)) == sum(map(len, fresh.vectors)) - 1
    doubled = symmetry(Dense(matrix), one_tensor(), 3, {"b": 2.0 * known["b"]})["b"]  # type: ignore[arg-type]
    assert doubled.asymmetry > 0.1  # it is used


def test_nothing_and_not_a_number() -> None:
    assert symmetry(Dense(np.zeros((N, N))), one_tensor(), 0)["b"] == Symmetry(0.0, 0.0)  # type: ignore[arg-type]
    broken = asymmetric(0.0)
    broken[0, 0] = np.nan
    assert math.isnan(symmetry(Dense(broken), one_tensor(), 0)["b"].asymmetry)  # type: ignore[arg-type]


def test_of_one_dimension_nothing_can_be_asymmetric() -> None:
    class Scalar(Dense):
        def run(self, requests: Mapping[str, Any]) -> dict[str, Tensor]:
            return {key: 3.0 * request.vectors for key, request in requests.items()}

    found = symmetry(Scalar(np.eye(1)), {"b": make_block("b", {"w": torch.zeros(1)})}, 0)["b"]  # type: ignore[arg-type]
    assert found == Symmetry(0.0, 3.0)


def test_parts_of_less_curvature_are_lifted_so_that_their_faults_show() -> None:
    """Two tensors, the second with a thousandth of the curvature and all of the fault."""
    matrix = np.zeros((N, N))
    matrix[:6, :6] = 1e3 * asymmetric(0.0)[:6, :6]
    matrix[6:, 6:] = asymmetric(1.0)[:6, :6]
    both = {"b": make_block("b", {"w": torch.zeros(6), "v": torch.zeros(6)})}

    class Two(Dense):
        def run(self, requests: Mapping[str, Any]) -> dict[str, Tensor]:
            self.vectors += [request.vectors for request in requests.values()]
            return {key: request.vectors @ self.matrix.T for key, request in requests.items()}

    judge = Two(matrix)
    found = symmetry(judge, both, 0)["b"]  # type: ignore[arg-type]
    u = torch.stack([random_unit(N, 0, "symmetry b", i) for i in (0, 1)])
    applied = u @ judge.matrix.T
    rms = [float(part.square().mean().sqrt()) for part in applied.split(6, dim=1)]
    factor = min(math.sqrt(rms[0] / rms[1]), 30.0)
    assert factor > 5.0
    scaled = u.clone()
    scaled[:, 6:] *= factor
    torch.testing.assert_close(torch.cat(judge.vectors[-2:]), scaled)
    balanced = (scaled @ judge.matrix.T).clone()
    balanced[:, 6:] *= factor
    gap = abs(float(u[1] @ balanced[0] - u[0] @ balanced[1])) / float(balanced.norm(dim=1).max()) * math.sqrt(N)
    assert found.asymmetry >= gap * (1 - 1e-9) > 10 * symmetry(Two(matrix), one_tensor(), 0)["b"].asymmetry  # type: ignore[arg-type]


def test_asymmetric_tensors_are_those_above_the_limit_that_are_not_zero() -> None:
    class Four(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in "abcd":
                self.register_parameter(name, nn.Parameter(torch.zeros(3).double()))

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.a + self.b + self.c + self.d)

    made = Objective(Four(), (torch.ones(1, 3).double(), torch.ones(1, 3).double()), nn.MSELoss())
    matrix = np.zeros((N, N))
    for place, (scale, size) in enumerate([(1.0, 0.0), (1.0, 0.5), (1e-15, 0.5), (0.1, 0.01)]):
        own = slice(3 * place, 3 * place + 3)
        matrix[own, own] = scale * asymmetric(size, seed=place)[:3, :3]
    names = list(made.parameters)
    found = asymmetric_tensors(Dense(matrix, made), names, 0, 1e-4)  # type: ignore[arg-type]
    assert set(found) == {"b", "d"}  # c is rounding beside the others
    alone = {n: symmetry(Dense(matrix, made), {n: make_block(n, {n: made.parameters[n]})}, 0)[n] for n in names}  # type: ignore[arg-type]
    assert {n: alone[n].asymmetry for n in found} == found
    assert set(asymmetric_tensors(Dense(matrix, made), names, 0, found["d"] * 1.01)) == {"b"}  # type: ignore[arg-type]


# -- which member of a block is the worst ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "words"),
    [({"0.weight": 0.1, "0.bias": 0.4}, "asymmetric by 4.0e-01"), ({"0.weight": 0.4, "0.bias": 0.1}, "by 4.0e-01"),
     ({"0.weight": 0.4, "0.bias": math.nan}, "NaN or infinite"), ({"0.weight": math.nan, "0.bias": 0.4}, "NaN or")],
)  # fmt: skip
def test_a_block_is_as_wrong_as_its_worst_member(
    measured: dict[str, float], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = objective()
    monkeypatch.setattr(self_check, "asymmetric_tensors", lambda judge, names, seed, limit: measured)
    monkeypatch.setattr(self_check, "symmetry", lambda judge, blocks, seed: {"rest": Symmetry(1e-9, 1.0)})
    blocks = {"0": make_block("0", {n: made.parameters[n] for n in ("0.weight", "0.bias")})}
    blocks["2"] = make_block("2", {n: made.parameters[n] for n in ("2.weight", "2.bias")})
    found = SelfCheck(Trace())
    self_check._locate(made, None, blocks, {"0": 0.4}, 1e-3, 0, found)  # type: ignore[arg-type]
    assert (
        list(found.failed) == ["0"] and words in found.failed["0"].detail and "0 (Linear)" in found.failed["0"].module
    )


@pytest.mark.parametrize("left", [1e-9, 0.5])
def test_a_fault_that_no_tensor_explains_fails_what_is_wrong_or_everything(
    left: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = objective()
    monkeypatch.setattr(self_check, "asymmetric_tensors", lambda judge, names, seed, limit: {})
    monkeypatch.setattr(self_check, "symmetry", lambda judge, blocks, seed: {"rest": Symmetry(left, 1.0)})
    blocks = {n: make_block(n, {n: made.parameters[n]}) for n in ("0.weight", "2.weight")}
    found = SelfCheck(Trace())
    self_check._locate(made, None, blocks, {"0.weight": 0.2}, 1e-3, 0, found)  # type: ignore[arg-type]
    assert list(found.failed) == (["0.weight", "2.weight"] if left > 1e-3 else ["0.weight"])
    detail = found.failed["0.weight"].detail
    assert ("part of one that is asymmetric by 5.0e-01 as a whole" in detail) is (left > 1e-3)
    assert ("asymmetric by 2.0e-01" in detail) is (left < 1e-3)


def places(figures: Sequence[float]) -> dict[str, Symmetry]:
    return {name: Symmetry(0.0, figure) for name, figure in zip("ab", figures, strict=False)}


@pytest.mark.parametrize("numbers", [None, [4, 7]])
def test_the_batch_that_is_not_finite_is_numbered_by_the_pass_or_by_its_place(
    numbers: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Pass:
        objective = SimpleNamespace(parameters={name: torch.zeros(3) for name in "ab"})

    def first_not_finite(data_pass: Any, request: Any) -> str:
        asked.append(request.block.name)
        return "1"

    monkeypatch.setattr(self_check, "first_not_finite", first_not_finite)
    blocks = {name: make_block(name, {name: torch.zeros(3)}) for name in "ab"}
    where = self_check._not_finite_in(Pass(), blocks, places([1.0, math.nan]), 0, numbers)  # type: ignore[arg-type]
    assert asked == ["b"] and where == (" in batch 1" if numbers is None else " in batch 7")
    assert self_check._not_finite_in(Pass(), blocks, places([1.0, 2.0]), 0) == ""  # type: ignore[arg-type]


def test_words_about_precision_and_size() -> None:
    assert "runs in bfloat16" in self_check._half_precision_inside(torch.bfloat16)
    assert "about 78%" in self_check._half_precision_inside(torch.bfloat16)
    for data, words in (([(X, Y), (X[:2], Y[:2])], "11 examples"), ([(X, Y[:2])], "a sample of the batches")):
        assert self_check._size(SimpleNamespace(objective=SimpleNamespace(data=data))) == words  # type: ignore[arg-type]
    found = SelfCheck(Trace(), place=" in batch 2")
    assert self_check._asymmetric(0.25, found) == "asymmetric by 2.5e-01"
    assert self_check._asymmetric(math.nan, found) == "NaN or infinite in batch 2"

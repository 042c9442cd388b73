"""Whole-data dense Hessians in float64, from losses written out by hand.

Nothing here touches the library: a total loss (sum of sums over sum of counts) is built over one flat float64 vector
of the trainable parameters, and the rows of the Hessian come from ``torch.autograd.grad``.
``products_by_differences`` gives products from first gradients of the model itself, moved in place: a check on those.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import zoo
import zoo_losses

Matrix = NDArray[np.float64]
Groups = dict[str, list[str]]
SCHEMES = ("parameter", "weight", "module", "depth:1", "dict", "callable")


@dataclass(frozen=True)
class Reference:
    """The Hessian of the whole loss, (P, P) symmetric, the place of each parameter in it, and its own uncertainty.

    ``norm`` is the largest magnitude of an eigenvalue. ``uncertainty`` bounds the error of the matrix's eigenvalues:
    its measured asymmetry plus the backward error of LAPACK's symmetric eigensolver, n eps ||H||.
    """

    matrix: Matrix
    places: dict[str, NDArray[np.int64]]
    norm: float
    uncertainty: float

    def index(self, names: Sequence[str]) -> NDArray[np.int64]:
        """The rows of the named parameters, in the order of the model."""
        wanted = set(names)
        return np.concatenate([place for name, place in self.places.items() if name in wanted])

    def block(self, names: Sequence[str]) -> Matrix:
        """The diagonal block of the named parameters."""
        rows = self.index(names)
        return self.matrix[np.ix_(rows, rows)]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by their first name, in the order of the model; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def loss_of(model: nn.Module, batches: Sequence[Any], totals: zoo_losses.Totals, flat: Tensor) -> Tensor:
    """The whole loss as a function of the flat vector of trainable parameters, buffers untouched."""
    replaced: dict[str, Tensor] = {}
    start = 0
    for name, parameter in trainable(model).items():
        replaced[name] = flat[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    total: Tensor = flat.new_zeros(())
    count = 0.0
    for batch in batches:
        state = replaced | {name: buffer.clone() for name, buffer in model.named_buffers()}

        def call(*args: Any, state: dict[str, Tensor] = state, **kwargs: Any) -> Any:
            return torch.func.functional_call(model, state, args, kwargs)

        part, number = totals(call, batch)
        total, count = total + part, count + float(number)
    return total / count


def flat_parameters(model: nn.Module) -> Tensor:
    """A detached copy of the trainable parameters as one vector (P,)."""
    return torch.cat([p.detach().reshape(-1) for p in trainable(model).values()])


def rows_of_hessian(loss: Callable[[Tensor], Tensor], at: Tensor) -> Matrix:
    """The matrix of second derivatives of ``loss`` at ``at``, not symmetrised.

    All rows come from one batched backward pass, or from one each where torch has no rule for the batch (GroupNorm).
    """
    point = at.detach().clone().requires_grad_(True)
    units = torch.eye(len(point), dtype=point.dtype)
    with sdpa_kernel(SDPBackend.MATH):
        (gradient,) = torch.autograd.grad(loss(point), point, create_graph=True)
        try:
            (rows,) = torch.autograd.grad(gradient, point, units, retain_graph=True, is_grads_batched=True)
        except RuntimeError:
            rows = torch.stack([torch.autograd.grad(gradient, point, unit, retain_graph=True)[0] for unit in units])
    return rows.numpy()


def reference_for(model: nn.Module, batches: Sequence[Any], totals: zoo_losses.Totals) -> Reference:
    """The dense reference of a float64 model on all its batches."""
    raw = rows_of_hessian(lambda flat: loss_of(model, batches, totals, flat), flat_parameters(model))
    matrix = (raw + raw.T) / 2
    norm = float(np.abs(np.linalg.eigvalsh(matrix)).max())
    asymmetry = float(np.linalg.norm(raw - raw.T))
    if asymmetry > 1e-12 * norm:
        raise AssertionError(f"the reference itself is asymmetric: {asymmetry:.1e} against a norm of {norm:.1e}")
    places, start = {}, 0
    for name, parameter in trainable(model).items():
        places[name] = np.arange(start, start + parameter.numel())
        start += parameter.numel()
    return Reference(matrix, places, norm, asymmetry + len(matrix) * np.finfo(float).eps * norm)


@cache
def of_case(name: str, seed: int = 0) -> Reference:
    """The reference of a zoo case, computed once per process."""
    case = zoo.BY_NAME[name]
    built = case.build(torch.float64, seed)
    if built.kwargs.get("mode") == "eval":
        built.model.eval()
    return reference_for(built.model, zoo.batches_of(built.data), case.totals)


def products_by_differences(
    model: nn.Module, batches: Sequence[Any], totals: zoo_losses.Totals, directions: Tensor, step: float = 3e-5
) -> Matrix:
    """Products with unit ``directions`` (k, P) as central differences of first gradients, the model itself moved."""
    parameters = list(trainable(model).values())
    home = flat_parameters(model)

    def move_to(flat: Tensor) -> None:
        pieces = flat.split([p.numel() for p in parameters])
        with torch.no_grad():
            for parameter, piece in zip(parameters, pieces, strict=True):
                parameter.copy_(piece.view(parameter.shape))

    def gradient() -> Tensor:
        total, count = torch.zeros((), dtype=torch.float64), 0.0
        for batch in batches:
            part, number = totals(model, batch)
            total, count = total + part, count + float(number)
        found = torch.autograd.grad(total / count, parameters, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in found])

    rows = []
    for direction in directions:
        sides = []
        for sign in (1.0, -1.0):
            move_to(home + sign * step * direction)
            sides.append(gradient())
        rows.append((sides[0] - sides[1]) / (2 * step))
    move_to(home)
    return torch.stack(rows).detach().numpy()


def groups_of(model: nn.Module, scheme: Any) -> Groups:
    """Which parameters make which block, for each spelling of ``blocks=``, written independently of the library."""
    names = trainable(model)
    label = _label_of(names, scheme)
    groups: Groups = {}
    for name in names:
        block = label(name)
        if block is not None:
            groups.setdefault(block, []).append(name)
    return groups


def _label_of(parameters: Mapping[str, nn.Parameter], scheme: Any) -> Callable[[str], str | None]:
    if callable(scheme):
        return lambda name: scheme(name, parameters[name])
    if isinstance(scheme, Mapping):
        patterns = {block: [p] if isinstance(p, str) else list(p) for block, p in scheme.items()}
        return lambda name: next(
            (block for block, globs in patterns.items() if any(fnmatch.fnmatchcase(name, g) for g in globs)), None
        )
    if scheme == "parameter":
        return lambda name: name
    if scheme == "weight":
        return lambda name: name if parameters[name].dim() >= 2 else None
    if scheme == "module":
        return lambda name: name.rpartition(".")[0] or "(root)"
    depth = int(scheme.removeprefix("depth:"))
    return lambda name: ".".join(name.split(".")[:-1][:depth]) or "(root)"


def scheme_for(model: nn.Module, scheme: str) -> Any:
    """The value of ``blocks=`` under each name of ``SCHEMES``; "dict" leaves the last parameter out."""
    names = list(trainable(model))
    if scheme == "dict":
        return {"front": names[:1], "middle": names[1:-1]}
    if scheme == "callable":
        return lambda name, parameter: "matrices" if parameter.dim() >= 2 else "biases" if "bias" in name else None
    return scheme

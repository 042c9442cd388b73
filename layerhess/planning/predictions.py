"""What curvature says of every (layer, option), without running the model on the changed weights.

With d the change of a weight: g'd + d'Hd / 2 (second order), the same with the Gauss-Newton matrix G or the empirical
Fisher F for H; mean eigenvalue tr H / n times |d|^2 (HAWQ-V2: Dong et al. 2020, equation 11); largest eigenvalue times
|d|^2 (HAWQ: Dong et al. 2019, which orders layers by it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerhess.analysis.analyze import analyze
from layerhess.analysis.operators import EmpiricalFisher, GaussNewton, Hessian, Operator
from layerhess.curvature.gradient_sum import add_gradient
from layerhess.curvature.request import Request
from layerhess.curvature.totals import Totals, add_up
from layerhess.errors import CheckError, InputError
from layerhess.linalg.estimates import Floats
from layerhess.linalg.stochastic.trace import Trace
from layerhess.objective.blocks import make_block
from layerhess.objective.objective import Objective
from layerhess.planning.layers import Layers
from layerhess.planning.weights.applied import changed
from layerhess.results.record import Counts

TRACE, TOL = Trace(rel=0.1), 0.05  # of scores that order layers: they need no more
COLUMNS = ("curvature", "gauss_newton", "hawq_v2", "hawq", "fisher")
SLOPE = "slope"


@dataclass
class Predictions:
    """Columns (L, K), NaN where unknown.

    Attributes:
        notes: why some are missing. gradients: what they cost, in gradients over the data, about. change: |d|^2.
        relative_change: |d| / |w|.
    """

    curvature: Floats
    gauss_newton: Floats
    hawq_v2: Floats
    hawq: Floats
    fisher: Floats
    change: Floats
    relative_change: Floats
    notes: list[str] = field(default_factory=list)
    gradients: float = 0.0


def unknown(layers: Layers) -> Predictions:
    """All NaN."""
    shape = (len(layers.weights), len(layers.options))
    names = (*COLUMNS, "change", "relative_change")
    return Predictions(**{name: np.full(shape, math.nan) for name in names})  # type: ignore[arg-type]


def predictions(
    objective: Objective, layers: Layers, *, seed: int, wanted: Sequence[str] = COLUMNS, told: Callable[[str], None]
) -> Predictions:
    """The columns that are wanted, and the sizes of the changes (in session).

    A column that the checks of :func:`layerhess.analyze` refuse is NaN, and a note says why. All vectors of a layer
    are multiplied in the same pass.

    Args:
        told: called with what is computed next.
    """
    found = unknown(layers)
    changes = differences(objective, layers)
    for layer, rows in enumerate(changes):
        size = float(objective.parameters[layers.names[layer]].detach().double().square().sum())
        for option, row in rows.items():
            found.change[layer, option] = moved = float(row.square().sum())
            found.relative_change[layer, option] = math.sqrt(moved / size) if size else (math.inf if moved else 0.0)

    def attempted(what: str, compute: Callable[[], None], *columns: str) -> None:
        if not set(columns) & set(wanted):
            return
        told(what)
        try:
            compute()
        except (InputError, CheckError) as error:
            found.notes.append(f"no column of {' and '.join(columns)}: {error.message}")

    def second_order() -> None:
        slope = _slopes(objective, layers, changes)
        found.curvature[:] = slope + 0.5 * _forms(Hessian, objective, layers, changes, found)

    def gauss_newton() -> None:
        slope = _slopes(objective, layers, changes)
        found.gauss_newton[:] = slope + 0.5 * _forms(GaussNewton, objective, layers, changes, found)

    def fisher() -> None:
        found.fisher[:] = 0.5 * _forms(EmpiricalFisher, objective, layers, changes, found)

    def spectra() -> None:
        names = set(layers.names)
        result = analyze(
            objective,
            blocks=lambda name, parameter: name if name in names else None,
            full=False,
            top=1,
            tol=TOL,
            exclude=None,
            trace=TRACE if "hawq_v2" in wanted else False,
            seed=seed,
        )
        found.gradients += _gradients(result.counts)
        for layer, weight in enumerate(layers.weights):
            spectrum = result.blocks[weight.name]
            found.hawq[layer] = max(float(spectrum.eigenvalues[0]), 0.0) * found.change[layer]
            if spectrum.trace is not None:
                found.hawq_v2[layer] = spectrum.trace.value / weight.numel * found.change[layer]

    attempted("traces and largest eigenvalues", spectra, "hawq_v2", "hawq")
    attempted("second order", second_order, "curvature")
    attempted("Gauss-Newton", gauss_newton, "gauss_newton")
    attempted("empirical Fisher", fisher, "fisher")
    return found


def _gradients(counts: Counts) -> float:
    """In gradients over the data, about: a forward pass is a third of one, a product two. No clock: see the seed."""
    batches = counts.by_phase.get("survey", {}).get("forwards", 0)
    return (counts.forwards / 3.0 + 2.0 * counts.backwards / 3.0 + 2.0 * counts.products) / max(batches, 1)


def differences(objective: Objective, layers: Layers) -> list[dict[int, Tensor]]:
    """By layer, place of an option -> (n,) change of the weight, float64."""
    found = []
    for layer, weight in enumerate(layers.weights):
        here = objective.parameters[weight.name].detach()
        rows = {}
        for place, option in enumerate(layers.options):
            if not layers.why_not[layer][place]:
                rows[place] = (changed(option, here, weight.name).double() - here.double()).reshape(-1)
        found.append(rows)
    return found


def _forms(
    kind: Callable[..., Operator],
    objective: Objective,
    layers: Layers,
    changes: Sequence[Mapping[int, Tensor]],
    found: Predictions,
) -> Floats:
    """(L, K): d' A d with the diagonal blocks of a matrix."""
    names = set(layers.names)
    operator = kind(objective, lambda name, parameter: name if name in names else None)
    forms = np.full((len(layers.weights), len(layers.options)), math.nan)
    rows = {
        weight.name: (operator.block(weight.name).spec, torch.stack(list(own.values())))
        for weight, own in zip(layers.weights, changes, strict=True)
        if own
    }
    products = operator.apply(rows)
    found.gradients += 2.0 * sum(len(own) for own in changes)
    for layer, (weight, own) in enumerate(zip(layers.weights, changes, strict=True)):
        if own:
            values = (products[weight.name] * rows[weight.name][1]).sum(dim=1)
            forms[layer, list(own)] = values.cpu().numpy()
    return forms


def _slopes(objective: Objective, layers: Layers, changes: Sequence[Mapping[int, Tensor]]) -> Floats:
    """(L, K): g'd."""
    parameters = {name: objective.parameters[name] for name in layers.names}

    def share(batch: Any, totals: Totals) -> None:
        loss, count = objective.terms(batch)
        totals.add("count", count)
        own: dict[str, Tensor] = {}
        add_gradient(loss, parameters, own, others=objective.parameters.values())
        for layer, name in enumerate(layers.names):
            if name in own and changes[layer]:
                gradient = own[name].double().reshape(-1)
                totals.add((SLOPE, layer), (torch.stack(list(changes[layer].values())) @ gradient).cpu())

    totals = add_up(objective.batches(), share, group=objective.group)
    scale = 1.0 if objective.evaluation.is_sum else float(totals.total("count"))
    found = np.full((len(layers.weights), len(layers.options)), math.nan)
    for layer, own in enumerate(changes):
        if own:
            found[layer, list(own)] = np.asarray(totals.total((SLOPE, layer))) / scale
    return found


def hessian_couplings(objective: Objective, layers: Layers, told: Callable[[str], None]) -> tuple[Floats, float]:
    """(L K, L K) d_a' H d_b of all pairs of single steps, by one product for each of them, and gradients' worth.

    Raises:
        InputError, CheckError: what :func:`layerhess.analyze` refuses.
    """
    changes = differences(objective, layers)
    names = set(layers.names)
    hessian = Hessian(objective, lambda name, parameter: name if name in names else None)
    planned = make_block("(planned)", {name: objective.parameters[name] for name in layers.names})
    options = len(layers.options)
    total = np.zeros((len(layers.weights) * options,) * 2)
    with objective.session(), hessian.session() as data_pass:
        for layer, weight in enumerate(layers.weights):
            if not changes[layer]:
                continue
            told(f"interactions of {weight.name}")
            rows = torch.stack(list(changes[layer].values()))
            request = Request(hessian.block(weight.name).spec, rows, rows=planned)
            product = planned.split(data_pass.run({weight.name: request})[weight.name])
            for other, name in enumerate(layers.names):
                if changes[other]:
                    own = torch.stack(list(changes[other].values()))
                    values = product[name].reshape(len(rows), -1) @ own.T
                    left = [layer * options + place for place in changes[layer]]
                    right = [other * options + place for place in changes[other]]
                    total[np.ix_(left, right)] = values.cpu().numpy()
    return (total + total.T) / 2.0, 2.0 * sum(len(own) for own in changes)

"""``layerhess.loss_slice``: the loss along one or two directions, with its quadratic model checked against it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from layerhess import show
from layerhess.analysis.directions import check_direction, directions_of, made, title
from layerhess.analysis.operators import Hessian
from layerhess.curvature.gradient_sum import add_gradient
from layerhess.curvature.same_data import refuse_changed
from layerhess.curvature.totals import Totals, add_up
from layerhess.errors import InputError, checked_integer
from layerhess.linalg.estimates import Floats
from layerhess.objective.blocks import Block, flatten
from layerhess.objective.group import world
from layerhess.objective.interrupts import deferred_interrupts
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import kept_values
from layerhess.results.loss_slice import LossSliceRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK = "slice"
POINTS = {1: 41, 2: 21}
STEPS = 11  # of differences, each half of the one before
BEND = 0.1  # of the loss, that the curvature makes of it at the first of these
MOVED = 0.1  # of the parameters' length: what the first of them moves at most
LOSS_ROUNDINGS = 8.0  # eps of what is added up in a loss
PRODUCT_ROUNDINGS = 32.0  # eps of |d| |Hd| in d'Hd
SUM, COUNT, SIZE, SLOPE, SHIFT = "sum", "count", "size", "slope", "shift"  # kinds of sums


@dataclass(frozen=True, repr=False)
class LossSlice(LossSliceRecord):
    """What :func:`layerhess.loss_slice` returns.

    The fields are those of :class:`layerhess.results.loss_slice.LossSliceRecord`.
    """

    def plot(self) -> Figure:
        """The loss with its quadratic drawn over it: lines, or contours for two directions (a matplotlib figure)."""
        picture: Figure = show.slice_figures.drawn(self)
        return picture


def loss_slice(
    objective: Objective,
    direction: Any,
    radius: float = 1.0,
    points: int | None = None,
    *,
    within: str | Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LossSlice:
    """The mean loss over the whole data set along a direction, or over the plane of two, and its quadratic model.

    The quadratic L + alpha g'd + alpha^2 d'Hd / 2 takes the gradient and one Hessian-vector product a direction, which
    are checked as those of :func:`layerhess.analyze`. Its curvature is held against differences of the loss itself.
    All points are evaluated in one pass over the data, batch by batch. The model is as it was afterwards, whatever
    happens.

    Args:
        objective: model, data and loss.
        direction: a dict of tensors by parameter name, such as ``analysis.blocks[name].eigenvectors[0]``, which moves
            these parameters only and is taken as it is; ``("random", seed)``: normal numbers, each filter (row along
            dimension 0) of the length of the weights' own, biases and other one-dimensional tensors at rest (Li et al.
            2018); or a tuple of two of them.
        radius: alpha goes from -radius to radius, so a unit eigenvector moves the parameters by at most that distance.
        points: on each axis; 41 for one direction, 21 (squared) for two. An odd number has 0 among them.
        within: names or globs of the parameters that a random direction moves; all by default.
        progress: called with the evaluations of a batch's loss so far, and how many there will be.

    Returns:
        :class:`LossSlice`: ``.alpha``, ``.loss``, ``.quadratic``, ``.slope``, ``.curvature``, ``.plot()`` and more, see
        :class:`layerhess.results.loss_slice.LossSliceRecord`.

    Raises:
        InputError: a direction with unknown names, wrong shapes, zero or not finite; other unusable arguments.
        InputError, CheckError: what the checks of :func:`layerhess.analyze` refuse.

    >>> import torch, layerhess as lh
    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> model.weight.data[:] = torch.tensor([[1.0, 0.0]])
    >>> data = (torch.tensor([[3.0, 4.0]]).double(), torch.zeros(1, 1).double())
    >>> objective = lh.Objective(model, data, torch.nn.MSELoss())      # L = (3 w1 + 4 w2)^2
    >>> found = lh.loss_slice(objective, {"weight": torch.tensor([[0.0, 1.0]])}, points=3)      # (3 + 4 alpha)^2
    >>> print(found.loss.round(9), round(found.slope, 9), round(found.curvature, 9), found.agrees)
    [ 1.  9. 49.] 24.0 32.0 True
    """
    if not isinstance(objective, Objective):
        raise InputError(
            f"the objective is {type(objective).__name__}", where="objective", what_to_do="give an lh.Objective"
        )
    given = directions_of(direction)
    globs = [within] if isinstance(within, str) else list(within or ())
    for one in given:
        check_direction(one, objective, globs)
    if globs and all(isinstance(one, Mapping) for one in given):
        raise InputError(
            "within is for random directions", where="within", what_to_do="leave it out: a dict moves what it names"
        )
    if isinstance(radius, bool) or not isinstance(radius, (int, float)) or not 0.0 < radius < math.inf:
        raise InputError(f"radius is {radius!r}", where="radius", what_to_do="use a number > 0")
    number = checked_integer(POINTS[len(given)] if points is None else points, "points", 3)
    with world().together(), deferred_interrupts(), objective.session():
        return _measured(objective, given, globs, float(radius), number, progress)


def _measured(
    objective: Objective,
    given: Sequence[Any],
    within: Sequence[str],
    radius: float,
    number: int,
    progress: Callable[[int, int], None] | None,
) -> LossSlice:
    """The slice (in session)."""
    parts = [made(one, objective, within) for one in given]
    names = {name for part in parts for name in part}
    hessian = Hessian(objective, lambda name, parameter: BLOCK if name in names else None)
    block = hessian.block(BLOCK).spec
    rows = torch.stack([flatten(block, _completed(part, block, objective)) for part in parts])
    known = hessian.verify()
    assert known is not None
    surveyed, checked = known
    products = hessian.block(BLOCK).rows(rows)
    curvature = (products @ rows.T).cpu().numpy()
    curvature = (curvature + curvature.T) / 2.0
    lengths, sizes = (torch.linalg.vector_norm(row, dim=1).cpu().numpy() for row in (rows, products))

    axis = np.linspace(-radius, radius, number)
    grid = np.stack(np.meshgrid(*[axis] * len(given), indexing="ij"), axis=-1).reshape(-1, len(given))
    denominator = 1.0 if objective.evaluation.is_sum else surveyed.count
    lines = np.array([[1.0]] if len(given) == 1 else [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    bends = np.einsum("li,ij,lj->l", lines, curvature, lines)
    size = math.sqrt(
        sum(float(objective.parameters[name].detach().double().square().sum()) for name in block.parameters)
    )
    nearby = [MOVED * size / length if length else math.inf for length in lines @ lengths]
    steps = np.stack(
        [
            _steps(min(radius, near or radius), bend, surveyed.loss_sum / denominator)
            for near, bend in zip(nearby, bends, strict=True)
        ]
    )
    near = steps[:, :, None] * lines[:, None, :]  # (lines, steps, directions)
    places = np.concatenate([grid, near.reshape(-1, len(given)), -near.reshape(-1, len(given))])

    totals = _evaluated(objective, block, rows, places, progress, surveyed.batches)
    count = float(totals.total(COUNT))
    at_zero = float(totals.total((SUM, "here")))
    refuse_changed(objective, (at_zero, count), (surveyed.loss_sum, surveyed.count))
    scale = 1.0 if objective.evaluation.is_sum else count
    losses = totals.total((SUM, "places")).numpy() / scale
    slope = totals.total(SLOPE).cpu().numpy() / scale
    value = at_zero / scale
    rounding = checked.eps * (LOSS_ROUNDINGS * float(totals.total(SIZE)) + float(totals.total(SHIFT))) / scale
    shape = (number,) * len(given)
    forward, backward = np.split(losses[len(grid) :], 2)
    bent, errors = _differences(forward.reshape(steps.shape), backward.reshape(steps.shape), value, steps, rounding)
    bounds = PRODUCT_ROUNDINGS * checked.eps * (lines @ lengths) * (lines @ sizes)
    agrees = bool(np.all(np.abs(bent - bends) <= errors + bounds))
    single = len(given) == 1
    return LossSlice(
        alpha=axis,
        loss=losses[: len(grid)].reshape(shape),
        quadratic=(value + grid @ slope + 0.5 * np.einsum("pi,ij,pj->p", grid, curvature, grid)).reshape(shape),
        value=value,
        rounding=rounding,
        slope=float(slope[0]) if single else slope,
        curvature=float(curvature[0, 0]) if single else curvature,
        difference_curvature=float(bent[0]) if single else _table(bent),
        difference_error=float(errors[0]) if single else _table(errors, errors=True),
        agrees=agrees,
        norms=tuple(map(float, lengths)),
        directions=tuple(map(title, given)),
        parameters=block.parameters,
        status=_status(agrees, bends, bent, errors + bounds),
    )


def _completed(part: dict[str, Tensor], block: Block, objective: Objective) -> dict[str, Tensor]:
    """Zero for what the other of two directions moves."""
    return {
        name: part[name] if name in part else torch.zeros_like(objective.parameters[name], dtype=torch.float64)
        for name in block.parameters
    }


def _steps(most: float, bend: float, loss: float) -> Floats:
    """(STEPS,) step sizes of differences: from where the curvature makes a tenth of the loss, each half of the last.

    Args:
        most: of a step. Where weights change by more than a tenth, errors of differences do not fall in order yet.
    """
    first = math.sqrt(2.0 * BEND * abs(loss) / abs(bend)) if bend and loss else most
    return min(most, first) * np.array([2.0**-place for place in range(STEPS)])


def _evaluated(
    objective: Objective,
    block: Block,
    rows: Tensor,
    places: Floats,
    progress: Callable[[int, int], None] | None,
    batches: int,
) -> Totals:
    """Sums over the data: losses here and at all places, counts, and the gradient's products with the directions."""
    parameters = {name: objective.parameters[name] for name in block.parameters}
    parts = {name: part.to(parameters[name].device) for name, part in block.split(rows).items()}  # (directions, *shape)
    done, expected = 0, batches * (len(places) + 1)

    def told() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, expected)

    def share(batch: Any, totals: Totals) -> None:
        loss, count = objective.terms(batch)
        totals.add((SUM, "here"), float(loss.detach()))
        totals.add(SIZE, abs(float(loss.detach())))
        totals.add(COUNT, count)
        own: dict[str, Tensor] = {}
        add_gradient(loss, parameters, own, others=objective.parameters.values())
        sloped, shifts = torch.zeros(len(rows), dtype=torch.float64), 0.0
        for name, part in own.items():
            gradient = part.double()
            sloped += (parts[name].flatten(1) @ gradient.reshape(-1)).cpu()
            shifts += float((gradient * parameters[name].detach()).square().sum())
        totals.add(SLOPE, sloped)
        totals.add(SHIFT, math.sqrt(shifts))
        told()
        totals.add((SUM, "places"), torch.tensor([at(batch, place) for place in places], dtype=torch.float64))

    def at(batch: Any, place: Floats) -> float:
        with torch.no_grad():
            for name, here in zip(parameters, kept, strict=True):
                moved = torch.tensordot(torch.from_numpy(place).to(here.device), parts[name], 1)
                parameters[name].copy_(here.double() + moved)
            value = float(objective.terms(batch)[0].detach())
        told()
        return value

    digest = hashlib.sha256(places.tobytes() + rows.cpu().numpy().tobytes()).hexdigest()

    def restoring(batch: Any, totals: Totals) -> None:
        with kept_values(parameters.values(), kept):
            share(batch, totals)

    kept = [parameter.detach().clone() for parameter in parameters.values()]
    return add_up(objective.batches(), restoring, group=objective.group, asked=digest)


def _differences(
    forward: Floats, backward: Floats, value: float, steps: Floats, rounding: float
) -> tuple[Floats, Floats]:
    """Second differences of the loss, each at the step whose error is least, and these errors; NaN where none is known.

    The error of a step is the larger difference from twice and from half of it, and what rounding of four losses makes.
    One of the two alone may be small by chance, where steps are too large for their errors to fall in order.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        bent = (forward - 2.0 * value + backward) / steps**2
        apart = np.abs(np.diff(bent, axis=1))
        errors = np.maximum(apart[:, :-1], apart[:, 1:]) + 4.0 * rounding / steps[:, 1:-1] ** 2
    errors[~np.isfinite(errors)] = np.inf
    best = errors.argmin(axis=1)
    lines = np.arange(len(best))
    least = errors[lines, best]
    return np.where(np.isfinite(least), bent[lines, best + 1], np.nan), np.where(np.isfinite(least), least, np.nan)


def _table(lines: Floats, errors: bool = False) -> Floats:
    """(2, 2) second derivatives, or their errors, from those along d1, d2 and d1 + d2."""
    first, second, both = lines
    mixed = (both + first + second if errors else both - first - second) / 2.0
    return np.array([[first, mixed], [mixed, second]])


def _status(agrees: bool, bends: Floats, bent: Floats, errors: Floats) -> str:
    if agrees:
        return "the curvature agrees with differences of the loss, within their errors"
    if np.isnan(bent).any():
        return "the curvature could not be compared with differences of the loss, which is not finite nearby"
    worst = int(np.argmax(np.abs(bent - bends) - errors))
    return (
        f"the curvature DIFFERS from differences of the loss ({bends[worst]:.4g} against {bent[worst]:.4g} +- "
        f"{errors[worst]:.2g}): the loss has kinks along the direction, or its second derivative holds very near only"
    )

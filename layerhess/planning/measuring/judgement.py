"""Predicts what a plan does to the loss from the changes of the outputs that its single steps make.

z is the output at a base (the float model, or a plan that was measured) and dz_lk its change when layer l alone takes
option k. The loss at the sum of the changes, loss(z + sum_l dz_l), knows how layers interact through the loss; what it
leaves out is how one layer's change alters the effect of another on the output. Its second-order part is a quadratic:
the pair (l, k), (m, j) adds the mean of dz_lk' S dz_mj, with S = d2 loss / dz2.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from layerhess.linalg.estimates import Floats
from layerhess.objective.group import Group
from layerhess.planning.measuring.judges import CriterionJudge, Judge
from layerhess.planning.measuring.meter import FloatModel, Measurement

Choices = npt.NDArray[np.int64]
Outputs = list[tuple[Judge, Tensor]]  # of batches: the loss as a function of the output, and the output
LEAST_ROWS = 64  # of a sample of outputs
AT_ONCE = 1 << 22  # numbers of outputs that are looked at together
ROUGHLY, ROUGH_ROWS = 1 << 17, 256  # numbers of the outputs that a search looks at, and at least so many rows


def float_outputs(model: FloatModel, group: Group) -> Outputs | None:
    """The kept rows of the float model's outputs, of all ranks in their order; None where too few are kept."""
    found: Outputs | None = None if model.batches or group.size == 1 else []  # a rank may have no data
    if model.has_outputs:
        found = [(j, o) for j, o in zip(model.judges, model.outputs, strict=True) if j is not None and o is not None]
        rows = sum(len(output) for _, output in found)
        if model.share < 1.0 and rows < LEAST_ROWS:
            found = None
    if group.size == 1:
        return found
    plain = found is not None and all(isinstance(judge, CriterionJudge) for judge, _ in found)
    if not all(group.gathered(plain)):  # a user's function stays where it is
        return None
    return [one for part in group.gathered([(judge, output.cpu()) for judge, output in found or ()]) for one in part]


class Judgement:
    """The loss at the sum of the changes of the outputs, for any choice.

    Where only a sample of rows is kept, what a single step does is measured on all data, and only what interactions add
    is the sample's.

    Args:
        outputs: at the base. steps: [layer][option] -> the measurement of that step, its changes being those from the
            float model; None where an option is out. base: the measurement of the base, None for the float model.
        increases: (L, K) what each step adds to the mean loss at the base, on all data. start: the base's own increase.
        scale: what loss sums over all data are divided by. count: of all data, kept or not.
    """

    def __init__(
        self,
        outputs: Outputs,
        steps: Sequence[Sequence[Measurement | None]],
        increases: Floats,
        *,
        base: Measurement | None = None,
        start: float = 0.0,
        scale: float,
        count: float,
    ) -> None:
        self._options = increases.shape[1]
        self._batches: list[tuple[Judge, Tensor, Tensor]] = []
        kept = 0.0
        for place, (judge, output) in enumerate(outputs):
            if not len(output):
                continue
            nothing = torch.zeros(output.shape, dtype=output.dtype if output.dtype == torch.float64 else torch.float32)
            moved = nothing if base is None else base.outputs[place]
            whole = [
                nothing if step is None else step.outputs[place] - (0.0 if base is None else moved)
                for row in steps
                for step in row
            ]
            at_base = output.double() if base is None else output.double() + moved.to(output.device).double()
            self._batches.append((judge, at_base, torch.stack(whole).to(output.device)))
            kept += float(judge.counts.sum())
        self._increases, self._start = increases, start
        self._rough: Judgement | None = None
        self._settle(scale * (kept / count if count else 1.0))

    def _settle(self, scale: float) -> None:
        """What single steps do to the loss of the kept rows; what they do to all data is known."""
        increases, self._scale = self._increases, scale
        self._zero = self._losses(np.zeros((1, 0), dtype=np.int64))[0]
        alone = (self._losses(np.arange(increases.size)[:, None]) - self._zero).reshape(increases.shape) / scale
        self._correction = np.where(np.isfinite(increases), increases, 0.0) - np.nan_to_num(alone)

    def increase(self, choices: Choices) -> Floats:
        """(n,) predicted increases of the loss over the float model's, for (n, L) choices of an option."""
        layers = np.arange(choices.shape[1])
        together = (self._losses(layers * self._options + choices) - self._zero) / self._scale
        found: Floats = self._start + together + self._correction[layers, choices].sum(axis=1)
        return found

    @property
    def numbers(self) -> int:
        """Of an output of all the data that is kept."""
        return sum(output.numel() for _, output, _ in self._batches)

    def rough(self) -> Judgement:
        """The same by evenly spaced rows of the outputs, for searches; itself where these are few anyway."""
        if self._rough is None:
            self._rough = self._thinned()
        return self._rough

    def _thinned(self) -> Judgement:
        rows = sum(len(output) for _, output, _ in self._batches)
        step = min(-(-self.numbers // ROUGHLY), rows // ROUGH_ROWS)
        if step <= 1:
            return self
        made = copy.copy(self)
        made._batches, kept = [], 0.0
        for judge, output, changes in self._batches:
            index = torch.arange(0, len(output), step)
            taken = judge.taken(index)
            if taken is None:
                return self
            made._batches.append((taken, output[::step], changes[:, ::step]))
            kept += float(taken.counts.sum())
        if not kept:
            return self
        made._settle(self._scale * kept / sum(float(judge.counts.sum()) for judge, _, _ in self._batches))
        return made

    def _losses(self, places: Choices) -> Floats:
        """(n,) loss sums with the changes at these places, (n, any number), added up."""
        total = np.zeros(len(places))
        for judge, output, changes in self._batches:
            flat = changes.reshape(len(changes), -1)
            at_once = max(1, AT_ONCE // max(1, output.numel()))
            for begin in range(0, len(places), at_once):
                part = torch.from_numpy(places[begin : begin + at_once]).to(flat.device)
                chosen = torch.zeros((len(part), len(flat)), dtype=flat.dtype, device=flat.device)
                chosen.scatter_(1, part, 1.0)
                z = output + (chosen @ flat).reshape(len(part), *output.shape)
                with torch.no_grad():
                    total[begin : begin + at_once] += judge.sums(z).double().cpu().numpy()
        return total

    def couplings(self) -> Floats:
        """(L K, L K) second-order interactions d_a' G d_b of all pairs of steps, from the outputs alone.

        Pairs of steps of one layer are there too: half of d_a' G d_a is what Gauss-Newton says of a single step.
        """
        number = len(self._batches[0][2]) if self._batches else 0
        total = torch.zeros((number, number), dtype=torch.float64)
        for judge, output, changes in self._batches:
            at_once = max(1, AT_ONCE // max(1, output.numel()))
            flat = changes.reshape(number, -1).double()
            for begin in range(0, number, at_once):
                bent = _curved(judge, output, changes[begin : begin + at_once])
                if bent is not None:
                    total[begin : begin + at_once] += (bent.reshape(len(bent), -1) @ flat.T).cpu()
        found: Floats = ((total + total.T) / 2.0 / self._scale).numpy()
        return found


def _curved(judge: Judge, output: Tensor, changes: Tensor) -> Tensor | None:
    """S dz for s changes of one output, (s, rows, ...) float64; None where S is zero."""
    if (known := judge.bent(output, changes)) is not None:
        return known
    with torch.enable_grad():
        z = output.detach().expand(len(changes), *output.shape).clone().requires_grad_()
        (slope,) = torch.autograd.grad(judge.sums(z).sum(), z, create_graph=True)
        if not slope.requires_grad:
            return None
        (bent,) = torch.autograd.grad(slope, z, changes.double(), allow_unused=True)
    return bent


def quadratic(couplings: Floats, choices: Choices, options: int) -> Floats:
    """(n,) what pairs add: sum over l < m of the couplings of their chosen steps.

    Plans that differ in one or two layers from what is most common, as neighbours of a plan do, are that plan's value
    and what these layers change.
    """
    number, layers = choices.shape
    every = np.arange(layers) * options
    if not number:
        return np.zeros(0)
    counts = np.stack([(choices == option).sum(axis=0) for option in range(options)])
    centre = every + counts.argmax(axis=0)
    toward = couplings[:, centre]
    rows = toward.sum(axis=1) - toward[np.arange(len(couplings)), np.repeat(np.arange(layers), options)]
    found = np.full(number, rows[centre].sum() / 2.0)
    places = every + choices
    moved = places != centre
    steps = moved.sum(axis=1)
    near = np.flatnonzero((steps == 1) | (steps == 2))
    at, layer = np.nonzero(moved[near])
    new, old = places[near[at], layer], centre[layer]
    np.add.at(found, near[at], rows[new] - rows[old])
    second = np.flatnonzero(at[1:] == at[:-1]) + 1  # the second of two layers that moved
    n1, n2, o1, o2 = new[second - 1], new[second], old[second - 1], old[second]
    found[near[at[second]]] += couplings[n1, n2] - couplings[n1, o2] - couplings[o1, n2] + couplings[o1, o2]
    far = np.flatnonzero(steps > 2)
    for part in np.array_split(far, max(1, -(-len(far) * layers * layers // AT_ONCE))):
        own = couplings[places[part][:, :, None], places[part][:, None, :]]
        found[part] = (own.sum(axis=(1, 2)) - np.trace(own, axis1=1, axis2=2)) / 2.0
    return found

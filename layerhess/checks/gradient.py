"""Checks that autograd's gradient is the derivative of the loss, by central differences of the loss itself.

Autograd takes detached values for constants, believes the backward of a custom function, and applies hooks. What it
then gives may be the gradient of another function, or of none, and so may its second derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from layerhess.checks.finite_differences import Move, beyond_error, movable, nearby, scaled_parts
from layerhess.checks.silent_tensors import silent_tensors
from layerhess.curvature.autograd_graph import coarsest_dtype
from layerhess.curvature.counters import Counters
from layerhess.curvature.double_backward.mode import Rewritten
from layerhess.curvature.gradient_sum import add_gradient
from layerhess.objective.blocks import make_block
from layerhess.objective.containers import all_finite, tensors
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import moved

STEPS = {torch.float64: (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2), torch.float32: (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)}
# Only the finest steps cross no kink among many (ReLU6 behind steep layers), and no wave of a stiff loss (as one on
# forces is). They may acquit, and never convict.
FINEST = {torch.float64: (1e-8, 1e-9, 1e-10), torch.float32: (3e-5, 1e-5, 3e-6, 1e-6)}
LIMIT = {torch.float64: 5e-7, torch.float32: 1e-2}  # honest networks stay below 3e-8 in float64
STRICT = {torch.float64: 2e-9, torch.float32: 1e-3}  # for single tensors, once something is known to be wrong
LARGEST_SCALE = {torch.float64: 30.0, torch.float32: 3.0}  # weak tensors move so much further
COARSE = 1e-5  # a difference with more error than this cannot acquit what a finer one convicted
BESIDE = (0.997, 0.999, 1.001, 1.003)  # times a step: differences there are the same but for rounding
NOISE = 30.0  # roundoffs of the loss


@dataclass(frozen=True)
class Disagreement:
    """How far gradient and differences of the loss are apart.

    Attributes:
        worst: relative, beyond what step and rounding explain; None where no step can tell.
        tensors: parameter -> the same for it alone, for those that are off; all of them where none is off alone.
        silent: the parameters of which these examples show no gradient, so that nothing is known of theirs.
        doubt: relative error of the differences that decided; infinite where none did.
    """

    worst: float | None
    tensors: dict[str, float]
    silent: tuple[str, ...] = ()
    doubt: float = 0.0


@dataclass(frozen=True)
class _Verdict:
    """Along one direction. beyond: as ``worst`` above. doubt: of the step that decided."""

    beyond: float | None
    doubt: float = math.inf

    def convicts(self, limit: float) -> bool:
        return self.beyond is not None and self.beyond > limit


@dataclass
class _Line:
    """A line through the weights. By parameter: its direction, <g, d>, and ||g|| times ||d||; g is not kept."""

    direction: dict[str, Tensor]
    slopes: dict[str, float]
    sizes: dict[str, float]

    def along(self, name: str) -> _Line:
        """Of one tensor alone."""
        return _Line({name: self.direction[name]}, {name: self.slopes[name]}, {name: self.sizes[name]})


class GradientCheck:
    """The loss on a sample and its gradient, near the present weights.

    Args:
        objective: in session, a float64 copy where that can be made; its weights are moved, and put back bit by bit.
        names: the parameters.

    Attributes:
        objective: as given. coarsest: the coarsest floating dtype behind the loss, once that was evaluated.
    """

    def __init__(self, objective: Objective, names: Sequence[str], seed: int, counters: Counters) -> None:
        self.objective, self._names, self._seed, self._counters = objective, list(names), seed, counters
        self.coarsest = objective.dtype
        self._output = 0.0  # the largest magnitude in the model's outputs
        self._size = 0.0  # of the loss
        self._differentiates = False  # the loss itself, or the model
        self._move: Move
        self._full = make_block("(full)", {name: objective.parameters[name] for name in names})

    def disagreement(self) -> Disagreement:
        """Compare <g, d> with (L(theta + r d) - L(theta - r d)) / 2r along one direction d of all parameters.

        Each tensor moves in proportion to its size: along its gradient, along itself and at random, weak ones further.
        The differences are taken near the weights rather than at them. The step of least |F(2r) - F(r)|, which tracks
        the error of F(r), decides; kinks make that error O(r). The check fails if it does along two directions, at two
        places. The tensors are then moved one by one, and judged strictly. Two evaluations of the loss and one gradient
        when all is right.
        """
        # A kink right beside the weights that are looked at shifts every difference alike: elsewhere there is none.
        found = self._at(0)
        if not found.tensors:
            return found
        elsewhere = self._at(1)
        return found if elsewhere.worst is None else elsewhere

    def far_away(self) -> Disagreement:
        """The same at weights that are moved by a tenth: near a minimum float32 has no digits for the slope.

        Twice, since a staircase may look smooth by luck; the worse of both counts.
        """
        with moved(self.objective.parameters.values()):
            first, second = self._at(2, origin=False), self._at(3, origin=False)
        return first if first.tensors or first.worst is None else second

    def _at(self, place: int, origin: bool = True) -> Disagreement:
        """The comparison near the weights, at one of the random places there.

        Args:
            origin: the weights are those that the copy was made of.
        """
        with movable(self.objective, nearby(self.objective, self._full, self._seed, place), origin) as self._move:
            gradient = self._gradient()
            if gradient is None or self.coarsest not in LIMIT:
                return Disagreement(None, {})
            silent = tuple(silent_tensors(self.objective, gradient))
            limit, name = LIMIT[self.coarsest], f"gradient, place {place}"
            line = self._line(gradient, name, 0)
            first = self._judged(line)
            if not first.convicts(limit):
                return Disagreement(first.beyond, {}, silent, first.doubt)
            del line
            another = self._line_again(name, 1)
            second = self._judged(another)
            if second.convicts(limit):
                first, line = second, another
            elif not (first.doubt <= limit and second.doubt > COARSE):
                # Large steps see the slope of a staircase, which is not its derivative.
                return Disagreement(second.beyond, {}, silent, second.doubt)
            else:
                del another
                line = self._line_again(name, 0)
            worst = first.beyond
            # What is wrong for one tensor may be wrong, and weaker, for those whose values pass through the same place.
            strict, culprits = STRICT[self.coarsest], {}
            for own in self._names:
                alone = self._judged(line.along(own), strict).beyond
                if alone is not None and alone > strict:
                    culprits[own] = alone
            if not max(culprits.values(), default=0.0) > limit:
                culprits = {}
            return Disagreement(worst, culprits or dict.fromkeys(self._names, float(worst or 0.0)), silent)

    def _gradient(self) -> dict[str, Tensor | None] | None:
        """Of the loss's sum over the sample; None where that is not finite."""
        totals: dict[str, Tensor] = {}
        parameters = {name: self.objective.parameters[name] for name in self._names}
        self._size = 0.0
        handle = register_module_forward_hook(self._measure)
        try:
            for batch in self.objective.data:
                with Rewritten() as mode:  # as in products, whose gradient this is
                    loss, _ = self.objective.terms(batch)
                self._differentiates |= mode.differentiated
                self._counters.count("forwards")
                self._counters.count("backwards")
                self._size += abs(float(loss.detach()))
                if loss.requires_grad:
                    self.coarsest = coarsest_dtype(loss.grad_fn, self.coarsest)
                    add_gradient(loss, parameters, totals)
        finally:
            handle.remove()
        if not all(map(all_finite, totals.values())):
            return None
        return {name: totals.pop(name, None) for name in self._names}

    def _measure(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module is self.objective.model:
            for tensor in tensors(output):
                wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # by vmap: no single number
                if tensor.is_floating_point() and tensor.numel() and not wrapped:
                    self._output = max(self._output, float(tensor.detach().abs().max()))

    def _line_again(self, name: str, draw: int) -> _Line:
        self._move({}, 0.0)
        return self._line(self._gradient() or {}, name, draw)

    def _line(self, gradient: dict[str, Tensor | None], name: str, draw: int) -> _Line:
        """A direction, and the slope along it that the gradient claims, whose tensors are let go meanwhile."""
        line, strength, lengths = _Line({}, {}, {}), {}, {}
        for own, part in scaled_parts(self.objective, self._full, self._seed, name, draw):
            known = gradient.pop(own, None)
            lengths[own] = length = float(torch.linalg.vector_norm(part))
            size = 0.0 if known is None else float(torch.linalg.vector_norm(known, dtype=torch.float64))
            strength[own] = size * length
            # Along the tensor itself too, where what depends on its norm shows; padding rows, which are 0 here, stay.
            part += self.objective.parameters[own].detach().to(part) * (part != 0.0)
            if known is not None and size > 0.0:
                part.add_(known.to(part), alpha=length / size)
            both = float(torch.linalg.vector_norm(part))
            line.direction[own] = part.mul_(length / max(both, 1e-300))
            line.slopes[own] = 0.0 if known is None else float((known.to(part) * part).sum())
            line.sizes[own] = size * float(torch.linalg.vector_norm(part))
            del known
        strongest = max(strength.values(), default=0.0)
        far = LARGEST_SCALE[self.coarsest]
        for own, part in line.direction.items():
            scale = max(1.0, min(far, strongest / max(strength[own], 1e-300)))
            part *= scale
            line.slopes[own] *= scale
            line.sizes[own] *= scale
        return line

    def _judged(self, line: _Line, limit: float | None = None) -> _Verdict:
        """The relative disagreement at the step whose error is least."""
        direction = line.direction
        slope, size = sum(line.slopes.values()), sum(line.sizes.values())
        limit = LIMIT[self.coarsest] if limit is None else limit
        best: tuple[float, float] | None = None
        chosen = 0.0, 0.0, 1.0, 0.0, 0.0  # of the best step: itself, its difference, and scale, off, noise
        # First where the loss has enough digits.
        noise = self._noise(self._size)
        for step in sorted(STEPS[self.coarsest], key=lambda step: noise / step > limit * (abs(slope) + 1e-3 * size)):
            near, noise = self._difference(direction, step)
            scale = max(abs(slope), abs(near)) + 1e-3 * size
            if not math.isfinite(near) or scale == 0.0:
                continue
            off = max(0.0, abs(near - slope) - noise) / scale
            if off <= limit and noise <= limit * scale:
                return _Verdict(off, noise / scale)
            far, _ = self._difference(direction, 2.0 * step)
            error, noise = abs(far - near) / scale, noise / scale
            beyond = beyond_error(off, error, 1.0, noise)
            if beyond is None:
                continue
            if best is None or error + noise < best[0]:
                best, chosen = (error + noise, beyond), (step, near, scale, off, noise)
            if error + noise <= limit:
                break
        if best is None or best[1] <= limit:
            return _Verdict(None) if best is None else _Verdict(best[1], best[0])
        for step in FINEST[self.coarsest]:
            near, noise = self._difference(direction, step)
            scale = max(abs(slope), abs(near)) + 1e-3 * size
            if scale > 0.0 and abs(near - slope) <= limit * scale and noise <= limit * scale:
                return _Verdict(abs(near - slope) / scale, noise / scale)
        # |F(2r) - F(r)| may be small by chance where the loss is rounded more than it seems, as a log of 1 - p is.
        step, near, scale, off, noise = chosen
        spread = max(abs(self._difference(direction, step * other)[0] - near) for other in BESIDE)
        return _Verdict(beyond_error(off, max(spread / scale, best[0] - noise), 1.0, noise), best[0])

    def _difference(self, direction: Mapping[str, Tensor], step: float) -> tuple[float, float]:
        """(central difference of the loss, its rounding)."""
        above, size = self._loss(direction, step)
        below, other = self._loss(direction, -step)
        return (above - below) / (2.0 * step), self._noise(max(size, other)) / (2.0 * step)

    def _noise(self, size: float) -> float:
        """Rounding of a loss of this size; one near 0 may be a difference of outputs, as that of cross entropy is."""
        return NOISE * torch.finfo(self.coarsest).eps * (size + self._output)

    def _loss(self, direction: Mapping[str, Tensor], step: float) -> tuple[float, float]:
        """(the loss's sum over the sample, the sum of its batches' magnitudes)."""
        total, size = 0.0, 0.0
        self._move(direction, step)
        for batch in self.objective.data:
            # The user's own functions, which the others stand for; but derivatives of torch's own may be wrong.
            with Rewritten() if self._differentiates else nullcontext():
                value = float(self.objective.terms(batch)[0].detach().double())
            self._counters.count("forwards")
            total, size = total + value, size + abs(value)
        return total, size

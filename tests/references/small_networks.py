"""Dense float64 matrices of a small network's whole loss, and whether its derivatives are those of what it computes.

Nothing here touches the library. The loss is ``totals(output, target) -> (sum, count)``, written out by hand. Rows of
the Hessian are torch's double backward in float64, checked along random directions by central differences of the
gradient, and the gradient by central differences of the loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from references.stable_functions import Head, stable_functions

Matrix = NDArray[np.float64]
Rows = NDArray[np.int64]
Batch = tuple[Tensor, Tensor]
Totals = Callable[[Tensor, Tensor], tuple[Tensor, Any]]
STEPS = (1e-5, 1e-6, 1e-7, 1e-4)
AGREES = 1e-5


class PlainHardsigmoid(nn.Module):
    """torch's own has no second derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu6(x + 3) / 6


class SiLUSlope(torch.autograd.Function):
    """sigmoid(x) (1 + x sigmoid(-x)) and its derivative, with all digits where 1 - sigmoid(x) has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sigmoid() * (1 + x * (-x).sigmoid())

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        on, off = x.sigmoid(), (-x).sigmoid()
        return above * on * off * (2 + x * (off - on))


class ExactSiLU(torch.autograd.Function):
    """torch's own second derivative holds 1 - sigmoid(x), which has no digits of a saturated unit's slope."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return above * SiLUSlope.apply(x)  # type: ignore[no-any-return,no-untyped-call]


class PlainSiLU(nn.Module):
    """:class:`ExactSiLU` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return ExactSiLU.apply(x)  # type: ignore[no-any-return,no-untyped-call]


class PlainInstanceNorm(nn.Module):
    """torch's own has a wrong gradient for a batch of one example where the incoming one is not contiguous (2.13)."""

    def __init__(self, norm: nn.InstanceNorm1d | nn.InstanceNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        spatial, shape = tuple(range(2, x.dim())), (1, -1, *[1] * (x.dim() - 2))
        x = x - x.mean(spatial, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(spatial, keepdim=True) + self.eps)
        return x * self.weight.view(shape) + self.bias.view(shape)


class PlainBatchNorm(nn.Module):
    """torch's own has a wrong gradient in eval mode for a batch of one, as above."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.register_buffer("mean", norm.running_mean)
        self.register_buffer("var", norm.running_var)
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.dim() - 2))
        mean, var = self.mean.view(shape), self.var.view(shape)
        if self.training:
            over = [d for d in range(x.dim()) if d != 1]
            mean, var = x.mean(over, keepdim=True), x.var(over, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(var + self.eps) * self.weight.view(shape) + self.bias.view(shape)


class Exact:
    """A network in float64 on its data: loss, gradient, and the three matrices."""

    def __init__(
        self,
        model: nn.Module,
        batches: list[Batch],
        totals: Totals,
        count: float | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.model = copy.deepcopy(model).to(dtype)
        for module in list(self.model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Hardsigmoid):
                    setattr(module, name, PlainHardsigmoid())
                elif isinstance(child, nn.SiLU):
                    setattr(module, name, PlainSiLU())
                elif isinstance(child, nn.InstanceNorm1d | nn.InstanceNorm2d):
                    setattr(module, name, PlainInstanceNorm(child))
                elif isinstance(child, nn.Softmax):
                    setattr(module, name, Head(child))
                elif isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                    setattr(module, name, PlainBatchNorm(child))
        self.batches = [tuple(t.to(dtype) if t.is_floating_point() else t for t in batch) for batch in batches]
        self.totals = totals
        self.parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.places: dict[str, Rows] = {}
        start = 0
        for name, parameter in self.parameters.items():
            self.places[name] = np.arange(start, start + parameter.numel())
            start += parameter.numel()
        self.size = start
        self._hessian: Matrix | None = None
        if count is None:
            with torch.no_grad():
                count = sum(float(self._terms(x, y)[1]) for x, y in self.batches)
        self.count = count

    def index(self, names: Sequence[str]) -> Rows:
        return np.concatenate([self.places[name] for name in names])

    def output(self, x: Tensor) -> Tensor:
        with stable_functions():
            return self.model(x)  # type: ignore[no-any-return]

    def loss(self) -> Tensor:
        total = sum(self._terms(x, y)[0] for x, y in self.batches)
        return total / self.count  # type: ignore[no-any-return]

    def _terms(self, x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
        return self._totals(self.output(x), y)

    def _totals(self, z: Tensor, y: Tensor) -> tuple[Tensor, Any]:
        with stable_functions():
            return self.totals(z, y)

    def gradient(self, loss: Tensor, **options: Any) -> Tensor:
        if not loss.requires_grad:
            return torch.zeros(self.size, dtype=loss.dtype)
        made = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True, **options)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(made, self.parameters.values(), strict=True)]
        return torch.cat([part.reshape(-1) for part in parts])

    def hessian(self) -> Matrix:
        """As autograd gives it, not symmetrised; made once."""
        if self._hessian is None:
            with sdpa_kernel(SDPBackend.MATH):
                slope = self.gradient(self.loss(), create_graph=True)
                rows = [self.gradient(entry, retain_graph=True).detach().numpy() for entry in slope]
            self._hessian = np.stack(rows)
        return self._hessian

    def gauss_newton(self) -> Matrix:
        made = np.zeros((self.size, self.size))
        for (x, _), S in zip(self.batches, self.output_curvatures(), strict=True):
            z = self.output(x)
            J = np.stack([self.gradient(entry, retain_graph=True).numpy() for entry in z.reshape(-1)])
            made += J.T @ S @ J
        return made / self.count

    def output_curvatures(self) -> Iterator[Matrix]:
        """d2 (loss sum) / d output2 of each batch, over all entries of the output."""
        for x, y in self.batches:
            free = self.output(x).detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self._totals(free, y)[0], free, create_graph=True)
            yield np.stack([
                _or_zero(torch.autograd.grad(s, free, retain_graph=True, allow_unused=True)[0], free)
                if s.requires_grad else np.zeros(free.numel())
                for s in slope.reshape(-1)
            ])  # fmt: skip

    def empirical_fisher(self) -> Matrix:
        made = np.zeros((self.size, self.size))
        for x, y in self.batches:
            for i in range(len(x)):
                g = self.gradient(self._terms(x[i : i + 1], y[i : i + 1])[0]).detach().numpy()
                made += np.outer(g, g)
        return made / self.count

    def finite(self) -> bool:
        """Loss, gradient, its derivative and the loss's own in the output are finite in this dtype."""
        with sdpa_kernel(SDPBackend.MATH):
            slope = self.gradient(self.loss(), create_graph=True)
            parts = [self.loss(), slope, self.gradient(slope.sum(), retain_graph=True)]
            parts += [torch.from_numpy(S) for S in self.output_curvatures()]
        return all(bool(torch.isfinite(part).all()) for part in parts)

    def matrix(self, operator: str) -> Matrix:
        with sdpa_kernel(SDPBackend.MATH):
            made = getattr(self, operator)()
        return np.asarray((made + made.T) / 2)

    # -- are autograd's derivatives those of what is computed? ---------------------------------------------------------

    def first_derivative_error(self, names: Sequence[str], directions: int = 2) -> float:
        """The gradient of these tensors against differences of the loss: the largest relative difference.

        What rounding makes of the gradient is none: of a bias before a norm it is rounding alone.
        """
        with sdpa_kernel(SDPBackend.MATH):
            slope = self.gradient(self.loss()).detach()
            blur = self._blur(slope)

            def small(rows: Rows) -> float:
                return 1e-3 * float(slope[rows].norm())

            return self._error(
                names,
                lambda: self.loss().detach(),
                lambda v: slope @ v,
                directions,
                small,
                lambda v: float(blur @ v.abs()),
            )

    def _blur(self, slope: Tensor) -> Tensor:
        """How much each entry of the gradient changes with the last digits of the weights, times a margin of four."""
        generator = torch.Generator().manual_seed(6)
        before = {name: p.detach().clone() for name, p in self.parameters.items()}
        seen = torch.zeros_like(slope)
        for _ in range(4):
            for p in self.parameters.values():
                drawn = torch.rand(p.shape, generator=generator, dtype=torch.float64) - 0.5
                with torch.no_grad():
                    p.mul_((1.0 + 8.0 * torch.finfo(torch.float64).eps * drawn).to(p))
            seen = torch.maximum(seen, (self.gradient(self.loss()).detach() - slope).abs())
            self._put(before)
        return 4.0 * torch.nan_to_num(seen)

    def second_derivative_error(self, names: Sequence[str], directions: int = 2) -> float:
        """The Hessian of these tensors against differences of their gradient, and its asymmetry."""
        H, kept = torch.from_numpy(self.hessian()), self.index(names)

        def slope() -> Tensor:
            return self.gradient(self.loss()).detach()[kept]

        with sdpa_kernel(SDPBackend.MATH):
            small = 1e-6 * float(H.norm())
            found = self._error(names, slope, lambda v: (H @ v)[kept], directions, lambda rows: small)
        return max(self.asymmetry(names), found)

    def bend(self, names: Sequence[str]) -> float:
        """How far the differences of the gradient to either side are apart, relative, where they are nearest.

        About 1 where the gradient has a kink at these very weights (a unit of ELU at 0), which has no derivative then;
        0 elsewhere, however wrong the derivative that autograd gives.
        """
        H, kept = torch.from_numpy(self.hessian()), self.index(names)

        def slope() -> Tensor:
            return self.gradient(self.loss()).detach()[kept]

        with sdpa_kernel(SDPBackend.MATH):
            small = 1e-6 * float(H.norm())
            return self._error(names, slope, lambda v: (H @ v)[kept], 2, lambda rows: small, sides=True)

    def asymmetry(self, names: Sequence[str]) -> float:
        """Of the Hessian of these tensors, relative."""
        rows = self.index(names)
        H = self.hessian()[np.ix_(rows, rows)]
        return float(np.linalg.norm(H - H.T)) / (float(np.linalg.norm(H)) + 1e-300)

    def _error(
        self,
        names: Sequence[str],
        value: Callable[[], Tensor],
        exact: Callable[[Tensor], Tensor],
        directions: int,
        small: Callable[[Rows], float],
        blur: Callable[[Tensor], float] = lambda v: 0.0,
        sides: bool = False,
    ) -> float:
        generator = torch.Generator().manual_seed(5)
        worst = 0.0
        for name in names:
            rows, length = self.places[name], float(self.parameters[name].detach().norm())
            for _ in range(directions):
                v = torch.zeros(self.size, dtype=torch.float64)
                v[rows] = torch.randn(len(rows), generator=generator, dtype=torch.float64)
                v *= max(length, 1e-3) / v.norm()
                size = float(exact(v).norm()) + small(rows) * float(v.norm())
                worst = max(worst, self._difference(value, v, None if sides else exact(v), size, blur(v)))
        return worst

    def _difference(
        self, value: Callable[[], Tensor], v: Tensor, wanted: Tensor | None, size: float, blur: float
    ) -> float:
        """The smallest relative difference over the steps; those that are left are not tried once one agrees.

        Args:
            wanted: the derivative; None to compare the two sides with each other. blur: what rounding makes of it.
        """
        here = value() if wanted is None else None
        before = {name: p.detach().clone() for name, p in self.parameters.items()}
        best = float("inf")
        for step in STEPS:
            ends = []
            for sign in (step, -step):
                self._put({name: before[name] + sign * v[self.places[name]].view_as(p) for name, p in before.items()})
                ends.append(value())
            noise = 1e-12 * float(ends[0].norm() + ends[1].norm()) / step  # a wide margin: many operations
            if here is not None:
                off = float(((ends[0] - here) + (ends[1] - here)).norm()) / step
            else:
                off = float(((ends[0] - ends[1]) / (2 * step) - wanted).norm())
            best = min(best, max(off - blur, 0.0) / (size + noise + 1e-300))
            if best < AGREES:
                break
        self._put(before)
        return best

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])


def _or_zero(gradient: Tensor | None, like: Tensor) -> Matrix:
    made = torch.zeros_like(like) if gradient is None else gradient
    return made.detach().reshape(-1).numpy(force=True)

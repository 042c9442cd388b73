"""The loss along one or two directions, beside its quadratic model, as a plain record."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layerhess.linalg.described import Described, Description
from layerhess.linalg.estimates import Floats
from layerhess.linalg.numbers import number


@dataclass(frozen=True, repr=False)
class LossSliceRecord(Described):
    """L(theta + alpha d), or L(theta + alpha d1 + beta d2), theta the model's parameters.

    Attributes:
        alpha: (n,) coordinates, from -radius to radius, of either direction.
        loss: (n,) the mean loss over the whole data set; (n, n) for two directions, ``loss[i, j]`` at ``alpha[i]`` of
            the first and ``alpha[j]`` of the second. Infinite or NaN where the model gives that.
        quadratic: of the same shape, L + alpha g'd + alpha^2 d'Hd / 2, g the gradient and H the Hessian at theta.
        value: L at theta. rounding: the largest error of a loss near theta because numbers are rounded, estimated.
        slope: g'd; (2,) for two directions. curvature: d'Hd; (2, 2) for two.
        difference_curvature: the same from differences of the loss. difference_error: its error, from two step sizes
            and rounding.
        agrees: both curvatures are the same within their errors. Along kinks (ReLU, max pooling) they need not be: the
            loss then bends in its kinks, which have no second derivative.
        norms: Euclidean lengths of the directions: a distance in parameters is alpha times that.
        directions: what each is. parameters: names of the tensors that are moved.
        status: a sentence on the agreement.
    """

    alpha: Floats
    loss: Floats
    quadratic: Floats
    value: float
    rounding: float
    slope: float | Floats
    curvature: float | Floats
    difference_curvature: float | Floats
    difference_error: float | Floats
    agrees: bool
    norms: tuple[float, ...]
    directions: tuple[str, ...]
    parameters: tuple[str, ...]
    status: str

    def _describe(self) -> Description:
        shape = " x ".join(map(str, self.loss.shape))
        return Description(
            f"Loss along {' and '.join(self.directions)}",
            (
                f"loss {number(self.value, 6)}, slope {_shown(self.slope)}, curvature {_shown(self.curvature)}",
                f"status: {self.status}",
                f"{shape} points, |alpha| <= {self.alpha[-1]:g}: .alpha, .loss, .quadratic, .plot()",
            ),
            "" if self.agrees else "CURVATURE DIFFERS FROM DIFFERENCES",
        )


def _shown(value: float | Floats) -> str:
    return number(value) if isinstance(value, float) else " ".join(str(np.round(value, 6).tolist()).split())

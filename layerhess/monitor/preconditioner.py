r"""The optimizer's preconditioner P, from its own state, and the curvature above which it is unstable.

Near a minimum an optimizer moves by P^-1 times the (averaged) gradient. On the quadratic model, with P held as it is,
it is unstable as soon as the largest eigenvalue of P^-1/2 H P^-1/2 is above a threshold (Cohen et al. 2021, 2022). With
lr the learning rate, b the momentum, t the step of a parameter and v^ = v / (1 - b2^t):

============================  ===================================  =====================================
optimizer                     P                                    threshold
============================  ===================================  =====================================
SGD                           1                                    2 / lr
SGD, momentum                 1                                    (2 + 2 b) / ((1 - dampening) lr)
SGD, Nesterov                 1                                    (2 + 2 b) / ((1 + 2 b) lr)
Adam, AdamW                   (1 - b1^t) (sqrt(v^) + eps)          (2 + 2 b1) / ((1 - b1) lr)
RMSprop                       sqrt(v) + eps                        (2 + 2 b) / lr
============================  ===================================  =====================================

AMSGrad takes the largest v so far; a centred RMSprop v less the squared mean gradient.

Learning rates that differ between parameter groups are put into P: lr above is the largest one, and P is multiplied by
it over the group's own. A parameter that the optimizer does not move (of no group, without a gradient so far, lr 0) has
an infinite P. Groups with different momentum have no common threshold and are refused.

Weight decay is not in H, which is that of the objective. A coupled one, w, adds w P^-1 to the matrix. AdamW's decoupled
decay multiplies the threshold by 1 - lr w / 2. Either is far below a percent for the usual values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from layerhess.errors import InputError

Group = Mapping[str, Any]
KNOWN = (SGD, AdamW, Adam, RMSprop)
NAMES = "SGD, Adam, AdamW or RMSprop of torch.optim"


@dataclass(frozen=True)
class Preconditioner:
    """What an optimizer multiplies gradients by, and where it becomes unstable.

    Attributes:
        inverse_roots: P^-1/2 by parameter, float64, parameter-shaped; 0 where P is infinite. threshold: see the module;
            infinite where nothing moves. plain: P is 1 everywhere.
    """

    inverse_roots: dict[str, Tensor]
    threshold: float
    plain: bool


def torch_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer itself, without wrappers such as those of accelerate and Lightning.

    Raises:
        InputError: none whose preconditioner and threshold are known; parameter groups that have no common threshold.
    """
    inner = optimizer
    while not isinstance(inner, KNOWN) and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    if not isinstance(inner, KNOWN):
        raise InputError(
            f"the stability threshold of {type(inner).__name__} is not known",
            where="optimizer",
            what_to_do=f"give {NAMES}, or leave optimizer out",
        )
    if any(group.get("maximize") for group in inner.param_groups):
        raise InputError(
            "the optimizer maximises, so that the objective's curvature is not what limits it",
            where="optimizer",
            what_to_do="leave optimizer out",
        )
    if len({_momentum(inner, group) for group in inner.param_groups}) > 1:
        raise InputError(
            "the optimizer's parameter groups have different momentum, so that there is no common threshold",
            where="optimizer",
            what_to_do="give all groups the same momentum (betas, nesterov, dampening), or leave optimizer out",
        )
    return inner


def preconditioner(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> Preconditioner:
    """P and the threshold, as they are now.

    Args:
        optimizer: of :func:`torch_optimizer`. parameters: the objective's, by name.

    Raises:
        InputError: see :func:`torch_optimizer`; an optimizer that has none of these parameters.

    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> preconditioner(torch.optim.SGD([w], lr=0.1, momentum=0.9), {"w": w}).threshold
    38.0
    """
    torch_optimizer(optimizer)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    groups = {name: group_of.get(id(p)) for name, p in parameters.items()}
    if not any(group is not None for group in groups.values()):
        raise InputError(
            "the optimizer has none of the objective's parameters",
            where="optimizer",
            what_to_do="give the optimizer that trains this model",
        )
    rates = [float(group["lr"]) for group in groups.values() if group is not None]
    largest = max(rates)
    roots, plain = {}, True
    for name, parameter in parameters.items():
        group = groups[name]
        weight = None if group is None else _weight(optimizer, group, parameter)
        rate = 0.0 if group is None else float(group["lr"]) / largest if largest > 0.0 else 1.0
        if weight is None or rate == 0.0:
            inverse: Tensor | float = 0.0
        elif isinstance(weight, float):
            inverse = math.sqrt(rate / weight)
        else:
            inverse = (rate / weight).sqrt()
        plain = plain and inverse == 1.0 if isinstance(inverse, float) else False
        ones = torch.ones(parameter.shape, dtype=torch.float64, device=parameter.device)
        roots[name] = ones * inverse
    factor = _factor(_momentum(optimizer, optimizer.param_groups[0]))
    return Preconditioner(roots, factor / largest if largest > 0.0 else math.inf, plain)


def _momentum(optimizer: Optimizer, group: Group) -> tuple[str, float, float]:
    """The kind of averaging, its factor, and the dampening."""
    if isinstance(optimizer, Adam):  # AdamW too
        return "average", float(group["betas"][0]), 0.0
    b = float(group["momentum"])
    if b == 0.0:
        return "none", 0.0, 0.0
    return "nesterov" if group.get("nesterov") else "heavy ball", b, float(group.get("dampening", 0.0))


def _factor(momentum: tuple[str, float, float]) -> float:
    """The threshold times the learning rate."""
    kind, b, dampening = momentum
    over = {"average": 1.0 - b, "nesterov": 1.0 + 2.0 * b}.get(kind, 1.0 - dampening)
    return (2.0 + 2.0 * b) / over if over > 0.0 else math.inf


def _weight(optimizer: Optimizer, group: Group, parameter: Tensor) -> Tensor | float | None:
    """P of one parameter, float64, but for the learning rate; None where it was not moved so far."""
    state = optimizer.state.get(parameter, {})
    if isinstance(optimizer, SGD):
        return 1.0
    rule: Callable[[Group, Mapping[str, Any]], Tensor] = _adam if isinstance(optimizer, Adam) else _rmsprop
    with torch.no_grad():
        return rule(group, state) if state else None


def _adam(group: Group, state: Mapping[str, Any]) -> Tensor:
    b1, b2 = (float(b) for b in group["betas"])
    t = float(state["step"])
    v: Tensor = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].detach().double()
    corrected: Tensor = (v / (1.0 - b2**t)).sqrt() + group["eps"]
    weight: Tensor = (1.0 - b1**t) * corrected
    return weight


def _rmsprop(group: Group, state: Mapping[str, Any]) -> Tensor:
    v: Tensor = state["square_avg"].detach().double()
    if group["centered"]:
        v = v - state["grad_avg"].detach().double().square()
    root: Tensor = v.clamp(min=0.0).sqrt() + group["eps"]
    return root

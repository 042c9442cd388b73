"""Finds saturated outputs: there binary cross entropy is differentiated wrongly, and other losses lose their digits."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from layerhess.checks.finite_differences import displaced, scaled_direction
from layerhess.curvature.autograd_graph import walk
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import DataPass, Request
from layerhess.curvature.device import beside
from layerhess.errors import CheckError
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective.blocks import Block
from layerhess.objective.objective import Objective

CLAMPED = 1e-12  # p (1 - p) below it is replaced by it in torch's gradient; log p is clamped at -100 further out
HARMLESS = 1e-7  # share of the curvature that such outputs may falsify
LITTLE = 1e-4  # of a loss, to be left open by rounding without a word
FLOOR = math.exp(-100.0)  # log p is clamped there
NEAR = 1e-7  # of 0 or 1: no float32 number is between it and 1, and in float64 1 - p has nine digits
LOG = "the log of saturated probabilities (next to 0 or 1)"
SURE = "outputs that are all saturated (every largest probability within 1e-7 of 1)"
POINTS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # along a line, in steps
DEGREE = 3  # of the polynomial that honest products are along so short a line
ASIDE = {True: 1e-5, False: 1e-7}  # of the weights, relative, in smooth networks and in those with kinks
BEGINS = 1e-4  # from 0 or 1: from there on float32's rounding may be too large to tell float64's
BLURRED = 1e-5  # of a product, relative: from there on there is no number
# torch's nodes -> what they saved of the argument, and what is added to it before the log is taken
LOGS = {
    "Log": ("self", 0.0), "Log2": ("self", 0.0), "Log10": ("self", 0.0), "Log1P": ("self", 1.0),
    "Logit": ("self", 0.0), "SpecialEntr": ("self", 0.0), "Xlogy": ("other", 0.0), "SpecialXlog1Py": ("other", 1.0),
}  # fmt: skip
BLIND = 3e-8  # relative error of the curvature that rounding in float64 may cause; above it products are asymmetric


@dataclass
class Saturation:
    """How far the gradient of binary cross entropy is from the loss's derivative, in the passes watched.

    Torch's gradient is (p - y) / max(p (1 - p), 1e-12). Behind a sigmoid the derivative in the logit is p - y, so that
    a clamped output falsifies it by up to |p - y|, and its curvature p (1 - p) as well. Where p is y that is nothing.

    Attributes:
        wrong: the sum of both over clamped outputs. right, slope: the sums of p (1 - p) and of |p - y| over the others.
        outputs, clamped: how many there are. value, lost: the sums of the losses, and of what rounding of p leaves open
            in log(1 - p).
    """

    wrong: float = 0.0
    right: float = 0.0
    slope: float = 0.0
    outputs: int = 0
    clamped: int = 0
    value: float = 0.0
    lost: float = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at every call of ``F.binary_cross_entropy`` in the body, which ``nn.BCELoss`` makes too."""
        with _Watch(self):
            yield

    def refuse(self) -> None:
        """Refuse a loss whose gradient is not its derivative, or whose second derivative has no digits.

        The curvature p (1 - p) in the logit is what is left of two terms of the size of |p - y|.

        Raises:
            CheckError: more than a share :data:`HARMLESS` of the curvature is falsified, or :data:`BLIND` is exceeded.
        """
        if self.wrong > HARMLESS * (self.wrong + self.right):
            why = (
                f"{self.clamped} of {self.outputs} outputs are saturated: torch's BCELoss clamps p (1 - p) there at "
                "1e-12, so that its gradient is not the derivative of the loss"
            )
        elif torch.finfo(torch.float64).eps * self.slope > BLIND * self.right:
            why = (
                f"the outputs are saturated (p (1 - p) is {self.right / self.outputs:.0e} in the mean): behind a "
                "Sigmoid or Softmax the terms of BCELoss's second derivative cancel to fewer digits than float64 has"
            )
        else:
            return
        raise CheckError(
            why,
            where="BCELoss (F.binary_cross_entropy)",
            what_to_do="let the model end at the logits, without Sigmoid or Softmax, and use BCEWithLogitsLoss "
            "(CrossEntropyLoss after a Softmax)",
        )

    def note(self, loss: float) -> str:
        """What the rounding of probabilities leaves open in this loss; "" where that is little."""
        share = self.lost / self.value if self.value > 0.0 else 0.0
        if not share > LITTLE:
            return ""
        return (
            f"torch's BCELoss takes log(1 - p) of probabilities that are rounded near 1: the loss is good to "
            f"{share * abs(loss):.1e} only; BCEWithLogitsLoss has no such error"
        )

    def look(self, p: Tensor, y: Tensor, weight: Tensor | None = None) -> None:
        """Take the outputs of one call."""
        eps = torch.finfo(p.dtype).eps
        p = p.detach().double()
        curvature = p * (1.0 - p)
        size = torch.ones_like(p) if weight is None else weight.detach().double().abs().expand_as(p)
        clamped = (curvature < CLAMPED) & (size > 0.0)
        self.outputs += p.numel()
        self.clamped += int(clamped.sum())
        slope = size * (p - y.detach().double()).abs()
        self.wrong += float((slope + size * curvature)[clamped].sum())
        self.slope += float(slope[~clamped].sum())
        self.right += float((size * curvature)[~clamped].sum())
        left, no = (1.0 - p).clamp_min(FLOOR), size * (1.0 - y.detach().double())
        self.value += float((no * -left.log() - size * y.detach().double() * p.clamp_min(FLOOR).log()).sum())
        self.lost += float((no.abs() * eps / left)[~clamped].sum())


class _Watch(TorchFunctionMode):
    def __init__(self, found: Saturation) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "binary_cross_entropy":
            named = dict(zip(("input", "target", "weight"), args, strict=False)) | (kwargs or {})
            p, y, weight = (named.get(name) for name in ("input", "target", "weight"))
            if isinstance(p, Tensor) and isinstance(y, Tensor) and p.shape == y.shape and p.is_floating_point():
                self._found.look(p, y, weight if isinstance(weight, Tensor) else None)
        return func(*args, **(kwargs or {}))


def takes_log(nodes: Collection[str]) -> bool:
    """Whether one of these autograd nodes, by name, is that of a log."""
    return any(node.partition("Backward")[0] in LOGS for node in nodes)


def saturated(objective: Objective, samples: Sequence[Any], near: float = NEAR) -> str:
    """What may explain a failed check: :data:`LOG`, :data:`SURE`, or "" (in session).

    In log(1 - p) rounding leaves eps / (1 - p) of the digits, and as many of the curvature p (1 - p) of an output. The
    loss's derivatives are then those of the rounded function no more.
    """
    unsure: list[float] = []  # the largest probability of all other classes together
    for batch in samples:
        with torch.enable_grad():
            loss, _ = objective.terms(batch)
        for node in walk([loss.grad_fn]):
            kind = node.name().partition("Backward")[0]
            if kind in LOGS:
                saved, shift = LOGS[kind]
                if _near_the_ends(_saved(node, saved), shift, near):
                    return LOG
            elif kind in ("LogSoftmax", "BinaryCrossEntropyWithLogits"):
                unsure.append(_unsure(node, kind))
    return SURE if unsure and max(unsure) < NEAR else ""


def blurred(
    objective: Objective, blocks: Mapping[str, Block], full: Block, make_graph: GraphMaker, seed: int,
    counters: Counters, smooth: bool,
) -> dict[str, float]:  # fmt: skip
    """Block -> what rounding in float64 leaves uncertain of a product, relative to it (in session).

    Along a short line of weights an honest product is a cubic; the rest is rounding. Where the network has kinks, the
    median of second differences is: a kink on the line is in two of five. Looked at where float32 has few digits or
    none: its rounding, from which float64's is concluded elsewhere, tells nothing then.

    Args:
        objective: on a sample. blocks: those that do not count as zero. smooth: the network has no kinks. Steps are
            then longer: 1 - p is to change by more than its roundings.
    """
    requests = {
        key: Request(
            block, random_unit(block.numel, seed, f"blurred {key}", 0, beside(block, objective.parameters))[None]
        )
        for key, block in blocks.items()
    }

    def products() -> dict[str, Tensor]:
        data_pass = DataPass(objective, list(full.parameters), counters, make_graph=make_graph)
        try:
            return data_pass.run(requests)
        finally:
            data_pass.release()

    lines: dict[str, list[Tensor]] = {key: [] for key in blocks}
    for draw in (0, 1):
        direction, seen = scaled_direction(objective, full, seed, "blurred", draw), []
        for place in POINTS:
            with displaced(objective, direction, place * ASIDE[smooth]):
                seen.append(products())
        for key in blocks:
            lines[key].append(torch.cat([told[key] for told in seen]))
    return {key: _roughness(rows, smooth) for key, rows in lines.items()}


def _roughness(lines: Sequence[Tensor], smooth: bool) -> float:
    """The independent error of each row of two lines of products (points, n), over the size of a row."""
    size = max(1e-300, *(float(torch.linalg.vector_norm(rows, dim=1).max()) for rows in lines))
    if smooth:
        powers = np.linalg.qr(np.vander(POINTS, DEGREE + 1))[0]
        rest = torch.from_numpy(np.eye(len(POINTS)) - powers @ powers.T)
        left = [float(torch.linalg.vector_norm(rest.to(rows) @ rows)) for rows in lines]
        return float(min(left) / (len(POINTS) - DEGREE - 1) ** 0.5 / size)
    second = torch.cat([torch.linalg.vector_norm(rows.diff(n=2, dim=0), dim=1) for rows in lines])
    return float(second.median() / 6.0**0.5 / size)


def _saved(node: Any, name: str) -> Tensor | None:
    """A tensor that an autograd node keeps; None where it is gone, or was changed in place."""
    try:
        value = getattr(node, f"_saved_{name}")
    except RuntimeError:
        return None
    return value.detach().double() if isinstance(value, Tensor) and value.numel() else None


def _near_the_ends(x: Tensor | None, shift: float, near: float) -> bool:
    """Whether all numbers are between 0 and 1, and some next to one of them."""
    if x is None:
        return False
    x = x + shift
    inside = bool(((x >= 0.0) & (x <= 1.0 + NEAR)).all())
    return inside and bool(((x < near) | (x > 1.0 - near)).any())


def _unsure(node: Any, kind: str) -> float:
    """Of all items of a normalisation, the largest probability that is not that of the likeliest class."""
    if kind == "LogSoftmax":
        result, dim = _saved(node, "result"), node._saved_dim
        if result is None:
            return math.inf
        dim = dim if dim < result.ndim else dim - (1 << 64)  # torch keeps it as an unsigned number
        likeliest = result.argmax(dim=dim, keepdim=True)
        return float(result.exp().scatter(dim, likeliest, 0.0).sum(dim=dim).max())
    logits = _saved(node, "self")
    return math.inf if logits is None else float(torch.sigmoid(-logits.abs()).max())

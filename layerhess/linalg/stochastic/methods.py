"""From a method's name ("hutchinson", "xtrace", ...) to the estimator that implements it."""

from __future__ import annotations

import torch

from layerhess.linalg.eigen.process import Source
from layerhess.linalg.estimates import TraceEstimate
from layerhess.linalg.stochastic.deflation import Deflation
from layerhess.linalg.stochastic.diagonal import Diagonal, FlatDiagonal
from layerhess.linalg.stochastic.hutchinson import Adaptive, EstimatorProcess, Hutchinson, HutchPP
from layerhess.linalg.stochastic.trace import Trace
from layerhess.linalg.stochastic.xtrace import XDiag, XTrace


def trace_process(
    n: int,
    goal: Trace,
    signs: Source,
    directions: Source,
    *,
    deflation: Deflation | None = None,
    device: torch.device | None = None,
) -> EstimatorProcess[TraceEstimate]:
    """The estimator for ``goal.method``; "auto" uses the deflation if there is one, and is adaptive otherwise.

    Args:
        n: dimension. signs: number -> Rademacher (n,). directions: number -> random unit vector (n,).
        deflation: independent of both; methods named explicitly do not use it.
    """
    if goal.method == "xtrace":
        return XTrace(n, goal, directions, device=device)
    if goal.method == "hutch++":
        return HutchPP[TraceEstimate](n, goal, signs, device=device)
    if goal.method == "hutchinson":
        return Hutchinson[TraceEstimate](n, goal, signs, device=device)
    if deflation is not None and deflation.size:
        return Hutchinson[TraceEstimate](n, goal, signs, deflation=deflation)
    return Adaptive[TraceEstimate](n, goal, signs, device=device)


def diagonal_process(
    n: int, goal: Diagonal, signs: Source, *, deflation: Deflation | None = None, device: torch.device | None = None
) -> EstimatorProcess[FlatDiagonal]:
    """The estimator for ``goal.method``; arguments as in :func:`trace_process`."""
    if goal.method == "xdiag":
        return XDiag(n, goal, signs, device=device)
    if goal.method == "hutchinson":
        return Hutchinson[FlatDiagonal](n, goal, signs, device=device)
    if deflation is not None and deflation.size:
        return Hutchinson[FlatDiagonal](n, goal, signs, deflation=deflation)
    return Adaptive[FlatDiagonal](n, goal, signs, device=device)

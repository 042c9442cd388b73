"""Options of traces and diagonals: refused by name, or the process that was named."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from layerhess.errors import InputError
from layerhess.linalg.stochastic.deflation import Deflation
from layerhess.linalg.stochastic.diagonal import Diagonal
from layerhess.linalg.stochastic.hutchinson import Adaptive, Hutchinson, HutchPP
from layerhess.linalg.stochastic.methods import diagonal_process, trace_process
from layerhess.linalg.stochastic.options import check_common, is_number
from layerhess.linalg.stochastic.trace import Trace
from layerhess.linalg.stochastic.xtrace import XDiag, XTrace
from references.probe_stages import FLAT, N, signs, units

LEAST = {"auto": 2, "other": 4}


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ((0.0, None, 10, "auto"), "rel"),
        ((-1.0, None, 10, "auto"), "rel"),
        ((math.inf, None, 10, "auto"), "rel"),
        ((math.nan, None, 10, "auto"), "rel"),
        ((True, None, 10, "auto"), "rel"),
        (("1", None, 10, "auto"), "rel"),
        ((0.1, 1, 10, "auto"), "probes"),
        ((0.1, 3, 10, "other"), "probes"),
        ((0.1, None, 1, "auto"), "max_probes"),
        ((0.1, None, 3, "other"), "max_probes"),
        ((0.1, None, 10, "third"), "method"),
        ((0.1, None, 10, None), "method"),
        ((0.1, None, 10, []), "method"),
    ],
)
def test_common_options_are_refused_by_name(arguments: tuple[object, ...], where: str) -> None:
    with pytest.raises(InputError) as caught:
        check_common(*arguments, LEAST)  # type: ignore[arg-type]
    assert where in caught.value.where


def test_common_options_that_are_fine() -> None:
    check_common(0.1, 2, 2, "auto", LEAST)
    check_common(1, None, 4, "other", LEAST)
    check_common(0.0, None, 4, "other", LEAST, zero=True)
    assert is_number(1) and is_number(np.float32(1)) and not is_number(True) and not is_number("1")


@pytest.mark.parametrize(
    ("make", "goal", "kind"),
    [
        (trace_process, Trace(method="xtrace"), XTrace),
        (trace_process, Trace(method="hutch++"), HutchPP),
        (trace_process, Trace(method="hutchinson"), Hutchinson),
        (trace_process, Trace(), Adaptive),
        (diagonal_process, Diagonal(method="xdiag"), XDiag),
        (diagonal_process, Diagonal(method="hutchinson"), Hutchinson),
        (diagonal_process, Diagonal(), Adaptive),
    ],
)
def test_the_process_is_the_one_that_was_named(make: object, goal: Trace | Diagonal, kind: type) -> None:
    sources = (signs, units) if isinstance(goal, Trace) else (signs,)
    q = torch.from_numpy(np.eye(N)[:2])
    known = Deflation(q, q @ torch.from_numpy(FLAT))
    for deflation in (None, Deflation.none(N), known):
        process = make(N, goal, *sources, deflation=deflation)  # type: ignore[operator]
        deflated = deflation is known and goal.method == "auto"
        assert type(process) is (Hutchinson if deflated else kind)
        if isinstance(process, Hutchinson):
            assert process.samples.deflation.size == (2 if deflated else 0)  # type: ignore[attr-defined]

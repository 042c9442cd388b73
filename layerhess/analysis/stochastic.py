"""Trace, diagonal and density of a single operator, and coupling of its blocks, as functions."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from layerhess.analysis.operators import Operator
from layerhess.analysis.probing.room import finds_pairs, keeps_bases, room_of
from layerhess.analysis.probing.shared_probes import SharedProbes
from layerhess.analysis.single_operator import SingleOperator, check_operator
from layerhess.curvature.data_pass import FULL
from layerhess.curvature.not_finite import refuse_large_powers, refuse_not_finite
from layerhess.errors import InputError, checked_integer
from layerhess.linalg.estimates import CouplingEstimate, DensityEstimate, DiagonalEstimate, TraceEstimate
from layerhess.linalg.stochastic.coupling import Coupling
from layerhess.linalg.stochastic.density import Density, StochasticLanczos, with_rounding
from layerhess.linalg.stochastic.diagonal import Diagonal
from layerhess.linalg.stochastic.hutchinson import EstimatorProcess
from layerhess.linalg.stochastic.methods import diagonal_process, trace_process
from layerhess.linalg.stochastic.rounding import coarser
from layerhess.linalg.stochastic.trace import Trace, rounded
from layerhess.objective.blocks import make_block

E = TypeVar("E")
ARRAY = "diagonal"  # the name of the diagonal of an operator without parameters


def trace(
    op: Any,
    rel: float = 0.02,
    probes: int | None = None,
    method: str = "auto",
    seed: int = 0,
    *,
    absolute: float | None = None,
    max_probes: int = 1000,
) -> TraceEstimate:
    """The trace of a symmetric operator, from random probes, with its standard error and 95 % interval.

    Args:
        op: :class:`layerhess.Hessian` or another operator of a network, one of its blocks, a NumPy array, or anything
            with ``shape`` and ``matvec``; symmetric.
        rel: standard error wanted, over |trace|. absolute: standard error that is good enough in any case; by default
            ``rel`` times 10 % of the estimated sum of the eigenvalues' magnitudes. probes: spend exactly so many
            products instead. max_probes: products at most. seed: of the probes.
        method: "hutchinson" (Hutchinson 1990; one product a probe, error like 1/sqrt(m)); "hutch++" (Meyer et al.
            2021) and "xtrace" (Epperly, Tropp & Webber 2024), better where the spectrum decays; "auto": sixteen
            plain probes, whose products are deflated where more than 64 would be needed.

    Returns:
        :class:`layerhess.linalg.estimates.TraceEstimate`; exact where reading the whole diagonal needs no more
        products. ``converged`` is False where the products ran out. The interval includes the rounding of the products,
        which is the only error of an exact trace.

    Raises:
        InputError: bad options or operator; network's data that cannot be used.
        CheckError: the self-check of a network's operator failed.

    >>> import numpy as np, layerhess as lh
    >>> lh.trace(np.diag([1.0, 5.0, -7.0])).value
    -1.0
    """
    n = check_operator(op)
    goal = Trace(rel=rel, absolute=absolute, probes=probes, method=method, max_probes=max_probes)
    with ExitStack() as stack:
        single = SingleOperator(op, n, checked_integer(seed, "seed", 0), stack)
        found = _driven(trace_process(n, goal, single.signs, single.directions, device=single.device), single)
        found = rounded(found, single.relative_rounding())
    return replace(found, status=single.said(found.status))


def diagonal(
    op: Any,
    rel: float = 0.05,
    probes: int | None = None,
    method: str = "auto",
    seed: int = 0,
    *,
    max_probes: int = 1000,
) -> DiagonalEstimate:
    """The diagonal of a symmetric operator, from random probes, with a standard error for each entry.

    Args:
        op: as for :func:`trace`. rel: root of the sum of squared standard errors wanted, over the diagonal's Euclidean
            norm. probes: spend exactly so many products instead. max_probes: products at most. seed: of the probes.
        method: "hutchinson" (Bekas, Kokiopoulou & Saad 2007), "xdiag" (Epperly, Tropp & Webber 2024), or "auto":
            sixteen plain probes, whose products are deflated where more than 64 would be needed.

    Returns:
        :class:`layerhess.linalg.estimates.DiagonalEstimate`, parameter-shaped for a network's operator; for any other,
        under the single name "diagonal". Its status says whether ``rel`` was reached.

    Raises:
        InputError, CheckError: as for :func:`trace`.

    >>> import numpy as np, layerhess as lh
    >>> lh.diagonal(np.array([[1.0, 2.0], [2.0, 5.0]])).value["diagonal"].tolist()
    [1.0, 5.0]
    """
    n = check_operator(op)
    goal = Diagonal(rel=rel, probes=probes, method=method, max_probes=max_probes)
    with ExitStack() as stack:
        single = SingleOperator(op, n, checked_integer(seed, "seed", 0), stack)
        flat = _driven(diagonal_process(n, goal, single.signs, device=single.device), single)
        rounding = flat.rounding * coarser(single.relative_rounding())
    shaped = [{ARRAY: v} if single.spec is None else single.spec.split(v) for v in (flat.value, flat.standard_error)]
    status = single.said(flat.status)
    return DiagonalEstimate(
        shaped[0], shaped[1], flat.probes, flat.method, status, flat.converged, flat.required, rounding
    )


def density(
    op: Any,
    probes: int = 10,
    steps: int = 30,
    seed: int = 0,
    *,
    points: int = 512,
    bandwidth: float | None = None,
    axis: str = "linear",
    floor: float | None = None,
) -> DensityEstimate:
    """The spectral density of a symmetric operator by stochastic Lanczos quadrature, with a 95 % band over the probes.

    Args:
        op: as for :func:`trace`. probes: random vectors. steps: Lanczos steps for each, one product a step.
        seed: of the probes. points: of the uniform part of the grid. bandwidth: standard deviation of the Gaussian,
            in units of eigenvalues; by default three quarters of the distance between neighbouring nodes where the
            mass is, see :class:`layerhess.Density`. axis: "linear", or "log" for the density of log10 |eigenvalue| of
            either sign. floor: |eigenvalue| below which a logarithmic axis does not tell numbers apart.

    Returns:
        :class:`layerhess.linalg.estimates.DensityEstimate`. Its nodes are not eigenvalues: for those use
        :func:`layerhess.eigsh`. Functions of the spectrum (``.effective_dimension(alpha)``, ``.log_det(alpha)``,
        ``.count(above, below)``, ``.average(f)``) come from it, with errors.

    Raises:
        InputError, CheckError: as for :func:`trace`.

    >>> import numpy as np, layerhess as lh
    >>> from scipy.integrate import trapezoid
    >>> found = lh.density(np.diag([3.0, 3.0, 3.0]))
    >>> round(found.mean, 12), round(float(trapezoid(found.value, found.grid)), 3)
    (3.0, 1.0)
    """
    n = check_operator(op)
    options = Density(probes=probes, steps=steps, points=points, bandwidth=bandwidth, axis=axis, floor=floor)
    with ExitStack() as stack:
        single = SingleOperator(op, n, checked_integer(seed, "seed", 0), stack)
        pairs = bool(finds_pairs({"": n}, options))
        process = StochasticLanczos(n, options, single.directions, keep=keeps_bases(n, options), pairs=pairs)
        while not process.done:
            process.tell(_multiplied(single, process.ask()))
        relative = single.relative_rounding()
    found = with_rounding(process.result(), relative)
    return replace(found, status=single.said(found.status))


def coupling(op: Operator, probes: int = 8, seed: int = 0) -> CouplingEstimate:
    """The Frobenius norms of all blocks H_bc of a network's matrix, and its share off the block diagonal.

    Args:
        op: :class:`layerhess.Hessian` or another operator of a network; its ``blocks`` scheme says which blocks.
        probes: random vectors for each block, one product each; blocks with no more parameters than that are read
            exactly.
        seed: of the probes.

    Raises:
        InputError: ``op`` has no blocks, or bad options; CheckError: as for :func:`trace`.

    >>> import torch, layerhess as lh
    >>> model = torch.nn.Linear(1, 1).double()
    >>> data = (torch.tensor([[3.0]]).double(), torch.zeros(1, 1).double())
    >>> found = lh.coupling(lh.Hessian(lh.Objective(model, data, torch.nn.MSELoss())))
    >>> found.value.tolist()                                                   # 2 [[x x, x], [x, 1]]
    [[18.0, 6.0], [6.0, 2.0]]
    """
    if not isinstance(op, Operator):
        raise InputError(
            f"the operator is {type(op).__name__}, which has no blocks",
            where="op",
            what_to_do="pass lh.Hessian(objective, blocks) or another operator of a network",
        )
    with ExitStack() as stack:
        single = SingleOperator(op, op.shape[0], checked_integer(seed, "seed", 0), stack)
        data_pass = stack.enter_context(op.unchecked.session(single.memory))
        covered = {name for block in op.blocks.values() for name in block.parameters}
        probing = SharedProbes(
            blocks=op.blocks,
            full=make_block(FULL, {name: p for name, p in op.objective.parameters.items() if name in covered}),
            known=dict,
            trace=None,
            diagonal=None,
            coupling=Coupling(probes),
            whole=False,
            coupled=list(op.blocks),
            seed=seed,
            room=room_of(single.memory, beside=True).probes(op.shape[0]),
            parameters=op.objective.parameters,
        )
        while (asked := probing.requests()) or not probing.done:
            products = data_pass.run(asked)
            refuse_not_finite(data_pass, asked, products)
            refuse_large_powers(products)
            probing.tell(products)
    found = probing.coupling_of()
    assert found is not None
    return replace(found, status=single.said(found.status))


def _driven(process: EstimatorProcess[E], single: SingleOperator) -> E:
    while not process.done:
        process.tell(_multiplied(single, process.ask()))
    return process.estimate()


def _multiplied(single: SingleOperator, rows: Tensor) -> Tensor:
    products = single.apply(rows)
    refuse_large_powers({"": products})
    return products

"""The task of solving one operator: its solver, its random start, its products, and its certificate."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from layerhess.analysis.paths.exact import LARGEST_WHOLE, basis_limit, goes_dense, make_process, source, whole_rows
from layerhess.checks import SelfCheck
from layerhess.checks.matrix_rounding import MatrixRounding
from layerhess.checks.rounding import Candidate, Rounding, candidate
from layerhess.curvature.device import Budget, solver_device
from layerhess.linalg.bounds import SMALLEST_NORM, Certificate, certify, total_rounding
from layerhess.linalg.eigen.process import Candidates, Process, Wanted
from layerhess.linalg.eigen.zero_test import ZeroTest
from layerhess.objective.blocks import Block


@dataclass
class Task:
    """The solution of one operator's eigenproblem, from the first product to the certificate.

    Attributes:
        factors: its products come from factors. licence: why they may or may not. zeros: how many of its smallest
            eigenvalues are known to be 0. rounding: of any eigenvalue that is given. matrix_rounding: of its other
            numbers, where it was read whole. zero_bound: of a block that counts as zero. vanished: its random products
            are exactly 0. products: that the solver was told.
    """

    name: str
    block: Block
    process: Process
    zero_test: ZeroTest | None = None
    factors: bool = False
    licence: str = ""
    zeros: int = 0
    rounding: float | None = None
    matrix_rounding: MatrixRounding | None = None
    rounding_source: str = "not measured"
    zero_bound: float | None = None
    vanished: bool = False
    candidates: Candidates | None = None
    certificate: Certificate | None = None
    done: bool = False
    products: int = 0

    def ask(self) -> torch.Tensor:
        """The vectors it needs next."""
        return self.zero_test.ask() if self.zero_test is not None else self.process.ask()

    def tell(self, products: torch.Tensor) -> None:
        """The products of the vectors asked for."""
        if self.zero_test is not None:
            self.zero_test.tell(products)
        else:
            self.process.tell(products)
            self.products += len(products)

    @property
    def told(self) -> bool:
        """The solver has something to judge."""
        return self.products > 0

    @property
    def spent(self) -> bool:
        """It would take more products than reading the whole matrix does: a search in short memory may see no end."""
        return self.told and self.products + len(self.process.ask()) > self.block.numel

    def candidate(self) -> Candidate | None:
        """Where the rounding of its products is to be measured; None before there are pairs."""
        return candidate(self.block, self.process)

    @property
    def half_measured(self) -> bool:
        """Rounding was measured at pairs, and now every number of the matrix is known."""
        known = self.matrix_rounding is not None or self.rounding_source != "measured"
        return not known and self.process.candidates().spectrum is not None

    def settle(self, measured: Rounding, eps: float, length: float) -> None:
        """Take the rounding that was measured."""
        matrix, self.rounding_source = measured.matrix, measured.source
        self.matrix_rounding = None if matrix is None else matrix.at_least(measured.norm)
        self.rounding = max(measured.worst, SMALLEST_NORM)
        self.process.rounding = total_rounding(self.rounding, eps, self.process.candidates().norm, length)

    def judge(self, tol: float, eps: float, length: float, exclude: float | None) -> None:
        """Make the certificate of the present candidates; rounding that was not measured has its least value."""
        self.candidates = self.process.candidates()
        rounding = total_rounding(self.rounding or 0.0, eps, self.candidates.norm, length)
        self.certificate = certify(self.candidates, tol=tol, rounding=rounding, exclude=exclude)

    def distance(self, tol: float) -> float:
        """The worst pair's error over the tolerated one (1 = converged)."""
        relative = getattr(self.process, "relative_residual", math.nan)
        return relative / tol if self.told else math.inf


def make_tasks(
    operators: Mapping[str, Block],
    checked: SelfCheck,
    wanted: Wanted,
    *,
    tol: float,
    seed: int,
    method: str,
    device: torch.device,
    memory: Budget,
    exclude: float | None = None,
    copies: bool = True,
    ready: Mapping[str, Process] | None = None,
    kept: bool = True,
    dear: bool = False,
    definite: Collection[str] = (),
    rank: int | None = None,
) -> list[Task]:
    """Make a task for every operator that passed the self-check.

    Args:
        operators: name -> block, the full model included if it is asked for. wanted: which eigenpairs; with none, small
            blocks are read whole nevertheless, since nothing is cheaper. ready: solvers that exist already.
        kept: graphs or factors are kept between passes; if not, each pass should do as much as possible. dear: exact
            products cost so much that only their number counts, see :func:`goes_dense`. definite: operators that are
            known to be positive semidefinite, of at most the given rank.

    Raises:
        InputError: the solvers' vectors do not fit in memory.
    """
    ready = ready or {}
    operators = {name: block for name, block in operators.items() if name not in checked.failed}
    if not wanted.total:
        wanted = Wanted(top=1)
        operators = {n: block for n, block in operators.items() if n in ready or goes_dense(block.numel, wanted)}
    open_ones = sum(block.numel for name, block in operators.items() if name not in ready)
    limit = basis_limit(open_ones, wanted, memory)
    whole = whole_rows(sum(block.numel <= LARGEST_WHOLE for block in operators.values()), memory)
    place = solver_device(device)
    tasks = []
    for name, block in operators.items():
        process = ready.get(name) or make_process(
            block,
            wanted,
            tol=tol,
            seed=seed,
            method=method,
            device=device,
            basis_limit=block.numel if block.numel <= whole else limit,
            exclude=exclude,
            copies=copies,
            definite=name in definite,
            dear=dear and name not in checked.licence.blocks,
            streamed=not kept and name in checked.licence.blocks and name not in checked.zero_suspects,
        )
        test = ZeroTest(block.numel, source(block, seed, place), place) if name in checked.zero_suspects else None
        licence = checked.licence
        zeros = max(0, block.numel - rank) if rank is not None and name in definite else 0
        tasks.append(Task(name, block, process, test, name in licence.blocks, licence.sentence(name), zeros))
    return tasks

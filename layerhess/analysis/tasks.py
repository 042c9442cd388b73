"""The task of solving one operator: its solver, its random start, its products, and its certificate."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from layerhess.analysis.paths.exact import goes_dense, make_process, reads_whole, search_width, source
from layerhess.analysis.waves import LARGEST_SHARE, Waves, graphs_may_keep, waves
from layerhess.checks import SelfCheck
from layerhess.checks.candidate import Candidate, candidate
from layerhess.checks.matrix_rounding import MatrixRounding, Rounding
from layerhess.curvature.device import Budget, beside, places
from layerhess.errors import InputError
from layerhess.linalg.bounds import SMALLEST_NORM, Certificate, certify, total_rounding
from layerhess.linalg.eigen.gram import Gram
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.process import Candidates, Process, Wanted
from layerhess.linalg.eigen.zero_test import ZeroTest
from layerhess.linalg.long_rows import Space
from layerhess.objective.blocks import Block
from layerhess.objective.objective import Objective


@dataclass
class Task:
    """The solution of one operator's eigenproblem, from the first product to the certificate.

    Its solver is made when its wave begins, and dropped when that ends; the pairs stay.

    Attributes:
        make: the solver, of a matrix that is known to be semidefinite or not. whole: LAPACK does it, or a Gram matrix.
        wave: number of the wave in which it is solved. ranks: that share the rows of its basis. kept: its basis may
            stay for estimates. suspect: makes the test whether the operator is zero, where that is in doubt; zero_test:
            that test, while it runs.
        definite: the matrix is known to be positive semidefinite. factors: its products come from factors. licence: why
            they may or may not. zeros: how many of its smallest eigenvalues are known to be 0. rounding: of any
            eigenvalue that is given. matrix_rounding: of its other numbers, where it was read whole. zero_bound: of a
            block that counts as zero. vanished: its random products are exactly 0. products: that the solver was told.
    """

    name: str
    block: Block
    make: Callable[[bool], Process]
    whole: bool = False
    wave: int = 0
    ranks: int = 1
    kept: bool = True
    suspect: Callable[[], ZeroTest] | None = None
    zero_test: ZeroTest | None = None
    definite: bool = False
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
    _process: Process | None = None
    _left: tuple[str, bool] | None = None  # path of the solver that was dropped; was it spent

    @property
    def process(self) -> Process:
        """The solver."""
        if self._process is None:
            assert self._left is None, "the solver was dropped"
            self._process = self.make(self.definite)
        return self._process

    @property
    def path(self) -> str:
        """The way to the pairs."""
        return self.process.path if self._left is None else self._left[0]

    @property
    def released(self) -> bool:
        """The solver was dropped."""
        return self._left is not None

    def begin(self) -> None:
        """Its wave begins."""
        self.zero_test = None if self.suspect is None or self.told else self.suspect()

    def release(self) -> None:
        """Drop the solver's vectors, unless they may stay; what was read whole stays, since it is small."""
        if not (self.kept or self.whole or self.released):
            self._left = (self.path, self.spent) if self.told else ("", False)
            self._process = self.zero_test = None

    def refute(self) -> None:
        """It is not semidefinite after all."""
        self.zeros, self.definite = 0, False
        if isinstance(self._process, Lanczos):
            self._process.said.definite = False

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
        if self._left is not None:
            return self._left[1]
        return self.told and self.products + len(self.process.ask()) > self.block.numel

    def candidate(self) -> Candidate | None:
        """Where the rounding of its products is to be measured; None before there are pairs."""
        return candidate(self.block, self.process)

    @property
    def half_measured(self) -> bool:
        """Rounding was measured at pairs, and now every number of the matrix is known."""
        known = self.matrix_rounding is not None or self.rounding_source not in ("measured", "perturbed")
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
    objective: Objective,
    memory: Budget,
    exclude: float | None = None,
    copies: bool = True,
    ready: Mapping[str, Process] | None = None,
    kept: bool = True,
    ranks: int = 1,
    dear: bool = False,
    definite: Collection[str] = (),
    rank: int | None = None,
) -> list[Task]:
    """Make a task for every operator that passed the self-check.

    Args:
        operators: name -> block, the full model included if it is asked for. wanted: which eigenpairs; with none, small
            blocks are read whole nevertheless, since nothing is cheaper. objective: its device, its dtype and
            its processes count. ready: solvers that exist
            already.
        kept: graphs or factors are kept between passes; if not, each pass should do as much as possible. ranks: that
            may share the rows of a basis, see :func:`layerhess.analysis.waves.waves`. dear: exact
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
    licence = checked.licence
    open_ones = {name: block for name, block in operators.items() if name not in ready}
    plan = planned(open_ones, checked, wanted, memory, objective, exclude, copies, kept, ranks)
    streamed = _streamed(operators, checked, kept)
    tasks = []
    for name, block in operators.items():
        expensive, place = dear and name not in licence.blocks, beside(block, objective.parameters)
        options = {
            "tol": tol, "seed": seed, "method": method, "device": place, "exclude": exclude,
            "copies": copies, "dear": expensive, "streamed": name in streamed,
        }  # fmt: skip
        tasks.append(
            Task(
                name,
                block,
                functools.partial(_process, ready.get(name), block, wanted, plan, objective, options),
                isinstance(ready.get(name), Gram) or reads_whole(block.numel, wanted, method, exclude, expensive),
                0 if name in ready else plan.of(name),
                1 if name in ready else plan.held[name].ranks,
                plan.roomy,
                functools.partial(_zero_test, block, seed, place) if name in checked.zero_suspects else None,
                definite=name in definite,
                factors=name in licence.blocks,
                licence=licence.sentence(name),
                zeros=max(0, block.numel - rank) if rank is not None and name in definite else 0,
            )
        )
    return tasks


def planned(
    operators: Mapping[str, Block], checked: SelfCheck, wanted: Wanted, memory: Budget, objective: Objective,
    exclude: float | None, copies: bool, kept: bool, ranks: int,
) -> Waves:  # fmt: skip
    """The waves of these operators; arguments as for :func:`make_tasks`."""
    sizes = {name: block.numel for name, block in operators.items() if name not in checked.failed}
    if not wanted.total:
        wanted = Wanted(top=1)
        sizes = {name: n for name, n in sizes.items() if goes_dense(n, wanted)}
    width = search_width(wanted, bool(_streamed(operators, checked, kept)), copies)
    return waves(sizes, wanted, memory, objective.dtype, exclude=exclude, width=width, ranks=ranks)


def kept_graphs(
    graphs: Budget, operators: Mapping[str, Block], checked: SelfCheck, wanted: Wanted, memory: Budget,
    objective: Objective, exclude: float | None, copies: bool, kept: bool, ranks: int,
) -> float:  # fmt: skip
    """Bytes of graphs that may be kept between passes beside these solvers; arguments as for :func:`make_tasks`."""
    try:
        nbytes = planned(operators, checked, wanted, memory, objective, exclude, copies, kept, ranks).nbytes
    except InputError:  # a Gram matrix may do for the operator that does not fit
        nbytes = int(LARGEST_SHARE * memory.room)
    return graphs_may_keep(graphs, memory, nbytes)


def _streamed(operators: Mapping[str, Block], checked: SelfCheck, kept: bool) -> set[str]:
    """Operators of which a pass costs more than the products of a few vectors in it."""
    return {n for n in operators if not kept and n in checked.licence.blocks and n not in checked.zero_suspects}


def _process(
    ready: Process | None, block: Block, wanted: Wanted, plan: Waves, objective: Objective,
    options: Mapping[str, Any], definite: bool,
) -> Process:  # fmt: skip
    if ready is not None:
        return ready
    held, n, group = plan.held[block.name], block.numel, objective.group
    space = Space(n, places=places(block, objective.parameters))
    if held.ranks > 1 and group.size > 1:  # a trial of several processes' analysis, in one, holds rows whole
        space = replace(space, here=group.here(n), told=group.gathered, joined=functools.partial(group.joined, n=n))
    return make_process(
        block, wanted, basis_limit=held.rows, dtype=held.dtype, definite=definite, space=space, **options
    )


def _zero_test(block: Block, seed: int, place: torch.device) -> ZeroTest:
    return ZeroTest(block.numel, source(block, seed, place), place)

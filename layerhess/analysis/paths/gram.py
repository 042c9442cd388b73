"""The Gram path: complete spectra of blocks from few rows R (A = R' D R), or from a small matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layerhess.analysis.paths.cost import gram_bytes, is_cheaper
from layerhess.analysis.paths.exact import make_process, source
from layerhess.analysis.paths.factors import refuse_without_licence
from layerhess.analysis.waves import waves
from layerhess.checks import SelfCheck
from layerhess.curvature.batch_graph import BatchGraph
from layerhess.curvature.data_pass import FULL, DataPass
from layerhess.curvature.device import Budget, beside, is_out_of_memory, places
from layerhess.curvature.factors.mixed_graph import MixedGraph
from layerhess.curvature.factors.work import Work
from layerhess.curvature.totals import Totals
from layerhess.errors import InputError
from layerhess.linalg.eigen.dense import Completed, Dense
from layerhess.linalg.eigen.gram import Gram
from layerhess.linalg.eigen.process import Candidates, Process, Wanted
from layerhess.linalg.eigen.row_sum import Decomposition, RowSum
from layerhess.linalg.long_rows import Space
from layerhess.objective.blocks import Block

GRAM_SHARE = 0.25  # of the free memory, or of the budget, for the rows and matrices of one pass
SLACK = 1.25  # by which the rows may exceed the number expected from the sample
TOO_MANY = "its rows do not fit into memory"
COMPLETED = 256  # parameters up to which the rest is read whole where rows are not the operator's


@dataclass
class _Room:
    """How many bytes the blocks of one pass may hold, and how many each is expected to need."""

    room: int
    bytes: dict[str, int]

    def groups(self) -> Iterator[list[str]]:
        """Groups of blocks that fit together, in their order."""
        group: list[str] = []
        for name, size in self.bytes.items():
            if group and sum(self.bytes[other] for other in group) + size > self.room:
                yield group
                group = []
            group.append(name)
        if group:
            yield group


class GramOrSearch(Gram):
    """A :class:`Gram` whose rows may turn out not to be the operator's: then another solver goes on.

    Args:
        otherwise: makes that solver.
    """

    def __init__(self, found: Decomposition, wanted: Wanted, exact: bool, otherwise: Callable[[], Process]) -> None:
        self._search: Process | None = None
        self._begun = False  # the search has been told something
        self._otherwise = otherwise
        super().__init__(found, wanted, exact)

    def ask(self) -> Tensor:
        """The pairs and the random vector, or what the other solver asks for."""
        return super().ask() if self._search is None else self._search.ask()

    def tell(self, products: Tensor) -> None:
        """Their products with the operator."""
        if self._search is not None:
            self._search.tell(products)
            self._begun = True
            return
        told = super().ask()
        super().tell(products)
        if not self.complete:
            self._search = self._otherwise()
            if isinstance(self._search, Dense) or self.n <= COMPLETED:
                self._search = Completed(self.n, self.wanted, told, products, told.device)
                self._begun = self._search.proposes
            self._search.rounding, self.path = self._rounding, self._search.path

    @property
    def rounding(self) -> float:
        """Of the products, once it was measured."""
        return self._rounding

    @rounding.setter
    def rounding(self, value: float) -> None:
        self._rounding = value
        if self._search is not None:
            self._search.rounding = value

    @property
    def relative_residual(self) -> float:
        """Of the other solver; without it there is none to follow."""
        if self._search is None or not self._begun:
            raise AttributeError("relative_residual")
        return float(self._search.relative_residual)  # type: ignore[attr-defined]

    @property
    def proposes(self) -> bool:
        """True once the pairs were multiplied, or the other solver has found them."""
        return super().proposes if self._search is None else self._begun and self._search.proposes

    def candidates(self) -> Candidates:
        """The wanted pairs."""
        if self._search is None or not self._begun:
            return super().candidates()
        found = self._search.candidates()
        return replace(found, steps=found.steps + self._steps)


def gram_processes(
    data_pass: DataPass,
    operators: Mapping[str, Block],
    checked: SelfCheck,
    wanted: Wanted,
    *,
    path: str,
    method: str,
    tol: float,
    seed: int,
    memory: Budget,
    examples: int,
    kept: bool = True,
    exclude: float | None = None,
    copies: bool = True,
) -> dict[str, Gram]:
    """Solvers for the blocks that use this path, with spectra computed already; takes one pass over the data or a few.

    Args:
        data_pass: over all data. operators: name -> block, the full model among them. checked: with the licence.
        wanted: eigenpairs. path: "auto" chooses by cost and memory; "gram" takes every block, and the full model if it
            has a licence and fits; with any other, nothing is done. examples: of all the data, 0 where unknown.
        kept: factors are kept for later passes; if not, "auto" does not spend a pass on rows.
        exclude, copies: for the search that goes on where rows are not the operator's.

    Raises:
        InputError: with path="gram", a block has no rows, or they do not fit in memory.
    """
    forced = path == "gram"
    if path not in ("auto", "gram") or method != "lanczos" or not (forced or kept):
        return {}
    if not wanted.total:
        if not forced:
            return {}
        wanted = Wanted(top=1)
    chosen = _chosen(data_pass, operators, checked, wanted, forced, tol, memory, examples)
    made: dict[str, Gram] = {}
    for group in chosen.groups():
        rows: dict[str, RowSum] = {}
        failed: dict[str, str] = {}
        settled, place = data_pass.journal.settled, f"memory ran out with the rows of {group}"
        try:
            with data_pass.counters.during("solve"):
                if settled(place, False):  # before the run was resumed
                    raise MemoryError
                rows, failed = _rows(data_pass, {name: operators[name] for name in group}, int(SLACK * chosen.room))
                place = f"{place} decomposed"
                if settled(place, False):
                    raise MemoryError
                for name in list(rows):
                    block, parameters = operators[name], data_pass.objective.parameters
                    held = waves({name: block.numel}, wanted, memory, data_pass.objective.dtype).held[name]
                    otherwise = functools.partial(
                        make_process, block, wanted, tol=tol, seed=seed, method=method, exclude=exclude, copies=copies,
                        device=beside(block, parameters), space=Space(block.numel, places=places(block, parameters)),
                        basis_limit=held.rows, dtype=held.dtype,
                    )  # fmt: skip
                    own = rows.pop(name)
                    decompose = functools.partial(_decomposed, own, block, wanted, data_pass, seed, otherwise)
                    found = data_pass.objective.group.tried(decompose)  # each rank in its own memory
                    del own, decompose
                    if found is None:
                        failed[name] = "its rows are NaN or infinite, though the loss is finite"
                    else:
                        made[name] = found
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            settled(place, True)
            rows.clear()  # the next group needs the room
            failed |= {name: TOO_MANY for name in group if name not in made and name not in failed}
        for name, why in failed.items():
            if forced and name != FULL:
                raise _refusal(name, why)
    return made


def _rows(data_pass: DataPass, blocks: Mapping[str, Block], room: int) -> tuple[dict[str, RowSum], dict[str, str]]:
    """Block -> its rows over all data; block -> why there are none."""
    places = {name: beside(block, data_pass.objective.parameters) for name, block in blocks.items()}

    def share(graph: BatchGraph, totals: Totals) -> int:
        before = totals.row_bytes
        for name, block in blocks.items():
            if name in totals.dropped:
                continue
            rows = graph.rows(block.parameters) if isinstance(graph, MixedGraph) else None
            if rows is None:
                totals.drop(name, "a batch of the data has no factors, or too many, for it")
            elif not totals.add_rows(name, block.numel, rows, room, places[name]):
                totals.drop(name, TOO_MANY)
        return totals.row_bytes - before

    totals = data_pass.collect(share, about=f"rows of {list(blocks)}")
    # Those that a journal told lie with the model's first parameter.
    rows = {name: RowSum.of(own.state(), places[name]) for name, own in totals.rows().items()}
    return rows, {name: totals.dropped[name] for name in blocks if name in totals.dropped}


def refuse_unlicensed(checked: SelfCheck, names: list[str], path: str) -> None:
    """Refuse, before any work, blocks that path="factors" or path="gram" cannot handle.

    Raises:
        InputError: naming them, with the reason.
    """
    if path not in ("factors", "gram"):
        return
    refuse_without_licence(checked.licence, names)
    without = [name for name in names if name in checked.licence.works and not checked.licence.works[name].has_rows]
    if path == "gram" and without:
        raise _refusal(", ".join(without[:4]), "its layer cannot tell the examples' shares apart, or they are too many")


def _chosen(
    data_pass: DataPass,
    operators: Mapping[str, Block],
    checked: SelfCheck,
    wanted: Wanted,
    forced: bool,
    tol: float,
    memory: Budget,
    examples: int,
) -> _Room:
    licence = checked.licence
    room = int(GRAM_SHARE * memory.room)
    itemsize = data_pass.objective.dtype.itemsize
    taken = {}
    for name, block in operators.items():
        if name not in licence.works or name in checked.failed:
            continue
        work = whole(licence.works[name], licence.examples, examples)
        # Where the number of examples is unknown, the matrix itself is the upper limit.
        size = gram_bytes(block.numel, work.rows if examples else block.numel, wanted, itemsize)
        if forced and name != FULL and size > room:
            raise _refusal(
                name,
                f"its matrix does not fit into memory ({block.numel:,} parameters, {work.rows:,} rows: "
                f"{size / 2**20:,.1f} MiB, room for {room / 2**20:,.1f} MiB)",
            )
        suitable = examples > 0 and name not in checked.zero_suspects
        if size <= room and (forced or (suitable and is_cheaper(block.numel, work, wanted, itemsize, tol))):
            taken[name] = size
    return _Room(room, taken)


def whole(work: Work, sample: int, examples: int) -> Work:
    """The work for all data, from that for a sample."""
    return work.times(examples / sample) if sample and examples else work


def _decomposed(
    rows: RowSum, block: Block, wanted: Wanted, data_pass: DataPass, seed: int, otherwise: Callable[[], Process]
) -> Gram | None:
    """The solver for a block whose spectrum is known; None where a row is NaN or infinite."""
    own = Wanted(top=block.numel) if wanted.total >= block.numel else wanted
    draw = source(block, seed, beside(block, data_pass.objective.parameters))
    found = rows.decompose(own, data_pass.denominator, draw)
    exact = data_pass.objective.dtype == torch.float64
    return None if found is None else GramOrSearch(found, own, exact, otherwise)


def _refusal(name: str, why: str) -> InputError:
    return InputError(
        f"not every block can have a complete spectrum: {why}",
        where=name,
        what_to_do="use path='auto', which computes the wanted eigenvalues of such blocks by Lanczos; where memory is "
        "short, give more memory, fewer examples or smaller blocks",
    )

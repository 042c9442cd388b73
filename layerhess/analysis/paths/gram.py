"""The Gram path: complete spectra of the blocks whose rows are few, or whose matrix is small."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from layerhess.analysis.paths.cost import gram_bytes, is_cheaper
from layerhess.analysis.paths.exact import source
from layerhess.analysis.paths.factors import refuse_without_licence
from layerhess.checks import SelfCheck
from layerhess.curvature.batch_graph import BatchGraph
from layerhess.curvature.data_pass import FULL, DataPass
from layerhess.curvature.device import Budget, is_out_of_memory
from layerhess.curvature.factors.mixed_graph import MixedGraph
from layerhess.curvature.factors.work import Work
from layerhess.errors import InputError
from layerhess.linalg.eigen.gram import Gram
from layerhess.linalg.eigen.process import Wanted
from layerhess.linalg.eigen.row_sum import RowSum
from layerhess.linalg.random_vectors import solver_device
from layerhess.objective.blocks import Block

GRAM_SHARE = 0.25  # of the free memory, or of the budget, for the rows and matrices of one pass
SLACK = 1.25  # by which the rows may be more than the sample lets expect


@dataclass
class _Room:
    """How much the blocks of one pass may hold, and what each is expected to."""

    room: int
    bytes: dict[str, int]

    def groups(self) -> Iterator[list[str]]:
        """Blocks that fit together, in their order."""
        group: list[str] = []
        for name, size in self.bytes.items():
            if group and sum(self.bytes[other] for other in group) + size > self.room:
                yield group
                group = []
            group.append(name)
        if group:
            yield group


@dataclass
class _Collector:
    """Takes the rows of some blocks from every batch's graph.

    Attributes:
        sums: block -> what there is of it. failed: block -> why there is nothing.
    """

    blocks: Mapping[str, Block]
    room: int
    device: torch.device
    sums: dict[str, RowSum] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def begin(self) -> None:
        """Nothing is known yet."""
        self.failed = {}
        self.sums = {name: RowSum(block.numel, self.device) for name, block in self.blocks.items()}

    def look(self, graph: BatchGraph) -> int:
        """Add the batch's rows."""
        before = self._nbytes
        for name, total in list(self.sums.items()):
            made = graph.rows(self.blocks[name].parameters) if isinstance(graph, MixedGraph) else None
            if made is None:
                self._give_up(name, "a batch of the data has no factors, or too many, for it")
                continue
            for rows, signs in made:
                total.add(rows, signs)
                if self._nbytes > self.room:
                    self._give_up(name, "its rows do not fit into memory")
                    break
        return self._nbytes - before

    def _give_up(self, name: str, why: str) -> None:
        del self.sums[name]
        self.failed[name] = why

    @property
    def _nbytes(self) -> int:
        return sum(total.nbytes for total in self.sums.values())


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
) -> dict[str, Gram]:
    """Solvers for the blocks that take this way, their spectra already made; one pass over the data, or a few.

    Args:
        data_pass: over all data. operators: name -> block, the full model among them. checked: with the licence.
        wanted: eigenpairs. path: "auto" chooses by cost and memory, "gram" takes every block, and the full model where
            it has a licence and fits; otherwise nothing is done. examples: of all the data, 0 where unknown.
        kept: what rows are made from is held for later passes; where it is not, "auto" has no pass to spare for them.

    Raises:
        InputError: under path="gram", a block has no rows, or they do not fit the memory.
    """
    forced = path == "gram"
    if path not in ("auto", "gram") or method != "lanczos" or not (forced or kept):
        return {}
    if not wanted.total:
        if not forced:
            return {}
        wanted = Wanted(top=1)
    chosen = _chosen(data_pass, operators, checked, wanted, forced, tol, memory, examples)
    device = solver_device(data_pass.objective.device)
    made: dict[str, Gram] = {}
    for group in chosen.groups():
        collector = _Collector({name: operators[name] for name in group}, int(SLACK * chosen.room), device)
        try:
            with data_pass.counters.during("solve"):
                data_pass.run({}, collector)
                made |= _solved(collector, wanted, data_pass, seed)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            collector.failed |= dict.fromkeys(collector.sums, "its rows do not fit into memory")
        for name, why in collector.failed.items():
            if forced and name != FULL:
                raise _refusal(name, why)
    return made


def refuse_unlicensed(checked: SelfCheck, names: list[str], path: str) -> None:
    """Before any work: blocks that path="factors" or path="gram" cannot take.

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
    room = int(GRAM_SHARE * memory.free(solver_device(data_pass.objective.device)))
    itemsize = data_pass.objective.dtype.itemsize
    taken = {}
    for name, block in operators.items():
        if name not in licence.works or name in checked.failed:
            continue
        work = whole(licence.works[name], licence.examples, examples)
        # Where the number of examples is not known, the matrix itself is the most there can be.
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
    """The work of a sample as that of all the data."""
    return work.times(examples / sample) if sample and examples else work


def _solved(collector: _Collector, wanted: Wanted, data_pass: DataPass, seed: int) -> dict[str, Gram]:
    made = {}
    for name in list(collector.sums):
        block = collector.blocks[name]
        own = Wanted(top=block.numel) if wanted.total >= block.numel else wanted
        draw = source(block, seed, collector.device)
        found = collector.sums.pop(name).decompose(own, data_pass.denominator, draw)
        if found is None:
            collector.failed[name] = "its rows are NaN or infinite, though the loss is finite"
        else:
            made[name] = Gram(found, own, exact=data_pass.objective.dtype == torch.float64)
    return made


def _refusal(name: str, why: str) -> InputError:
    return InputError(
        f"not every block can have a complete spectrum: {why}",
        where=name,
        what_to_do="use path='auto', which computes the wanted eigenvalues of such blocks by Lanczos; where memory is "
        "short, give more memory, fewer examples or smaller blocks",
    )

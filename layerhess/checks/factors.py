"""Decides which blocks may use fast products by factors: by the graph's structure, and by comparison on a sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from layerhess.checks.survey import Survey
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL, DataPass, Request
from layerhess.curvature.device import beside, is_out_of_memory, solver_device
from layerhess.curvature.factors.factor_graph import FactorGraph
from layerhess.curvature.factors.mixed_graph import try_factors
from layerhess.curvature.factors.work import Work, sum_of_works
from layerhess.curvature.matrices import GAUSS_NEWTON, HESSIAN, CurvatureMatrix
from layerhess.curvature.totals import Totals, add_up
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective.blocks import Block, in_groups, is_large
from layerhess.objective.group import Group
from layerhess.objective.objective import Objective
from layerhess.results.record import Check

# Relative difference up to which two products count as equal; a larger one costs time, never a right answer.
SAME = {torch.float64: 1e-10, torch.float32: 5e-5}
DOUBTFUL = 1e-2  # in float32, up to here it may be rounding of a loss that is almost zero: compared again in float64


@dataclass
class Licence:
    """What was found on the sample.

    Attributes:
        blocks: key -> parameter names of the blocks that may use factors. agreement: their largest relative
            difference from exact products. examples: of the sample, 0 where unknown.
        reasons: key -> why not, for the others that were checked.
        norms: key -> that of the exact product with the random unit vector it was compared at.
        seconds: that one product by factors of each took on the sample.
        works: key -> what products of the blocks that may use factors are made of, on the whole sample.
    """

    blocks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    agreement: float = 0.0
    examples: int = 0
    reasons: dict[str, str] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    works: dict[str, Work] = field(default_factory=dict)

    def agreed(self, group: Group) -> Licence:
        """Rank 0's, on every rank."""
        return group.agreed(self)

    def checks(self, sample: str) -> list[Check]:
        """A line for the result, if there is anything to say; ``sample`` describes the sample."""
        if not self.blocks:
            return []
        detail = f"products by factors agree with exact ones to {self.agreement:.1e} in {len(self.blocks)} blocks"
        return [Check("factors", True, f"{detail}, on {sample}")]

    def sentence(self, key: str) -> str:
        """Why a block's products are made as they are."""
        if key in self.blocks:
            seen = f"{self.examples} examples" if self.examples else "a sample"
            return f"checked on {seen}"
        return self.reasons.get(key, "")


def licence(
    objective: Objective,
    surveyed: Survey,
    blocks: Mapping[str, Block],
    curvature: CurvatureMatrix,
    coarsest: torch.dtype,
    data_pass: DataPass,
    seed: int,
    counters: Counters,
    make_copy: Callable[[], Objective | None] = lambda: None,
) -> Licence:
    """Compare factor products with exact ones for every block that the graph's structure admits (in session).

    Two conditions: for the Hessian every operation behind the block is one of a list that is piecewise linear (an
    unknown one forbids it; see :func:`layerhess.curvature.factors.linearity.not_linear`), so that its block is
    Gauss-Newton's; and on the sample a product by factors is the exact one. That is a check on some examples, not a
    proof: for each further batch only the structure is checked. Cost: one exact product a block on the sample.

    Args:
        surveyed: with the sample. blocks: to check (the full model only for Gauss-Newton).
        coarsest: dtype in the objective's graph. data_pass: exact products on the samples.
        make_copy: the same loss on the samples in float64, which decides where float32 leaves a doubt.
    """
    found = Licence(examples=surveyed.sample_size)
    if curvature.name not in (HESSIAN.name, GAUSS_NEWTON.name):
        found.reasons = dict.fromkeys(blocks, f"there are no factors for the {curvature.title}")
        return found
    if coarsest not in SAME:
        found.reasons = dict.fromkeys(
            blocks, f"{str(coarsest).removeprefix('torch.')} is too coarse to compare products"
        )
        return found
    if solver_device(objective.device) != objective.device:
        found.reasons = dict.fromkeys(
            blocks, f"{objective.device.type} has no float64, which the factors are made with"
        )
        return found
    if norms := objective.tied_norms:
        found.reasons = dict.fromkeys(blocks, f"{norms.what}, which ties the examples of a batch together")
        return found
    # The full Hessian is no J' S J: the output is not linear in all layers together.
    alike = curvature.name == GAUSS_NEWTON.name
    names = {key: block.parameters for key, block in blocks.items() if alike or key != FULL}
    graphs: list[FactorGraph] = []
    for sample in surveyed.samples:
        graph, reason = try_factors(objective, sample, names, counters)
        if graph is None:
            found.reasons = dict.fromkeys(names, f"no factors can be made: {reason}")
            return found
        graphs.append(graph)
    candidates = []
    for key in names:
        if not all(key in graph.factored for graph in graphs):
            found.reasons[key] = "it has no factors: its layer is of another kind, or the output has too many numbers"
        elif curvature.name == HESSIAN.name and not all(key in graph.linear for graph in graphs):
            found.reasons[key] = "the network is not piecewise linear in it"
        else:
            candidates.append(key)
    for group in in_groups({key: blocks[key] for key in candidates}, objective.numel // 2):
        _compare(found, objective, graphs, group, data_pass, coarsest, curvature, seed, counters, make_copy)
    return found


def _compare(
    found: Licence,
    objective: Objective,
    graphs: list[FactorGraph],
    blocks: Mapping[str, Block],
    data_pass: DataPass,
    coarsest: torch.dtype,
    curvature: CurvatureMatrix,
    seed: int,
    counters: Counters,
    make_copy: Callable[[], Objective | None],
) -> None:
    """Give these blocks a licence, or the reason why they have none."""
    vectors = {
        key: random_unit(block.numel, seed, f"licence {key}", 0, beside(block, objective.parameters))[None]
        for key, block in blocks.items()
    }
    exact = data_pass.run({key: Request(block, vectors[key]) for key, block in blocks.items()})
    together = sum(block.numel for block in blocks.values())
    if is_large(together) and together > objective.numel // 2:
        data_pass.release()
    start = counters.clock()
    try:
        ours = _by_factors(objective, graphs, blocks, vectors, data_pass.denominator)
    except RuntimeError as error:  # the next sample overwrote what the factors need
        if is_out_of_memory(error):
            raise
        found.reasons |= dict.fromkeys(blocks, f"no product by factors can be made: {str(error).splitlines()[0]}")
        return
    found.seconds += counters.clock() - start
    offs = {key: _off(ours.pop(key), exact[key]) for key in blocks}
    norms = {key: float(torch.linalg.vector_norm(rows)) for key, rows in exact.items()}
    del exact
    doubtful = {key: block for key, block in blocks.items() if SAME[coarsest] < offs[key] <= DOUBTFUL}
    cleared: dict[str, float] = {}
    if doubtful and coarsest != torch.float64 and (copied := make_copy()) is not None:
        cleared = _in_float64(copied, doubtful, vectors, curvature, counters)
    for key, block in blocks.items():
        off = cleared.get(key, offs[key])
        if not (key in cleared or off <= SAME[coarsest]):
            found.reasons[key] = f"a product by factors is off by {off:.1e} from the exact one"
            continue
        found.blocks[key] = block.parameters
        found.works[key] = sum_of_works([graph.work(block.parameters) for graph in graphs])
        found.norms[key] = norms[key]
        found.agreement = max(found.agreement, off)


def _in_float64(
    copied: Objective, blocks: Mapping[str, Block], vectors: Mapping[str, torch.Tensor], curvature: CurvatureMatrix,
    counters: Counters,
) -> dict[str, float]:  # fmt: skip
    """The blocks whose products by factors equal the exact ones on a float64 copy -> relative difference."""
    names = {key: block.parameters for key, block in blocks.items()}
    graphs = [try_factors(copied, sample, names, counters)[0] for sample in copied.data]
    known = [graph for graph in graphs if graph is not None]
    usable = [
        key for key in names
        if len(known) == len(graphs)
        and all(key in (graph.linear if curvature.name == HESSIAN.name else graph.factored) for graph in known)
    ]  # fmt: skip
    if not usable:
        return {}
    needed = list(dict.fromkeys(name for key in usable for name in names[key]))
    data_pass = DataPass(copied, needed, counters, make_graph=curvature.make_graph)
    try:
        exact = data_pass.run({key: Request(blocks[key], vectors[key]) for key in usable})
        ours = _by_factors(copied, known, blocks, {key: vectors[key] for key in usable}, data_pass.denominator)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return {}
    finally:
        data_pass.release()
    offs = {key: _off(ours[key], exact[key]) for key in usable}
    return {key: off for key, off in offs.items() if off <= SAME[torch.float64]}


def _off(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative difference; 0 where both vanish. Overwrites ``ours``."""
    off, size = float(torch.linalg.vector_norm(ours.sub_(exact))), float(torch.linalg.vector_norm(exact))
    return off / size if size else (0.0 if off == 0.0 else math.inf)


def _by_factors(
    objective: Objective,
    graphs: list[FactorGraph],
    blocks: Mapping[str, Block],
    vectors: Mapping[str, torch.Tensor],
    denominator: float,
) -> dict[str, torch.Tensor]:
    def share(graph: FactorGraph, totals: Totals) -> None:
        for key, rows in vectors.items():
            parts = {name: part.to(objective.parameters[name]) for name, part in blocks[key].split(rows[0]).items()}
            found = graph.product(blocks[key].parameters, parts)
            totals.open(key, *rows.shape, device=rows.device)
            start = 0
            for part, shape in zip(found, blocks[key].shapes, strict=True):
                if part is not None:
                    totals.add(key, part.reshape(-1).to(rows), columns=slice(start, start + shape.numel()))
                start += shape.numel()

    totals = add_up(graphs, share)
    return {key: totals.total(key).div_(denominator) for key in vectors}

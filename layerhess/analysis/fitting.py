"""Refuses what cannot fit into memory before anything is computed, and names the scheme of blocks that would."""

from __future__ import annotations

import math
from collections.abc import Mapping

from layerhess.analysis.estimate_options import EstimateOptions
from layerhess.analysis.paths.exact import goes_dense, reads_whole
from layerhess.analysis.probing.room import refuse_estimates, room_of
from layerhess.analysis.waves import size, waves
from layerhess.curvature.data_pass import FULL
from layerhess.curvature.device import Budget
from layerhess.errors import InputError
from layerhess.linalg.eigen.process import Wanted
from layerhess.objective.blocks import Block, partition
from layerhess.objective.objective import Objective

SCHEMES = ("depth:1", "module", "parameter")  # from large blocks to small ones
CHECKED = 4 * 8  # bytes a parameter that the self-check holds: four float64 vectors of the whole model
NO_ESTIMATES = EstimateOptions()


def refuse_unless_it_fits(
    objective: Objective, operators: Mapping[str, Block], wanted: Wanted, memory: Budget, path: str, method: str,
    estimates: EstimateOptions = NO_ESTIMATES, exclude: float | None = None, ranks: int = 1,
) -> None:  # fmt: skip
    """Whether the self-check, each operator's solver and the estimates fit, by the number of parameters alone.

    Solvers are not asked of Gram matrices, whose size depends on the data, and of power iteration, which needs a few
    vectors.

    Raises:
        InputError: naming the scheme of blocks that would fit, where there is one.
    """
    if memory.limit is not None and CHECKED * objective.numel > memory.room:
        raise InputError(
            f"the vectors of the self-check do not fit into memory: four of the model's {objective.numel:,} parameters "
            f"take {size(CHECKED * objective.numel)}, and {size(memory.room)} are allowed",
            where="memory",
            what_to_do=f"give memory='{math.ceil(CHECKED * objective.numel / 2**20)}MiB' at least, or freeze "
            "parameters that are not to be analysed",
        )

    def refusal(sizes: Mapping[str, int]) -> InputError | None:
        try:
            if path != "gram" and method != "power" and wanted.total:
                large = {name: n for name, n in sizes.items() if not goes_dense(n, wanted)}
                waves(large, wanted, memory, objective.dtype, ranks=ranks)
            read = {n for n, s in sizes.items() if path == "gram" or reads_whole(s, searched, method, exclude, False)}
            sampled = {name: n for name, n in sizes.items() if name not in read}
            numel = sizes.get(FULL, min(objective.numel, sum(sizes.values())))
            refuse_estimates(estimates, sampled, numel, room_of(memory, beside=False))
        except InputError as found:
            return found
        return None

    searched = wanted if wanted.total else Wanted(top=1)
    sizes = {name: block.numel for name, block in operators.items()}
    if (found := refusal(sizes)) is None:
        return
    whole = {FULL: sizes.pop(FULL)} if FULL in sizes else {}
    without = ", full=False" if whole else ""
    choices = {"full=False": sizes} if whole else {}
    for scheme in SCHEMES:
        blocks = partition(objective.model, objective.parameters, objective.frozen, scheme).blocks
        if len(blocks) > 1:
            own = {block.name: block.numel for block in blocks}
            choices |= {f"blocks={scheme!r}": own | whole, f"blocks={scheme!r}{without}": own}
    fits = next((asked for asked, n in choices.items() if refusal(n) is None), None)
    if fits is None:
        raise found
    memory_asked = found.what_to_do.split(", or ")[0]
    raise InputError(found.message, where=found.where, what_to_do=f"use {fits}, which fits, or {memory_asked}")

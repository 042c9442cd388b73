"""Refuses what cannot fit into memory before anything is computed, and names the scheme of blocks that would."""

from __future__ import annotations

from collections.abc import Mapping

from layerhess.analysis.paths.exact import goes_dense
from layerhess.analysis.waves import waves
from layerhess.curvature.data_pass import FULL
from layerhess.curvature.device import Budget
from layerhess.errors import InputError
from layerhess.linalg.eigen.process import Wanted
from layerhess.objective.blocks import Block, partition
from layerhess.objective.objective import Objective

SCHEMES = ("depth:1", "module", "parameter")  # from large blocks to small ones


def refuse_unless_it_fits(
    objective: Objective, operators: Mapping[str, Block], wanted: Wanted, memory: Budget, path: str, method: str
) -> None:
    """Whether each operator's solver fits, by the number of parameters alone.

    Not asked of Gram matrices, whose size depends on the data, and of power iteration, which needs a few vectors.

    Raises:
        InputError: naming the scheme of blocks that would fit, where there is one.
    """
    if path == "gram" or method == "power" or not wanted.total:
        return
    sizes = {name: block.numel for name, block in operators.items() if not goes_dense(block.numel, wanted)}
    refusal = _refusal(objective, sizes, wanted, memory)
    if refusal is None:
        return
    whole = {FULL: sizes.pop(FULL)} if FULL in sizes else {}
    without = ", full=False" if whole else ""
    choices = {"full=False": sizes} if whole else {}
    for scheme in SCHEMES:
        blocks = partition(objective.model, objective.parameters, objective.frozen, scheme).blocks
        if len(blocks) > 1:
            own = {block.name: block.numel for block in blocks}
            choices |= {f"blocks={scheme!r}": own | whole, f"blocks={scheme!r}{without}": own}
    fits = next((asked for asked, n in choices.items() if _refusal(objective, n, wanted, memory) is None), None)
    if fits is None:
        raise refusal
    memory_asked = refusal.what_to_do.split(", or ")[0]
    raise InputError(refusal.message, where=refusal.where, what_to_do=f"use {fits}, which fits, or {memory_asked}")


def _refusal(objective: Objective, sizes: Mapping[str, int], wanted: Wanted, memory: Budget) -> InputError | None:
    try:
        waves(sizes, wanted, memory, objective.dtype)
    except InputError as refusal:
        return refusal
    return None

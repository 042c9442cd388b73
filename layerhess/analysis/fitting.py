"""Refuses what cannot fit into memory before anything is computed, and names the scheme of blocks that would."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
    searched = wanted if wanted.total else Wanted(top=1)
    sizes = {name: block.numel for name, block in operators.items()}

    def refusal(sizes: Mapping[str, int], memory: Budget = memory) -> InputError | None:
        if memory.limit is not None and CHECKED * objective.numel > memory.room:
            return _of_the_self_check(objective.numel, memory)
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

    if (found := refusal(sizes)) is None:
        return
    enough = _least(lambda bytes_: refusal(sizes, Budget(bytes_, bytes_, memory.asked)) is None, memory.room)
    whole = {FULL: sizes.pop(FULL)} if FULL in sizes else {}
    without = ", full=False" if whole else ""
    choices = {"full=False": sizes} if whole else {}
    for scheme in SCHEMES:
        blocks = partition(objective.model, objective.parameters, objective.frozen, scheme).blocks
        if len(blocks) > 1:
            own = {block.name: block.numel for block in blocks}
            choices |= {f"blocks={scheme!r}": own | whole, f"blocks={scheme!r}{without}": own}
    fits = next((asked for asked, n in choices.items() if refusal(n) is None), None)
    more = f"give memory='{enough}MiB'"
    if fits is not None:
        what_to_do = f"use {fits}, which fits, or {more}"
    else:
        what_to_do = ", or ".join([more, *found.what_to_do.split(", or ")[1:]])
    raise InputError(found.message, where=found.where, what_to_do=what_to_do)


def _of_the_self_check(numel: int, memory: Budget) -> InputError:
    return InputError(
        f"the vectors of the self-check do not fit into memory: four of the model's {numel:,} parameters take "
        f"{size(CHECKED * numel)}, and {size(memory.room)} are allowed",
        where="memory",
        what_to_do="give more memory, or freeze parameters that are not to be analysed",
    )


def _least(fits: Callable[[int], bool], too_little: int) -> int:
    """The least memory that fits, in MiB and to a tenth: what is kept whole grows with it, so no formula gives it.

    >>> _least(lambda nbytes: nbytes >= 300 << 20, 1 << 20) in range(300, 331)
    True
    """
    low = max(1, too_little >> 20)
    high = 2 * low
    while not fits(high << 20):
        low, high = high, 2 * high
    while high - low > max(1, low // 10):
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle << 20) else (middle, high)
    return high

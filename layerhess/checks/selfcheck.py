"""The self-check before every analysis: randomness, additivity, second derivatives, symmetry, finite differences."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from layerhess import batches
from layerhess.blocks import Block
from layerhess.bounds import zero_level
from layerhess.checks.differences import AGREEMENT, finite_differences
from layerhess.checks.suspects import suspect_of
from layerhess.checks.symmetry import Symmetry, symmetry
from layerhess.errors import CheckError, InputError
from layerhess.ledger import Ledger
from layerhess.objective import Objective
from layerhess.products.reverse import BatchGraph
from layerhess.results import Check
from layerhess.survey import Survey, additive_tolerance, halves
from layerhess.sweep import FULL, Sweep, is_out_of_memory
from layerhess.trace import ONCE_DIFFERENTIABLE, RANDOM, Trace, trace

# Asymmetry above the first is looked at again in float64; above the second it is refused where that is impossible.
SUSPICIOUS = {torch.float64: 1e-7, torch.float32: 1e-4}
WRONG = {torch.float64: 1e-7, torch.float32: 2e-3}
WRONG_IN_FLOAT64 = 1e-7


@dataclass
class SelfCheck:
    """What the checks found.

    Attributes:
        checks: one line each, for the result. failed: block name -> its failed check ("(full)" included).
        zero_suspects: blocks whose products vanish on the sample. trace: the watched forward pass.
        notes: sentences for the reader. graph_seconds, block_seconds: on the sample, the time to make a graph, and to
            make one product of every block and the full model with it.
    """

    trace: Trace
    checks: list[Check] = field(default_factory=list)
    failed: dict[str, Check] = field(default_factory=dict)
    zero_suspects: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    graph_seconds: float = 0.0
    block_seconds: float = 0.0


def self_check(
    objective: Objective, surveyed: Survey, blocks: Mapping[str, Block], full: Block, seed: int, ledger: Ledger
) -> SelfCheck:
    """Run all checks on the survey's sample (in session).

    Args:
        blocks: those to analyse, under their names; the full model under "(full)" if it is asked for.

    Raises:
        InputError: active randomness; no second derivative; a loss that depends on no parameter; batches that do not
            add up although they are to be split.
    """
    sample = surveyed.sample
    found = SelfCheck(trace(objective, sample))
    if found.trace.attention:
        found.notes.append(
            "scaled-dot-product attention runs under torch's MATH kernels: the fused ones have no second derivative"
        )
    _determinism(objective, sample, found)
    _additivity(objective, surveyed, found)
    sweep = _second_derivative(objective, surveyed.samples, full, found, ledger)
    with ExitStack() as stack:
        copied = functools.cache(lambda: _float64_copy(objective, surveyed.samples, stack))  # made only if a check needs it
        _symmetry(objective, sweep, copied, blocks, full, seed, found, ledger)
        _differences(objective, copied, blocks, full, seed, found, ledger)
    sweep.release()
    return found


def _determinism(objective: Objective, sample: Any, found: SelfCheck) -> None:
    # The watched pass drew its random numbers from another state than this one.
    with torch.no_grad():
        again = float(objective.terms(sample)[0])
    difference = abs(again - found.trace.value) / max(abs(again), abs(found.trace.value), 1e-300)
    if difference > additive_tolerance(objective.dtype) / 10.0 and again != found.trace.value:
        culprits = objective.random_modules or found.trace.modules_calling(RANDOM)
        raise InputError(
            f"the loss is random: the same batch gave {found.trace.value:.9g}, then {again:.9g}",
            where="active randomness in " + (", ".join(culprits[:5]) or "the model or the loss"),
            what_to_do="use mode='eval' (--eval), which switches dropout off"
            if objective.mode != "eval"
            else "remove the random numbers from the model's forward or the loss",
        )
    found.checks.append(Check("determinism", True, f"the loss of a sample repeats to {difference:.1e}"))


def _additivity(objective: Objective, surveyed: Survey, found: SelfCheck) -> None:
    parts = halves(surveyed.sample)
    if objective.batch_dependent_norm:
        found.checks.append(Check("additivity", True, "not applicable: BatchNorm in train mode ties a batch together"))
        return
    if parts is None:
        found.checks.append(Check("additivity", True, "not applicable: the sample cannot be split"))
        return
    try:
        with torch.no_grad():
            whole, count = objective.terms(surveyed.sample)
            pairs = [objective.terms(part) for part in parts]
    except Exception:
        found.checks.append(Check("additivity", True, "not applicable: a part of a batch cannot be evaluated"))
        return
    summed = float(sum(float(value) for value, _ in pairs))
    counts = sum(part_count for _, part_count in pairs)
    scale = max(abs(float(whole)), abs(summed), 1e-300)
    difference = abs(float(whole) - summed) / scale
    passed = difference <= additive_tolerance(objective.dtype) and abs(counts - count) <= 1e-6 * max(counts, count)
    detail = f"a sample's loss equals the sum over its two parts to {difference:.1e}"
    if not passed and objective.batch_size is not None:
        raise InputError(
            "batch_size was given, but the loss of a batch is not the sum over its parts "
            f"({float(whole):.6g} against {summed:.6g})",
            where=f"batch_size={objective.batch_size}",
            what_to_do="drop batch_size: here the split into batches is part of the loss",
        )
    if not passed:
        if batches.is_shuffling(objective.data):
            raise InputError(
                "the loss of a batch is not the sum over its examples, and the loader shuffles: every pass has "
                "another loss",
                where="data",
                what_to_do="use shuffle=False, or lh.batch_loss(fn) with the right (loss_sum, count)",
            )
        detail = "the loss of a batch is not the sum over its examples: the split into batches is part of the loss"
        found.notes.append(detail)
    found.checks.append(Check("additivity", passed, detail))


def _second_derivative(
    objective: Objective, samples: list[Any], full: Block, found: SelfCheck, ledger: Ledger
) -> Sweep:
    """A sweep over the sample whose graph is known to be differentiable twice."""
    try:
        start = time.perf_counter()
        graph = BatchGraph(objective, samples[0], full.parameters, ledger)
        found.graph_seconds = (time.perf_counter() - start) * len(samples)
        if all(gradient is None for gradient in graph.gradient.values()):
            raise InputError(
                "the loss does not depend on any trainable parameter",
                where="loss",
                what_to_do="check for detach(), no_grad or .item() between the parameters and the loss",
            )
        graph.product(full.parameters, {n: torch.ones_like(p) for n, p in objective.parameters.items()})
    except InputError:
        raise
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        refusal = _no_second_derivative(error, found.trace)
        if refusal is None:
            raise
        raise refusal from error
    return Sweep(objective.narrowed(samples), list(full.parameters), ledger, keep=0.2)


def _no_second_derivative(error: RuntimeError, seen: Trace) -> InputError | None:
    text = str(error)
    if "heckpoint" in text:
        return InputError(
            "reentrant activation checkpointing has no second derivative",
            where=", ".join(seen.without_grad[:4]) or "torch.utils.checkpoint",
            what_to_do="use checkpoint(..., use_reentrant=False), or switch checkpointing off",
        )
    signs = ("derivative for", "not implemented", "once_differentiable", "does not require grad", "double backward")
    if not any(sign in text for sign in signs):
        return None
    culprits = seen.modules_calling(ONCE_DIFFERENTIABLE)
    return InputError(
        f"the model has no second derivative: torch says '{text.splitlines()[0]}'",
        where=", ".join(culprits[:4]) or "an operation or custom autograd function of the model",
        what_to_do="replace that operation by one that torch can differentiate twice (for example embedding and a sum "
        "for EmbeddingBag, plain tensor operations for cdist)",
    )


def _float64_copy(objective: Objective, samples: list[Any], stack: ExitStack) -> Objective | None:
    """The same loss in float64 on the samples, or None where no copy can be made or evaluated."""
    try:
        copied = objective.cast(torch.float64, samples)
        stack.enter_context(copied.session())
        with torch.no_grad():
            copied.terms(copied.data[0])
    except Exception:  # deepcopy and user code in another dtype can raise anything
        return None
    return copied


def _symmetry(
    objective: Objective,
    sweep: Sweep,
    make_copy: Callable[[], Objective | None],
    blocks: Mapping[str, Block],
    full: Block,
    seed: int,
    found: SelfCheck,
    ledger: Ledger,
) -> None:
    coarsest = found.trace.coarsest
    start = time.perf_counter()
    measured = symmetry(sweep, {**blocks, FULL: full}, seed)
    found.block_seconds = (time.perf_counter() - start) / 3.0
    floor = zero_level(torch.finfo(coarsest).eps, measured[FULL].norm)
    found.zero_suspects = {key for key in blocks if key != FULL and measured[key].norm <= floor}
    live = {key: m for key, m in measured.items() if key in blocks and key not in found.zero_suspects}
    suspicious = SUSPICIOUS.get(coarsest, 1.0)
    doubtful = {key for key, m in live.items() if not m.asymmetry <= suspicious}
    limit = WRONG.get(coarsest, 0.3)
    copied = make_copy() if doubtful and objective.dtype != torch.float64 else None
    if copied is not None:
        again = Sweep(copied, list(full.parameters), ledger, keep=0.2)
        confirmed = symmetry(again, {key: blocks[key] for key in doubtful}, seed)
        again.release()
        worst = {key: confirmed[key] for key in doubtful}
        # A copy whose graph passes through float32 (a loss that casts) cannot do better than float32.
        limit = WRONG_IN_FLOAT64 if trace(copied, copied.data[0]).coarsest == torch.float64 else limit
    else:
        worst = {key: live[key] for key in doubtful}
    for key, m in worst.items():
        if not m.asymmetry <= limit:
            found.failed[key] = _failure("symmetry", objective, blocks[key], f"asymmetric by {m.asymmetry:.1e}")
    passed = [m.asymmetry for key, m in live.items() if key not in found.failed]
    if passed:
        found.checks.append(
            Check("symmetry", True, f"|<u, A v> - <v, A u>| is at most {max(passed):.1e} of ||A u|| in {len(passed)} "
                  f"operators, on {_size(sweep)}")
        )  # fmt: skip
    found.checks.extend(check for check in found.failed.values())


def _differences(
    objective: Objective,
    make_copy: Callable[[], Objective | None],
    blocks: Mapping[str, Block],
    full: Block,
    seed: int,
    found: SelfCheck,
    ledger: Ledger,
) -> None:
    if not found.trace.smooth:
        found.checks.append(Check("finite differences", True, "not applicable: the network has kinks (ReLU-like)"))
        return
    copied = make_copy()
    if copied is None:
        found.checks.append(Check("finite differences", True, "not applicable: no float64 copy of the model"))
        return
    judged, step = finite_differences(copied, copied.data[0], blocks, full, seed, ledger)
    judged = {key: value for key, value in judged.items() if key not in found.zero_suspects}
    for key, disagreement in judged.items():
        if disagreement > AGREEMENT and key not in found.failed:
            found.failed[key] = _failure(
                "finite differences", objective, blocks[key], f"off by {disagreement:.1e} from finite differences"
            )
            found.checks.append(found.failed[key])
    good = [value for key, value in judged.items() if key not in found.failed]
    if good:
        found.checks.append(
            Check("finite differences", True, f"products agree with differences of gradients to {max(*good, step):.1e} "
                  f"in {len(good)} operators (float64 copy)")
        )  # fmt: skip


def _failure(name: str, objective: Objective, block: Block, figure: str) -> Check:
    module, _ = suspect_of(objective, block)
    return Check(name, False, f"the product of block {block.name!r} is {figure}; suspect module: {module}",
                 block=block.name, module=module)  # fmt: skip


def refuse_failed(objective: Objective, blocks: Mapping[str, Block], failed: Mapping[str, Check]) -> CheckError:
    """The refusal of a whole analysis, naming blocks and modules."""
    names = [name for name in failed if name != FULL] or list(failed)
    checks = [failed[name] for name in names]
    modules = list(dict.fromkeys(check.module for check in checks))
    _, what_to_do = suspect_of(objective, blocks[names[0]])
    return CheckError(
        "a self-check failed, so the eigenvalues would be wrong: " + "; ".join(c.detail for c in checks[:3]),
        where=f"block {', '.join(names[:4])}; module {'; '.join(modules[:4])}",
        what_to_do=what_to_do,
    )


def _size(sweep: Sweep) -> str:
    sizes = [batches.leading_size(batch) for batch in sweep.objective.data]
    return f"{sum(size or 0 for size in sizes)} examples" if all(sizes) else "a sample of the batches"


__all__ = ["SelfCheck", "Symmetry", "refuse_failed", "self_check"]

"""The self-check before every analysis: randomness, additivity, second derivatives, symmetry, finite differences."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from layerhess.checks.derivatives import SUSPICIOUS, WRONG, WRONG_IN_FLOAT64, Derivatives
from layerhess.checks.factors import licence
from layerhess.checks.findings import SelfCheck
from layerhess.checks.float64_copy import Float64Copy
from layerhess.checks.forward_trace import trace
from layerhess.checks.known_again import APART, APART_AT_ALL, summaries
from layerhess.checks.loss import check_additivity, check_determinism, refuse_wrong_derivatives
from layerhess.checks.output import check_cut, check_items, notes_on_convexity
from layerhess.checks.randomness import refuse_state_that_follows
from layerhess.checks.saturation import BEGINS, BLURRED, LOG, blurred, saturated, takes_log
from layerhess.checks.second_derivative import ExaminedGraphs, check_second_derivative
from layerhess.checks.step_size import choose_steps
from layerhess.checks.survey import Survey, too_large
from layerhess.checks.suspects import STEP, failure
from layerhess.checks.symmetry import Symmetry, asymmetric_tensors, noise_level, start, symmetry
from layerhess.checks.whole_weights import refuse_other_function
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL, DataPass, Request
from layerhess.curvature.device import Budget, beside
from layerhess.curvature.difference_graph import Differences
from layerhess.curvature.matrices import GAUSS_NEWTON, HESSIAN, CurvatureMatrix
from layerhess.curvature.not_finite import first_not_finite
from layerhess.curvature.smaller_pieces import in_pieces
from layerhess.linalg.bounds import zero_level
from layerhess.objective import batches
from layerhess.objective.blocks import Block, is_large, make_block
from layerhess.objective.objective import HALF, Objective
from layerhess.objective.snapshot import version_of
from layerhess.results.record import Check

DIFFERENT = 0.05  # asymmetry of differences of a gradient, which was checked before: only their step shows
SHARE = 0.2  # of the free memory, for the sample's graphs


def self_check(
    objective: Objective, surveyed: Survey, blocks: Mapping[str, Block], full: Block, seed: int, counters: Counters,
    curvature: CurvatureMatrix, memory: Budget, factors: bool = False, known_again: Sequence[Sequence[Any]] = (),
) -> SelfCheck:  # fmt: skip
    """Run all checks on the survey's sample (in session). Where memory runs out, again on smaller pieces of it.

    Args:
        blocks: those to analyse, under their names; the full model under "(full)" if it is asked for.
        curvature: the matrix whose products are checked. memory: the budget. factors: look for blocks that may use
            factors; one exact product of theirs is then compared instead of three for symmetry. known_again: two parts
            of a few examples, to set :attr:`layerhess.checks.findings.SelfCheck.known_again` from.

    Raises:
        InputError: active randomness; no second derivative; a loss that depends on no parameter; batches that do not
            add up although they are to be split; out of memory with a sample that must not be cut, or with one example.
    """
    sizes = [batches.leading_size(sample) or 0 for sample in surveyed.samples]
    largest = 0 if objective.tied_norms else max(sizes)

    def attempt(cut: Objective) -> SelfCheck:
        part = surveyed if cut is objective else surveyed.cut(objective, cut.batch_size)
        found = _self_check(cut, part, blocks, full, seed, counters, curvature, memory, factors, known_again)
        found.pieces = None if cut is objective else cut.batch_size
        return found.agreed(objective.group)

    return in_pieces(objective, attempt, lambda: largest, lambda: too_large(objective))[0]


def _self_check(
    objective: Objective, surveyed: Survey, blocks: Mapping[str, Block], full: Block, seed: int, counters: Counters,
    curvature: CurvatureMatrix, memory: Budget, factors: bool, known_again: Sequence[Sequence[Any]],
) -> SelfCheck:  # fmt: skip
    sample = surveyed.sample
    found = SelfCheck(trace(objective, sample))
    found.trace.saturated = functools.cache(lambda: saturated(objective, surveyed.samples))
    if found.trace.attention:
        found.notes.append(
            "scaled-dot-product attention runs under torch's MATH kernels: the fused ones have no second derivative"
        )
    if found.trace.coarsest in HALF and objective.dtype not in HALF:
        found.concerns.append(_half_precision_inside(found.trace.coarsest))
    found.checks.append(check_determinism(objective, sample, found.trace))
    found.concerns.extend(filter(None, [refuse_other_function(objective, surveyed.samples, found.trace.coarsest)]))
    refuse_wrong_derivatives(objective, sample, found.trace)
    additivity = check_additivity(objective, surveyed.samples, surveyed.several)
    found.checks.append(additivity.check)
    found.uncut = additivity.uncut
    found.concerns.extend([additivity.note] if additivity.note else [])
    keep = SHARE * memory.room
    make = curvature.make_graph
    examined = ExaminedGraphs(curvature.make_graph, found.trace)
    narrowed, names = objective.narrowed(surveyed.samples), list(full.parameters)
    data_pass = DataPass(narrowed, names, counters, keep=keep, make_graph=examined)
    vector = start(full, FULL, seed, device=beside(full, objective.parameters))
    first = check_second_derivative(data_pass, full, vector, sample, found.trace, curvature.make_graph)
    del vector
    if isinstance(make, Differences):
        data_pass.release()
        _choose_steps(objective.narrowed(surveyed.samples), blocks, full, make, seed, found, counters)
    full_norm = float(torch.linalg.vector_norm(first))
    found.seen, found.apart = (data_pass.loss_sum, full_norm), APART.get(found.trace.coarsest, APART_AT_ALL)
    # Graphs of J hold two vectors each, so that large models have no room for what is not needed yet.
    spare = curvature.name != HESSIAN.name and is_large(objective.numel)
    known = {} if spare else {FULL: first if objective.dtype == torch.float64 else first.float()}
    del first
    if spare:
        data_pass.release()
    found.graph_seconds, found.block_seconds = examined.seconds, data_pass.seconds - examined.seconds
    versions = _versions(objective)
    with Float64Copy(objective, surveyed.samples) as copied:
        if found.trace.stateful and (copy := copied()) is not None:
            refuse_state_that_follows(copy, copy.data[0], found.trace.stateful)
        derivatives = Derivatives(objective, surveyed, copied, blocks, full, seed, found, counters)
        derivatives.check_gradient()
        copied.let_go()
        if curvature.name == GAUSS_NEWTON.name:
            found.checks.append(check_cut(objective, surveyed.samples, surveyed.places, names, counters))
            found.concerns.extend(notes_on_convexity(objective, surveyed.samples, seed, counters))
        elif curvature.name != HESSIAN.name:
            found.checks.append(
                check_items(objective, surveyed.samples, curvature.make_graph, found.trace.coarsest, counters)
            )
        if spare or _versions(objective) != versions:  # autograd refuses graphs of weights that were moved meanwhile
            data_pass.release()
        if factors and not isinstance(make, Differences):
            found.licence = licence(
                objective, surveyed, blocks, curvature, found.trace.coarsest, data_pass, seed, counters, copied
            )
            found.checks.extend(found.licence.checks(_size(data_pass)))
        if curvature.name != HESSIAN.name:
            if spare:
                data_pass.release()
            derivatives.check_jacobian(curvature)
            if objective.stop_gradients == "constant":
                _gradient_of_nothing(objective, surveyed.samples, blocks, full, seed, found, counters)
        copied.let_go()
        _symmetry(
            objective,
            data_pass,
            copied,
            blocks,
            full,
            full_norm,
            known,
            seed,
            found,
            counters,
            curvature,
            keep,
            surveyed.places,
        )
        data_pass.release()
        if curvature.name == HESSIAN.name and not isinstance(make, Differences):
            derivatives.check_products(make)
    if known_again:
        most = None if found.uncut else max(batches.leading_size(one) or 0 for one in surveyed.samples)
        found.known_again = summaries(objective, known_again, full, seed, make, most)
    _digits(objective.narrowed(surveyed.measured.pieces), blocks, full, curvature, seed, found, counters)
    return found


def _choose_steps(
    objective: Objective, blocks: Mapping[str, Block], full: Block, make: Differences, seed: int, found: SelfCheck,
    counters: Counters,
) -> None:  # fmt: skip
    """Choose the steps of differences; blocks without one that is good enough fail."""
    make.smooth = found.trace.smooth
    refused = choose_steps(objective, blocks, full, make, seed, counters)
    found.errors, found.differences = make.errors, make
    for key in (key for key in refused if key in blocks):
        figure = f"by differences uncertain by {refused[key]:.1e} of itself at the best step"
        found.failed[key] = failure(STEP, objective, key, list(blocks[key].parameters), found.trace, figure)
        found.checks.append(found.failed[key])
    settled = [make.errors[block.parameters] for key, block in blocks.items() if key not in refused]
    if settled:
        detail = f"differences of gradients at two steps agree to {max(settled):.1e} in {len(settled)} operators"
        found.checks.append(Check(STEP, True, detail))


def _digits(
    objective: Objective, blocks: Mapping[str, Block], full: Block, curvature: CurvatureMatrix, seed: int,
    found: SelfCheck, counters: Counters,
) -> None:  # fmt: skip
    """How many digits float64 has behind logs of saturated probabilities; blocks without any fail."""
    of_others = isinstance(curvature.make_graph, Differences)  # of which rounding is the least error
    if objective.dtype != torch.float64 or not takes_log(found.trace.nodes) or found.failed or of_others:
        return
    if saturated(objective, list(objective.data), BEGINS) != LOG:
        return
    live = {key: block for key, block in blocks.items() if key not in found.zero_suspects}
    measured = blurred(objective, live, full, curvature.make_graph, seed, counters, found.trace.smooth) if live else {}
    found.blur = max([0.0, *(change for change in measured.values() if change <= BLURRED)])
    found.trace.saturated = lambda: LOG
    for key, change in measured.items():
        if not change <= BLURRED:
            figure = f"rounding to {change:.1e} of its size"
            check = failure("rounding", objective, key, list(live[key].parameters), found.trace, figure)
            found.failed[key] = check
            found.checks.append(check)


def _versions(objective: Objective) -> list[int]:
    return [version_of(parameter) for parameter in objective.parameters.values()]


def _gradient_of_nothing(
    objective: Objective, samples: list[Any], blocks: Mapping[str, Block], full: Block, seed: int, found: SelfCheck,
    counters: Counters,
) -> None:  # fmt: skip
    """Fail all blocks where the Hessian is asymmetric: J' S J and F are symmetric with any backward pass."""
    data_pass = DataPass(objective.narrowed(samples), list(full.parameters), counters, make_graph=HESSIAN.make_graph)
    asymmetry = symmetry(data_pass, {FULL: full}, seed)[FULL].asymmetry
    data_pass.release()
    if not asymmetry <= WRONG.get(found.trace.coarsest, 0.3):
        figure = f"of no function: its Hessian is {_asymmetric(asymmetry, found)}"
        for key in blocks:
            found.failed[key] = failure("symmetry", objective, key, list(blocks[key].parameters), found.trace, figure)


def _symmetry(
    objective: Objective,
    data_pass: DataPass,
    make_copy: Callable[[], Objective | None],
    blocks: Mapping[str, Block],
    full: Block,
    full_norm: float,
    known: dict[str, Tensor],
    seed: int,
    found: SelfCheck,
    counters: Counters,
    curvature: CurvatureMatrix,
    keep: float,
    places: Sequence[str],
) -> None:
    coarsest = found.trace.coarsest
    # With a product that is symmetric by construction, see checks/factors.py.
    compared: Mapping[str, float] = {} if objective.stop_gradients == "constant" else found.licence.norms
    rest = {key: block for key, block in blocks.items() if key not in compared}
    norms = {FULL: full_norm}
    measured = symmetry(data_pass, {**rest, FULL: full}, seed, known) if rest else {}
    norms.update({key: m.norm for key, m in measured.items()})
    everything = {**blocks, FULL: full}
    found.place = _not_finite_in(data_pass, {key: everything[key] for key in measured}, measured, seed, places)
    if rest:
        found.block_seconds = sum(m.seconds for m in measured.values())
    found.block_seconds += found.licence.seconds
    norms.update(compared)
    floor = zero_level(torch.finfo(coarsest).eps, norms[FULL])
    found.zero_suspects = {
        key for key in blocks if norms[key] <= floor
    }  # the full model where its product is exactly 0
    live = {key: m for key, m in measured.items() if key not in found.zero_suspects}
    suspicious = SUSPICIOUS.get(coarsest, 0.0)  # half precision shows nothing: always use the float64 copy
    limit = WRONG.get(coarsest, 0.3)
    by_differences = isinstance(curvature.make_graph, Differences)
    if by_differences:
        suspicious = limit = max(limit, DIFFERENT)
    doubtful = [key for key, m in live.items() if not m.asymmetry <= suspicious]
    judge, worst = data_pass, {key: live[key] for key in doubtful}
    copied = make_copy() if doubtful and objective.dtype != torch.float64 and not by_differences else None
    if copied is not None:
        judge = DataPass(copied, list(full.parameters), counters, keep=keep, make_graph=curvature.make_graph)
        worst = symmetry(judge, {key: everything[key] for key in doubtful}, seed)
        # A copy whose graph passes through float32 (a loss that casts) cannot do better than float32.
        limit = WRONG_IN_FLOAT64 if trace(copied, copied.data[0]).coarsest == torch.float64 else limit
    noise = noise_level(torch.float64, norms[FULL]) if limit == WRONG_IN_FLOAT64 else floor
    wrong = {key: m.asymmetry for key, m in worst.items() if not (m.asymmetry <= limit or m.norm <= noise < math.inf)}
    if wrong:
        _locate(objective, judge, everything, wrong, limit, seed, found)
    if judge is not data_pass:
        judge.release()
    live = {key: m for key, m in live.items() if key in blocks}
    found.failed = {key: check for key, check in found.failed.items() if key in blocks}
    passed = [m.asymmetry for key, m in live.items() if key not in found.failed]
    if passed:
        found.checks.append(
            Check("symmetry", True, f"|<u, A v> - <v, A u>| is at most {max(passed):.1e} of ||A u|| in {len(passed)} "
                  f"operators, on {_size(data_pass)}")
        )  # fmt: skip
    found.checks.extend(check for check in found.failed.values())


def check_unsampled(
    objective: Objective,
    data_pass: DataPass,
    blocks: Mapping[str, Block],
    full_norm: float,
    seed: int,
    found: SelfCheck,
) -> dict[str, Check]:
    """Check blocks whose products vanished on the sample but not on all data for symmetry, on all data, in their dtype.

    Args:
        data_pass: over all data. full_norm: norm of the full operator's product with a random unit vector, for the
            noise of weak blocks.

    Returns:
        The failed checks; they are added to ``found`` too.
    """
    coarsest = found.trace.coarsest
    measured = symmetry(data_pass, blocks, seed)
    failed = {}
    for key, block in blocks.items():
        noise = 30.0 * torch.finfo(coarsest).eps * full_norm / max(measured[key].norm, 1e-300)
        noise = max(noise, DIFFERENT if found.errors else 0.0)
        if not measured[key].asymmetry <= max(WRONG.get(coarsest, 0.3), noise):
            found.place = _not_finite_in(data_pass, blocks, measured, seed)
            figure = _asymmetric(measured[key].asymmetry, found)
            failed[key] = failure(
                STEP if found.errors else "symmetry", objective, key, list(block.parameters), found.trace, figure
            )
    found.failed.update(failed)
    found.checks.extend(failed.values())
    return failed


def _locate(
    objective: Objective,
    judge: DataPass,
    blocks: Mapping[str, Block],
    wrong: Mapping[str, float],
    limit: float,
    seed: int,
    found: SelfCheck,
) -> None:
    """Fail the blocks that hold an asymmetric tensor; all blocks, if that does not explain the asymmetry."""
    names = list(dict.fromkeys(name for key in wrong for name in blocks[key].parameters))
    tensors = asymmetric_tensors(judge, names, seed, limit)
    known = tensors.keys() | found.culprits.keys()
    rest = make_block("(rest)", {name: p for name, p in objective.parameters.items() if name not in known})
    # A wrong block may be symmetric while its couplings are not: the rest without those tensors must pass.
    left = symmetry(judge, {"rest": rest}, seed)["rest"].asymmetry if rest.numel else 0.0
    for key, block in blocks.items():
        if key in found.failed:
            continue
        members = {name: tensors[name] for name in block.parameters if name in tensors}
        if members:
            worst = max(members, key=lambda name: math.inf if math.isnan(members[name]) else members[name])
            figure, suspects = _asymmetric(members[worst], found), list(members)
        elif not left <= limit:
            figure, suspects = f"part of one that is {_asymmetric(left, found)} as a whole", list(block.parameters)
        elif key in wrong:
            figure, suspects = _asymmetric(wrong[key], found), list(block.parameters)
        else:
            continue
        found.failed[key] = failure(STEP if found.errors else "symmetry", objective, key, suspects, found.trace, figure)


def _asymmetric(asymmetry: float, found: SelfCheck) -> str:
    return f"asymmetric by {asymmetry:.1e}" if math.isfinite(asymmetry) else f"NaN or infinite{found.place}"


def _not_finite_in(
    data_pass: DataPass,
    blocks: Mapping[str, Block],
    measured: Mapping[str, Symmetry],
    seed: int,
    places: Sequence[str] | None = None,
) -> str:
    """Such as " in batch 3", for products that are NaN or infinite; numbered by the pass, or by ``places``."""
    for key, block in blocks.items():
        if not math.isfinite(measured[key].norm):
            vector = start(block, key, seed, device=beside(block, data_pass.objective.parameters))[None]
            place = first_not_finite(data_pass, Request(block, vector))
            return "" if not place else f" in batch {place if places is None else places[int(place)]}"
    return ""


def _half_precision_inside(dtype: torch.dtype) -> str:
    return (
        f"part of the network or the loss runs in {str(dtype).removeprefix('torch.')} (autocast, or a cast): expect "
        f"eigenvalues good to about {100 * torch.finfo(dtype).eps:.0%} of the largest; for better ones take that away"
    )


def _size(data_pass: DataPass) -> str:
    sizes = [batches.leading_size(batch) for batch in data_pass.objective.data]
    return f"{sum(size or 0 for size in sizes)} examples" if all(sizes) else "a sample of the batches"

"""Turns a finished (or interrupted) task into the Spectrum that users read: numbers, bounds and a status."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from layerhess.analysis.tasks import Task
from layerhess.curvature.counters import Counters
from layerhess.linalg.bounds import Certificate, missed_factor
from layerhess.linalg.eigen.missed import MISSED_PROBABILITY
from layerhess.linalg.eigen.process import Candidates, Wanted
from layerhess.linalg.eigen.zero_test import trials
from layerhess.linalg.random_vectors import oriented
from layerhess.objective.blocks import Block, Partition
from layerhess.objective.objective import Objective
from layerhess.results.record import Check, Cost
from layerhess.results.spectrum import Spectrum

_EMPTY = np.empty(0)
_FURTHER = "raise max_passes or time_limit, or tol"
_SPENT = "the products of a whole reading are spent: give more memory, raise tol, or ask for fewer"
NOT_COVERED = "(not in any block)"


def spectrum_of(
    task: Task, objective: Objective, operator: str, wanted: Wanted, tol: float, copies: bool = True
) -> Spectrum:
    """The result of one task.

    Args:
        task: with a certificate, or a zero bound, or neither (interrupted before its first product).
        wanted: for the number of eigenvalues of a zero block. copies: whether further copies were looked for.
    """
    if task.zero_bound is not None:
        return _zero(task, objective, operator, wanted)
    if task.candidates is None or task.certificate is None:
        return _empty(task.block, objective, operator, "not converged: stopped before its first product", "")
    candidates, certificate = task.candidates, task.certificate
    complete = candidates.spectrum is not None
    candidates, certificate = _with_zeros(task, candidates, certificate)
    short = not complete and len(candidates.values) < wanted.total
    top_asked = complete or "top" in candidates.ends
    return Spectrum(
        name=task.name,
        operator=operator,
        parameters=task.block.parameters,
        numel=task.block.numel,
        eigenvalues=candidates.values,
        error_bounds=certificate.error_bounds,
        conditional_bounds=certificate.conditional_bounds,
        converged=certificate.converged,
        end=candidates.ends,
        status=_status(task, candidates, certificate, tol, short, copies or max(wanted.top, wanted.bottom) < 2),
        complete=complete and task.done,
        spectrum=candidates.spectrum if task.done else None,
        eigenvectors=[_shaped(task.block, row, objective) for row in candidates.vectors],
        rounding=certificate.rounding,
        rounding_source=task.rounding_source,
        missed_factor=1.0
        if complete
        else (missed_factor(certificate.missed_above, float(candidates.values[0])) if top_asked else math.nan),
        missed_above=certificate.missed_above,
        missed_below=certificate.missed_below,
        missed_probability=certificate.missed_probability,
        steps=candidates.steps,
        path=f"{task.path} on factors" if task.factors else task.path,
        licence=task.licence,
        weight_norm_squared=weight_norm_squared(task.block, objective),
    )


def refused(block: Block, objective: Objective, operator: str, check: Check) -> Spectrum:
    """The spectrum of a block whose self-check failed: no numbers."""
    return _empty(block, objective, operator, f"refused: {check.detail}", "")


def unasked(block: Block, objective: Objective, operator: str) -> Spectrum:
    """The spectrum of a block for which only estimates were asked for."""
    return _empty(block, objective, operator, "no eigenvalues were asked for", "")


def mass(full: Spectrum, divided: Partition) -> list[dict[str, float]]:
    """For each full-model eigenvector, block -> share of its squared norm; see :class:`layerhess.Analysis`."""
    owner = {name: block.name for block in divided.blocks for name in block.parameters}
    shares = []
    for vector in full.eigenvectors:
        share = dict.fromkeys([block.name for block in divided.blocks], 0.0)
        for name, part in vector.items():
            key = owner.get(name, NOT_COVERED)
            share[key] = share.get(key, 0.0) + float(part.double().square().sum())
        total = sum(share.values()) or 1.0
        shares.append({key: value / total for key, value in share.items()})
    return shares


def cost_of(counters: Counters, blocks: Mapping[str, Spectrum], full: Spectrum | None) -> Cost | None:
    """The cost of the analysis in gradients; see :meth:`layerhess.curvature.counters.Counters.cost`."""
    return counters.cost(sum(s.steps for s in blocks.values()), full.steps if full is not None else 0)


def weight_norm_squared(block: Block, objective: Objective) -> float:
    """||theta_b||^2 in float64."""
    return sum(float(objective.parameters[name].detach().double().square().sum()) for name in block.parameters)


def _with_zeros(task: Task, candidates: Candidates, certificate: Certificate) -> tuple[Candidates, Certificate]:
    """The smallest eigenvalues of a semidefinite matrix whose rank is less than its dimension are 0, exactly."""
    if not task.zeros:
        return candidates, certificate
    count, spectrum = len(candidates.values), candidates.spectrum
    whole = count == task.block.numel
    bottoms = [i for i, end in enumerate(candidates.ends) if end == "bottom" or whole]
    known = np.isin(np.arange(count), bottoms[len(bottoms) - min(len(bottoms), task.zeros) :])
    if spectrum is not None:
        spectrum = np.concatenate([np.maximum(spectrum[: -task.zeros], 0.0), np.zeros(task.zeros)])
    return (
        replace(candidates, values=np.where(known, 0.0, np.maximum(candidates.values, 0.0)), spectrum=spectrum),
        replace(
            certificate,
            error_bounds=np.where(known, 0.0, certificate.error_bounds),
            conditional_bounds=np.where(known, 0.0, certificate.conditional_bounds),
            converged=certificate.converged | known,
            within=certificate.within | known,
            excluded=certificate.excluded | known,
            missed_below=max(certificate.missed_below, 0.0),
        ),
    )


def _status(task: Task, candidates: Candidates, certificate: Certificate, tol: float, short: bool, copies: bool) -> str:
    if task.done and not short and blind(certificate):
        return (
            f"not converged: arithmetic allows no number (rounding {certificate.rounding:.1e}); use a float64 model, "
            "or a loss on logits"
        )
    if not task.done or short or not bool(np.all(certificate.converged)):
        return _unfinished(candidates, certificate, _SPENT if task.spent and not task.done else _FURTHER)
    if candidates.spectrum is not None:
        return "complete"
    unchecked = "" if copies else "; up to multiplicity, since further copies were not looked for"
    if certificate.limited_by_dtype:
        return (
            f"converged, limited by dtype: rounding of {certificate.rounding:.1e} is more than tol={tol:g} allows; "
            f"use a float64 model for more{unchecked}"
        )
    return f"converged{unchecked.replace(';', ':', 1)}"


def _unfinished(candidates: Candidates, certificate: Certificate, advice: str) -> str:
    """What is open, of which pairs, and what to do."""
    if not len(candidates.values):
        return f"not converged: stopped before the whole matrix was read; {advice}"
    accurate = certificate.within | certificate.converged
    if not bool(np.all(accurate)):
        worst = float(certificate.error_bounds[~certificate.converged].max())
        which = (
            "" if not certificate.converged.any() else f"{places(candidates.ends, (~certificate.converged).tolist())}: "
        )
        return f"not converged: {which}bound so far {worst:.2e}; {advice}"
    if not bool(np.all(certificate.converged)):
        which = places(candidates.ends, (~certificate.converged).tolist())
        beyond = [
            f"{word} {number:.4g}"
            for word, number, end in (
                ("up to", certificate.missed_above, "top"),
                ("down to", certificate.missed_below, "bottom"),
            )
            if any(e == end and not c for e, c in zip(candidates.ends, certificate.converged, strict=True))
        ]
        return f"not excluded: {' and '.join(beyond)} ({which}); {advice.replace('tol', 'exclude')}"
    return f"not converged: copies of an eigenvalue were still being looked for; {advice}"


def places(ends: Sequence[str], chosen: Sequence[bool], most: int = 4) -> str:
    """Names of pairs by their place.

    >>> places(("top", "top", "bottom", "bottom"), (False, True, True, True))
    '2nd largest, 2nd smallest, smallest'
    """
    tops, names = list(ends).count("top"), []
    for index, (end, taken) in enumerate(zip(ends, chosen, strict=True)):
        place = index + 1 if end == "top" else len(ends) - index if index >= tops else index + 1
        rank = "" if place == 1 else f"{place}{ {2: 'nd', 3: 'rd'}.get(place, 'th') } "
        if taken:
            names.append(f"{rank}{'smallest' if end == 'bottom' else 'largest'}")
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def blind(certificate: Certificate) -> bool:
    """Whether a pair that has not converged is as good as rounding allows."""
    at_floor = certificate.error_bounds <= 2.0 * certificate.rounding
    return bool(np.any(at_floor & ~certificate.within & ~certificate.converged))


def _zero(task: Task, objective: Objective, operator: str, wanted: Wanted) -> Spectrum:
    bound = task.zero_bound
    assert bound is not None
    k = min(wanted.total, task.block.numel)
    vectors = torch.eye(task.block.numel, dtype=torch.float64)[:k] if k and task.block.numel <= 10_000 else None
    if vectors is None:
        vectors = torch.zeros((k, task.block.numel), dtype=torch.float64)
        vectors[torch.arange(k), torch.arange(k)] = 1.0
    why = "two random products are below 100 eps of the full one's norm"
    if bound == 0.0 or task.vanished:
        why = "two random products are exactly 0" if bound else "its gradient does not depend on it"
    return Spectrum(
        name=task.name,
        operator=operator,
        parameters=task.block.parameters,
        numel=task.block.numel,
        eigenvalues=np.zeros(k),
        error_bounds=np.full(k, bound),
        conditional_bounds=np.full(k, math.nan),
        converged=np.ones(k, dtype=bool),
        end=tuple("top" if i < min(wanted.top, k) else "bottom" for i in range(k)),
        status=f"zero: {why}",
        eigenvectors=[_shaped(task.block, row, objective) for row in vectors],
        rounding=bound,
        rounding_source="measured",
        missed_probability=0.0 if bound == 0.0 else MISSED_PROBABILITY,
        missed_factor=math.nan,
        missed_above=bound,
        missed_below=-bound,
        steps=trials(task.block.numel),
        path="zero test",
        weight_norm_squared=weight_norm_squared(task.block, objective),
    )


def _empty(block: Block, objective: Objective, operator: str, status: str, path: str) -> Spectrum:
    return Spectrum(
        name=block.name,
        operator=operator,
        parameters=block.parameters,
        numel=block.numel,
        eigenvalues=_EMPTY,
        error_bounds=_EMPTY,
        conditional_bounds=_EMPTY,
        converged=np.empty(0, dtype=bool),
        end=(),
        status=status,
        path=path,
        weight_norm_squared=weight_norm_squared(block, objective),
    )


def _shaped(block: Block, row: Tensor, objective: Objective) -> dict[str, Tensor]:
    parts = block.split(oriented(row))
    return {name: part.to(objective.parameters[name].dtype).cpu().clone() for name, part in parts.items()}

"""How far the numbers depend on the sample of data: standard errors from the spread between groups of examples.

Not the same as an error bound: that says how well a number is known for *these* data, this how much it would change
with other data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerhess.analysis.example_groups import FEWEST, Groups, Places, groups_of
from layerhess.analysis.waves import groups_within
from layerhess.checks.survey import Survey
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL, DataPass, Request
from layerhess.curvature.device import Budget, beside, is_out_of_memory
from layerhess.curvature.factors.mixed_graph import MixedGraphs
from layerhess.curvature.journal import Journal
from layerhess.curvature.question import Question
from layerhess.curvature.totals import Totals, add_up
from layerhess.linalg.estimates import Floats
from layerhess.linalg.long_rows import inner, subtract
from layerhess.linalg.random_vectors import random_signs
from layerhess.objective import batches
from layerhess.objective.blocks import Block
from layerhess.objective.objective import Objective
from layerhess.results.record import SampledGroups

SHARE = 0.4  # of the budget, for vectors and products of one pass: no graphs are kept beside them
ROW = 8  # bytes of a number
PROBES = 8  # for the traces; the probes' own contribution is removed

EXACT = 32  # parameters up to which a block's trace is computed exactly in each group
PROBES_KEY = "(sampling)"
COUNT, FORM, TRACE = "count", "form", "trace"  # kinds of sums
NO_FACTORS = "a batch has no factors for it"


@dataclass(frozen=True)
class SamplingErrors:
    """Standard errors with respect to the data.

    Attributes:
        values: name -> (k,) of its eigenvalues. traces: name -> that of its trace. sums: name -> (k, G) of each
            eigenpair by group, v'A_g v. groups: that were compared; None where there were too few.
        note: a sentence for the reader.
    """

    values: dict[str, Floats] = field(default_factory=dict)
    traces: dict[str, float] = field(default_factory=dict)
    sums: dict[str, Floats] = field(default_factory=dict)
    groups: SampledGroups | None = None
    note: str = ""


def sampling_errors(
    objective: Objective,
    make_graph: GraphMaker,
    surveyed: Survey,
    pairs: Mapping[str, tuple[Block, Tensor, Floats]],
    traced: Mapping[str, Block],
    full: Block,
    seed: int,
    counters: Counters,
    checkpoint: Callable[[], None] = lambda: None,
    uncut: str = "",
    journal: Journal | None = None,
    memory: Budget | None = None,
    size: int | None = None,
) -> SamplingErrors:
    """One pass over the data, group by group (in session); more where not all products fit.

    For a converged pair (theta, v) the first order change of theta with the data is v'(dA)v, so its standard error is
    that of the ratio sum_g v'A_g v / sum_g c_g over groups g (Cochran 1977, eq. 6.13). A trace is the sum over the
    block's eigenvectors and random probes orthogonal to them. Two probes u, w see the same groups, so the covariance
    between u'A_g u and w'A_g w over the groups is due to the data alone.

    Groups are examples that were dealt out by their content, or whole batches: see
    :mod:`layerhess.analysis.example_groups`. Two things make the standard error too large. Neither is corrected, since
    that would need the spectrum without noise:

    1. Batches of data in a meaningful order (sorted by class) differ more than random groups would.
    2. The eigenvector was fitted to the same examples, and the first order holds only while the standard error is small
       against the distance to the next eigenvalue. Close eigenvalues repel each other and move less, while their
       eigenvectors mix. With 40 fresh data sets for fixed random weights (10-20-3, tanh, cross entropy) the stated
       error was 2.1, 2.0, 2.7 times the actual spread for the three largest of 0.weight at 256 examples, and 1.3, 1.8,
       2.3 times at 4096; for the well separated ones of the full Hessian 1.0, 1.0, 1.3 and 0.9, 1.2, 1.1 times.

    Args:
        pairs: name -> (block, (k, P_b) unit eigenvectors, (k,) eigenvalues). traced: name -> block whose trace is asked
            for. full: the block of all parameters that any of them needs. uncut: why batches must not be cut into
            groups (the parts would have another loss), "" if they may be. journal: of the run. memory: the
            budget. size: the most examples to process at once, if batches are too large.

    Returns:
        Empty, with a note, where the data cannot be divided into at least four groups.
    """
    groups = groups_of(objective, surveyed, uncut, size, checkpoint)
    if groups.number < FEWEST:
        return SamplingErrors(note=_too_few(surveyed, groups.number, uncut))
    plan = make_graph if isinstance(make_graph, MixedGraphs) else MixedGraphs({}, make_graph, linear=True)
    requests = {name: Request(block, vectors, quadratic=(block,)) for name, (block, vectors, _) in pairs.items()}
    blocks = {name: block for name, block in traced.items() if name != FULL}
    journal = Journal(None, counters) if journal is None else journal
    forms, exact = _from_factors(objective, groups, requests, blocks, plan, counters, checkpoint, journal)
    whole = {member for name in exact for member in blocks[name].parameters}.issuperset(full.parameters)
    small = {name: block for name, block in blocks.items() if block.numel <= EXACT and name not in exact}
    for name, block in small.items():  # an orthonormal basis that begins with the eigenvectors gives both
        eye = torch.eye(block.numel, dtype=torch.float64, device=beside(block, objective.parameters))
        rows = _completed(pairs[name][1], eye) if name in pairs else eye
        requests[name] = Request(block, rows, quadratic=(block,))
        forms.pop(name, None)  # those of the eigenvectors alone
    probed = len(exact) < len(blocks) or (FULL in traced and not whole)
    if probed:
        rows = _probes(blocks, pairs, full, seed, beside(full, objective.parameters))
        requests[PROBES_KEY] = Request(full, rows, quadratic=(*blocks.values(), full))
    said = [_sentence(groups.number, surveyed.examples)]
    if left := {key: request for key, request in requests.items() if key not in forms}:
        data_pass = DataPass(
            groups.objective, list(full.parameters), counters, checkpoint=checkpoint, make_graph=make_graph,
            journal=journal, listing=groups.listing, largest=surveyed.largest if groups.dealing is not None else 0,
        )  # fmt: skip
        room = math.inf if memory is None else SHARE * memory.room
        held = {key: 2 * ROW * len(request.vectors) * request.block.numel for key, request in left.items()}
        for wave in groups_within(held, room):
            data_pass.run({key: left[key] for key in wave})
            forms.update({key: form.numpy() for key, form in data_pass.quadratics.items()})
        counts = np.array(data_pass.counts)
        said += filter(None, [data_pass.note])
    else:
        counts = _counts(groups, counters, checkpoint, journal)
    scale = counts.sum() if objective.evaluation.is_sum else 1.0
    values = {
        name: np.array([scale * ratio_error(column, counts) for column in forms[name][:, : len(vectors), 0].T])
        for name, (_, vectors, _) in pairs.items()
    }
    traces = {name: scale * ratio_error(own, counts) for name, own in exact.items()}
    if FULL in traced and whole:
        traces[FULL] = scale * ratio_error(sum(exact.values(), np.zeros(len(counts))), counts)
    if probed:
        known: dict[str, Floats] = {
            name: forms[name][:, : len(pairs[name][1]), 0].sum(axis=1) if name in pairs else np.zeros(len(counts))
            for name in blocks
        }
        for column, name in enumerate(blocks):
            if name in exact:
                continue
            if name in small:
                traces[name] = scale * ratio_error(forms[name][:, :, 0].sum(axis=1), counts)
                continue
            traces[name] = scale * shared_error(known[name][:, None] + forms[PROBES_KEY][:, :, column], counts)
        if FULL in traced and not whole:
            together = sum(known.values(), np.zeros(len(counts)))
            traces[FULL] = scale * shared_error(together[:, None] + forms[PROBES_KEY][:, :, -1], counts)
    sums = {name: forms[name][:, : len(vectors), 0].T.copy() for name, (_, vectors, _) in pairs.items()}
    return SamplingErrors(values, traces, sums, SampledGroups(groups.fingerprint, counts), "; ".join(said))


def _counts(groups: Groups, counters: Counters, checkpoint: Callable[[], None], journal: Journal) -> Floats:
    """(G,) the counts of every group, where nothing else is needed from them."""

    def share(batch: Any, totals: Totals) -> None:
        with torch.no_grad():
            totals.append(COUNT, own.terms(batch)[1])
        counters.count("forwards")

    own = groups.objective
    totals, _ = journal.once(
        Question.of(["counts"], by_batch=True) if journal.active else None,
        lambda: add_up(own.batches(), share, group=own.group, checkpoint=checkpoint, listing=groups.listing),
    )
    return np.array(totals.listed(COUNT))


def _from_factors(
    objective: Objective,
    groups: Groups,
    requests: Mapping[str, Request],
    blocks: Mapping[str, Block],
    plan: MixedGraphs,
    counters: Counters,
    checkpoint: Callable[[], None],
    journal: Journal,
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """What factors give directly: (G, s, 1) quadratic forms of the requests' vectors, (G,) traces of the blocks.

    Blocks for which some batch has no factors are absent. Where batches are not cut, forms are no cheaper here than in
    a pass, and none are made. Vectors of the full model are left to the pass, since every block's form of them would
    take a product.
    """
    cut = groups.dealing is not None
    if not plan.blocks or not (blocks or (cut and requests)):
        return {}, {}

    def share(placed: tuple[Any, Places | None], totals: Totals) -> None:
        batch, places = placed
        factors, served = plan.factors(objective, batch, counters)
        if factors is not None and cut and factors.items != batches.leading_size(batch):
            factors, served = None, set()  # its items are not its examples
        for key, request in requests.items() if cut else ():
            if (FORM, key) in totals.dropped:
                continue
            if factors is None or request.block.parameters not in served:
                totals.drop((FORM, key), NO_FACTORS)
            else:
                parts = {
                    n: part.to(objective.parameters[n]) for n, part in request.block.split(request.vectors).items()
                }
                groups.append(totals, (FORM, key), factors.forms(request.block.parameters, parts), places)
        for name, block in blocks.items():
            if (TRACE, name) in totals.dropped:
                continue
            squares = factors.squares(block.parameters) if factors is not None and block.parameters in served else None
            if squares is None:
                totals.drop((TRACE, name), NO_FACTORS)
            else:
                groups.append(totals, (TRACE, name), squares[1], places)

    parts = [part for key, request in requests.items() for part in (key, *request.parts)]
    asked = Question.of(["forms", *parts, *blocks], by_batch=True) if journal.active else None
    try:
        if journal.settled("the factors of whole batches do not fit", False):
            return {}, {}
        totals, _ = journal.once(
            asked,
            lambda: add_up(
                groups.placed(objective.batches()),
                share,
                group=objective.group,
                checkpoint=checkpoint,
                listing=groups.listing,
            ),
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        journal.settled("the factors of whole batches do not fit", True)
        return {}, {}  # the groups need less
    forms = {key: torch.stack(rows)[:, :, None].numpy() for key in requests if (rows := totals.listed((FORM, key)))}
    traces = {name: np.array(totals.listed((TRACE, name)), dtype=np.float64) for name in blocks}
    return forms, {name: own for name, own in traces.items() if len(own)}


def _probes(
    blocks: Mapping[str, Block],
    pairs: Mapping[str, tuple[Block, Tensor, Floats]],
    full: Block,
    seed: int,
    device: torch.device,
) -> Tensor:
    """(PROBES, P) Rademacher rows, each block's part orthogonal to the block's eigenvectors."""
    signs = torch.stack([random_signs(full.numel, seed, PROBES_KEY, number, device) for number in range(PROBES)])
    parts = dict(zip(full.parameters, torch.split(signs, [s.numel() for s in full.shapes], dim=1), strict=True))
    for name, block in blocks.items():
        if name in pairs:
            vectors = pairs[name][1]
            rows = torch.cat([parts[member] for member in block.parameters], dim=1).to(vectors.device)
            subtract(rows, inner(vectors, rows), vectors)
            sizes = [shape.numel() for shape in block.shapes]
            parts.update(zip(block.parameters, torch.split(rows.to(device), sizes, dim=1), strict=True))
    return torch.cat([parts[name] for name in full.parameters], dim=1)


def _completed(vectors: Tensor, eye: Tensor) -> Tensor:
    """(n, n) an orthonormal basis whose first rows are the (k, n) orthonormal ``vectors``."""
    rest = torch.linalg.qr(torch.cat([vectors, eye]).T).Q.T[len(vectors) : len(eye)]
    return torch.cat([vectors, rest])


def ratio_error(sums: Floats, counts: Floats) -> float:
    """Standard error of sum(sums) / sum(counts) over groups: sqrt(G / (G - 1) sum e_g^2) / sum(counts).

    Args:
        sums, counts: (G,), one entry a group.
    """
    rest = sums - sums.sum() / counts.sum() * counts
    groups = len(sums)
    return float(math.sqrt(groups / (groups - 1) * float((rest**2).sum())) / counts.sum())


def shared_error(sums: Floats, counts: Floats) -> float:
    """The same from several probes, by their covariance over the groups, in which the probes' own noise cancels.

    Never less than half the spread of the probes' mean (which is too large, as it includes their noise): a covariance
    from few groups can be near zero, or negative, by chance.

    Args:
        sums: (G, m) with m >= 2 probes. counts: (G,).
    """
    rest = sums - sums.sum(axis=0) / counts.sum() * counts[:, None]
    groups, m = rest.shape
    of_mean = float((rest.mean(axis=1) ** 2).sum())
    own = float((rest**2).sum(axis=0).mean())
    covariance = (m * of_mean - own) / (m - 1)  # mean over pairs of different probes
    square = max(covariance, of_mean / 2)
    return float(math.sqrt(groups / (groups - 1) * square) / counts.sum())


def _too_few(surveyed: Survey, number: int, uncut: str) -> str:
    why = uncut if surveyed.examples else "the examples of a batch cannot be told apart"
    if not why:
        return f"sampling error: not measured: {surveyed.examples} examples are too few to compare"
    return (
        f"sampling error: not measured: {number} batches are too few to compare, and they cannot be cut ({why}); give "
        "smaller batches"
    )


def _sentence(groups: int, examples: int) -> str:
    more = f"; {3 * examples:,} more examples of the same kind would halve it" if examples else ""
    return (
        f"sampling error (how much a number would change with other data): from the spread between {groups} groups of "
        f"examples{more}"
    )

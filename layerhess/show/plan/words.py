"""A plan in sentences: what was chosen, what that costs, whether it is better than the simple ways, what is known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerhess.linalg.described import called, plain
from layerhess.results.plan import PLAN, SURE, MeasuredPlan, PlanRecord, PlanRow, Score
from layerhess.show.numbers import counted, number, share, times, with_bound

PAIRS = 8  # pairs of layers that are listed
FEW = 4  # measured plans below which nothing is said of how well they were predicted


def megabytes(nbytes: float) -> str:
    """A size as a budget has it: decimal units, three digits.

    >>> megabytes(2912), megabytes(3_512_000), megabytes(7.1e9), megabytes(float("nan"))
    ('2.91 kB', '3.51 MB', '7.1 GB', '-')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.3g} {name}"
    return "-" if math.isnan(nbytes) else f"{nbytes:.3g} B"


def increase(value: float, error: float = math.nan) -> str:
    """An increase of the loss with its sign, and its standard error where that is known.

    >>> increase(0.0123, 0.0012), increase(-0.5), increase(float("nan"))
    ('+0.0123 ± 0.0012', '-0.5', '-')
    """
    if not math.isfinite(value):
        return "-" if math.isnan(value) else number(value)
    text = number(value) if math.isnan(error) else with_bound(value, error)
    return text if text.startswith(("-", "(")) else f"+{text}"


def scored(score: Score | None) -> str:
    """A number and its standard error; "-" where there is none."""
    if score is None or math.isnan(score.value):
        return "-"
    return number(score.value) if math.isnan(score.error) else with_bound(score.value, score.error)


def chosen_rows(plan: PlanRecord) -> dict[str, PlanRow | None]:
    """Layer -> the row of its chosen option; None where that was not measured, as for one that is left as it is."""
    rows = {(row.layer, row.option): row for row in plan.rows}
    return {name: rows.get((name, option)) for name, option in plan.choice.items()}


def own(plan: PlanRecord) -> MeasuredPlan:
    """The plan among what was measured, with its held-out scores where it has them."""
    everything = [*plan.baselines.values(), *plan.candidates.values(), *plan.frontier]
    same = [one for one in everything if dict(one.choice) == dict(plan.choice)]
    held = next((one.held_out for one in same if one.held_out is not None), None)
    return MeasuredPlan(
        name=PLAN,
        choice=plan.choice,
        measured=plan.measured,
        measured_error=plan.measured_error,
        predicted=plan.predicted,
        predicted_block=plan.predicted_block,
        mean_bits=plan.mean_bits,
        size_bytes=plan.size_bytes,
        held_out=held,
        metric=plan.metric,
    )


def held_against(plan: PlanRecord) -> list[MeasuredPlan]:
    """What the plan is held against, by name, the plan itself left out."""
    return [found for name, found in plan.baselines.items() if name != PLAN]


def measured_plans(plan: PlanRecord) -> list[MeasuredPlan]:
    """All plans that were measured, each choice once."""
    found: dict[tuple[object, ...], MeasuredPlan] = {}
    everything = [
        own(plan), *plan.candidates.values(), *plan.baselines.values(), *plan.frontier, *plan.random
    ]  # fmt: skip
    for one in everything:
        if not one.failed and math.isfinite(one.measured):
            found.setdefault(tuple(one.choice.items()), one)
    return list(found.values())


def verdict(plan: PlanRecord) -> str:
    """The verdict as a sentence."""
    said = plain(plan.verdict).rstrip(".")
    return f"{said[0].upper()}{said[1:]}." if said else ""


def tally(plan: PlanRecord) -> str:
    """How many layers get which option, in the options' order."""
    count = Counter(option.name for option in plan.choice.values())
    order = [option.name for option in plan.options if option.name in count]
    order += [name for name in count if name not in order]
    return ", ".join(f"{plain(name)} for {counted(count[name], 'layer')}" for name in order)


def search(plan: PlanRecord) -> str:
    """Which candidate it is, and what is proven of it."""
    said = f"Found by: {plain(plan.found_by)}" if plan.found_by else "Which search found it is not recorded"
    if plan.candidates:
        different = {tuple(one.choice.items()) for one in plan.candidates.values()}
        said += f", the best of {counted(len(different), 'measured candidate')}"
    problem = f" for {plain(plan.gap_of)}" if plan.gap_of else ""
    if plan.optimal:
        return f"{said}; proven best{problem}."
    if math.isfinite(plan.gap):
        return f"{said}; within {share(plan.gap)} of a proven bound{problem}."
    return f"{said}; how far from the best{problem or ' choice'} is not proven."


def between_layers(plan: PlanRecord) -> str:
    """What would have been missed by adding up single layers."""
    block, measured = plan.predicted_block, plan.measured
    if not (math.isfinite(block) and math.isfinite(measured)):
        return ""
    said = f"Single layers add up to {increase(block)}; together they cost {increase(measured, plan.measured_error)}."
    if measured == 0.0:
        return said
    missed = (measured - block) / abs(measured)
    if abs(missed) < 0.005:
        return f"{said} Nothing to speak of lies between the layers."
    if measured < 0.0 or block < 0.0:
        return f"{said} Interactions make {increase(measured - block)} of that."
    if missed > 0.0:
        return f"{said} Without interactions {share(missed)} of the increase would have been missed."
    return f"{said} Without interactions the increase would have been overstated by {share(-missed)}."


@dataclass(frozen=True)
class Agreement:
    """How well measured plans were predicted: how many, the median relative error, the rank correlation."""

    plans: int
    median_error: float
    rank_correlation: float


def agreement(found: Sequence[MeasuredPlan], predicted: str = "predicted") -> Agreement | None:
    """Of the plans that have a prediction; None of fewer than four.

    Spearman's rank correlation, ties by their mean rank; the error is |predicted - measured| / |measured|.

    Args:
        predicted: "predicted", or "predicted_block" for the sum over layers.
    """
    pairs = np.array([(getattr(one, predicted), one.measured) for one in found], dtype=np.float64).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1) & (pairs[:, 1] != 0.0)]
    if len(pairs) < FEW:
        return None
    errors = np.abs(pairs[:, 0] - pairs[:, 1]) / np.abs(pairs[:, 1])
    first, second = _ranks(pairs[:, 0]), _ranks(pairs[:, 1])
    spread = float(np.std(first) * np.std(second))
    together = float(np.mean((first - first.mean()) * (second - second.mean())))
    return Agreement(len(pairs), float(np.median(errors)), together / spread if spread else math.nan)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: np.ndarray = (ends - (counts - 1) / 2.0)[inverse]
    return ranks


def told_agreement(plan: PlanRecord) -> list[str]:
    """How well the measured plans were predicted, with interactions and without."""
    found = measured_plans(plan)
    whole, block = agreement(found), agreement(found, "predicted_block")
    if whole is None:
        return ["Too few plans were measured to say how well they are predicted."]
    said = [
        f"{counted(whole.plans, 'measured plan')}: rank correlation {number(whole.rank_correlation, 3)}, median error "
        f"{share(whole.median_error)} of the measured increase."
    ]
    if block is not None:
        said.append(f"Adding up single layers instead: {share(block.median_error)}.")
    if plan.couplings == "none":
        said.append("Interactions were not asked for.")
    return said


def against(plan: PlanRecord, other: MeasuredPlan) -> str:
    """Whether the plan is better than another one, on held-out data where given: a word and the difference."""
    score = other.against_plan
    if other.failed:
        return plain(other.failed)
    if score is None or math.isnan(score.value):
        return "-"
    if dict(other.choice) == dict(plan.choice):
        return "the same plan"
    word = "not told apart"
    if math.isfinite(score.error) and abs(score.value) > SURE * score.error:
        word = "worse than the plan" if score.value > 0.0 else "better than the plan"
    return f"{word}, {increase(score.value, score.error)}"


@dataclass(frozen=True)
class Pair:
    """Two layers and the part of the predicted increase that they have together beyond their own."""

    first: str
    second: str
    share: float


def pairs(plan: PlanRecord) -> list[Pair]:
    """The pairs of layers with the largest interactions, either sign."""
    values = plan.interactions
    names = [weight.name for weight in plan.weights]
    if values.shape != (len(names), len(names)) or len(names) < 2:
        return []
    rows, columns = np.tril_indices(len(names), -1)
    # An entry and its mirror are of one pair.
    sums = values[rows, columns] + values[columns, rows]
    known = np.flatnonzero(np.isfinite(sums) & (sums != 0.0))
    order = known[np.argsort(-np.abs(sums[known]), kind="stable")][:PAIRS]
    return [Pair(names[columns[i]], names[rows[i]], float(sums[i])) for i in order]


def told_pairs(plan: PlanRecord) -> list[str]:
    """Which layers make the increase larger or smaller together."""
    found = pairs(plan)
    if not found:
        return ["How layers act together is not known: couplings were not asked for, or could not be had."]
    said = []
    for sign, word in ((1.0, "larger"), (-1.0, "smaller")):
        listed = [f"{called(p.first, 24)} with {called(p.second, 24)}" for p in found if sign * p.share > 0.0][:2]
        if listed:
            said.append(f"They make the increase {word} together: {'; '.join(listed)}.")
    return said


def cost(plan: PlanRecord) -> str:
    """What it took, in forward passes over the calibration data."""
    counts = plan.counts
    told = [
        (counts.measuring, "to measure every layer and option"),
        (counts.portfolio, "for candidates and the frontier"),
        (counts.verification, "for baselines and random plans"),
    ]
    said = "; ".join(f"{times(amount)} {what}" for amount, what in told if amount > 0.0)
    products = (
        f" Curvature and checks took as much as {counted(round(counts.curvature), 'gradient')}, counted apart."
        if counts.curvature > 0.0
        else ""
    )
    return f"Forward passes over the calibration data: {said or 'none'}; held-out data not counted.{products}"

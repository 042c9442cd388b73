"""Holds a plan against the simple alternatives, on held-out data if given: uniform bits, HAWQ-V2's, random plans."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from layerhess.linalg.numbers import number
from layerhess.objective.objective import Objective
from layerhess.planning.allocation.frontier import pareto, random_plans
from layerhess.planning.candidates import Plan
from layerhess.planning.measuring.meter import Measurement, Meter, Room
from layerhess.planning.metric import Metric, measured_metric
from layerhess.planning.planner import Planner
from layerhess.results.plan import PLAN, SURE, MeasuredPlan, Score

RANDOM = 20  # random plans of the verification


@dataclass
class Verified:
    """What was found.

    Attributes:
        baselines, candidates, random, frontier, verdict: see :class:`layerhess.results.plan.PlanRecord`. plan: the plan
            itself. float_metric, float_held_out: of the unchanged model. notes: sentences.
    """

    plan: MeasuredPlan
    baselines: dict[str, MeasuredPlan]
    candidates: dict[str, MeasuredPlan]
    random: tuple[MeasuredPlan, ...] = ()
    frontier: tuple[MeasuredPlan, ...] = ()
    float_metric: Score | None = None
    float_held_out: Score | None = None
    verdict: str = ""
    notes: list[str] = field(default_factory=list)


def verified(
    planner: Planner, chosen: Plan, *, held_out: Objective | None, metric: Metric | None, verify: bool, seed: int
) -> Verified:
    """The plan beside its baselines (in session; of the held-out objective too)."""
    portfolio, search = planner.portfolio, planner.search
    named: dict[str, Plan] = {PLAN: chosen}
    candidates = {name: candidate.choice for name, candidate in portfolio.candidates.items()}
    baselines = {name: plan for name, plan in candidates.items() if name.startswith("uniform")}
    for name in ("hawq_v2", "measured"):
        if name in candidates:
            baselines[name] = candidates[name]
    named |= baselines
    if verify:
        drawn = random_plans(search.problem(search.allowed), RANDOM, np.random.default_rng(seed))
        named |= {f"random {place + 1}": tuple(map(int, plan)) for place, plan in enumerate(drawn)}
    portfolio.measure(named.values())
    everything = {**candidates, **named}
    every = list(everything.values())
    both = zip(planner.predicted(every), planner.predicted_block(every), strict=True)
    predictions = dict(zip(everything, both, strict=True))
    found = Verified(_record(planner, PLAN, chosen, *predictions[PLAN]), {}, {})
    held: dict[Plan, Measurement] = {}
    meter = planner.meter
    metrics: dict[Plan, Score] = {}
    if verify or held_out is not None or metric is not None:
        plans = list(dict.fromkeys(named.values())) if verify else [chosen]
        judged = held_out or planner.objective
        choices = [search.layers.choice(plan) for plan in plans]
        with judged.session():
            if held_out is not None:
                meter = Meter(held_out, room=Room(outputs=0.0))  # of this data outputs are not needed
                meter.refuse_random()
                held = dict(zip(plans, meter.measure(choices), strict=True))
                found.float_held_out = Score(meter.loss)
            else:
                held = {plan: portfolio.measurement(plan) for plan in plans}
            if metric is not None:
                scores, said = measured_metric(judged, metric, [{}, *choices])
                found.float_metric, metrics = scores[0], dict(zip(plans, scores[1:], strict=True))
                found.notes += [said] if said else []

    def whole(name: str, plan: Plan) -> MeasuredPlan:
        own = held.get(plan)
        return _record(
            planner,
            name,
            plan,
            *predictions[name],
            held_out=meter.increase(own) if own is not None and held_out is not None else None,
            metric=metrics.get(plan),
            against_plan=meter.increase(own, held[chosen]) if own is not None and name != PLAN else None,
        )

    found.plan = whole(PLAN, chosen)
    found.baselines = {name: whole(name, plan) for name, plan in baselines.items()}
    found.candidates = {name: whole(name, plan) for name, plan in candidates.items()}
    found.random = tuple(whole(name, plan) for name, plan in named.items() if name.startswith("random"))
    found.frontier = _frontier(planner, chosen)
    found.verdict = _verdict(planner, found, held_out is not None) if verify else ""
    return found


def _record(
    planner: Planner, name: str, plan: Plan, predicted: float, block: float, **more: Score | None
) -> MeasuredPlan:
    measured = planner.portfolio.measurement(plan)
    score = planner.meter.increase(measured)
    budget = planner.budget
    cap = budget.increase
    return MeasuredPlan(
        name=name,
        choice=planner.layers.choice(plan),
        measured=score.value,
        measured_error=score.error,
        predicted=float(predicted),
        predicted_block=float(block),
        mean_bits=budget.mean_bits(plan),
        size_bytes=budget.size_bytes(plan),
        fits=planner.search.fits(plan) and (cap is None or score.value <= cap),
        failed=measured.why,
        **more,
    )


def _frontier(planner: Planner, chosen: Plan) -> tuple[MeasuredPlan, ...]:
    """The Pareto-minimal ones of all measured plans, by size."""
    portfolio, budget = planner.portfolio, planner.budget
    plans = [plan for plan in portfolio.plans if math.isfinite(portfolio.value(plan))]
    if not plans:
        return ()
    sizes = np.array([budget.size_bytes(plan) for plan in plans])
    values = np.array([portfolio.value(plan) for plan in plans])
    kept = [plans[int(place)] for place in pareto(sizes, values)]
    names = {candidate.choice: name for name, candidate in reversed(portfolio.candidates.items())} | {chosen: PLAN}
    both = zip(planner.predicted(kept), planner.predicted_block(kept), strict=True)
    return tuple(
        _record(planner, names.get(plan, f"{budget.mean_bits(plan):.3g} bits"), plan, *predicted)
        for plan, predicted in zip(kept, both, strict=True)
    )


def reference(
    baselines: Mapping[str, MeasuredPlan], plan: MeasuredPlan, *, smallest: bool = False
) -> MeasuredPlan | None:
    """The uniform plan to compare with: the best that fits (the smallest, under a cap), else the nearest in size."""
    uniform = [one for name, one in baselines.items() if name.startswith("uniform") and not one.failed]
    fitting = [one for one in uniform if one.fits]
    if fitting and smallest:
        return min(fitting, key=lambda one: (one.size_bytes, one.measured))
    if fitting:  # the best on the data that the plan is judged on
        return min(fitting, key=lambda one: one.measured if one.against_plan is None else one.against_plan.value)
    return min(uniform, key=lambda one: abs(one.size_bytes - plan.size_bytes), default=None)


def _verdict(planner: Planner, found: Verified, held_out: bool) -> str:
    """In words, whether the plan is better than uniform bits on the data it is judged on."""
    plan, cap = found.plan, planner.budget.increase
    other = reference(found.baselines, plan, smallest=cap is not None)
    if other is None or other.against_plan is None:
        return ""
    criterion = planner.question.criterion
    if other.choice == plan.choice:
        nothing = ": nothing better was found within the budget" if criterion == "measured" else ""
        return f"the plan is {other.name}{nothing}"
    if cap is not None:
        share = 1.0 - plan.size_bytes / other.size_bytes
        keeps = "the smallest uniform plan within the cap" if other.fits else "which does not keep the cap"
        return f"the plan is {abs(share):.1%} {'smaller' if share >= 0.0 else 'LARGER'} than {other.name}, {keeps}"
    where = "on held-out data" if held_out else "on the data it was chosen on"
    apart = other.against_plan
    size = "" if other.fits else f", which has {other.mean_bits:.3g} bits a weight instead of {plan.mean_bits:.3g},"
    if not math.isfinite(apart.value):
        return f"the loss of {other.name} is not finite {where}, the plan's is"
    better = "better" if apart.value > 0.0 else "WORSE"
    if math.isnan(apart.error):
        by = f"{number(abs(apart.value))} of loss {where}, with no error known"
        return f"the plan is {better} than {other.name}{size} by {by}"
    if abs(apart.value) <= SURE * apart.error:
        return (
            f"the plan and {other.name}{size} are not distinguishable {where} "
            f"(difference {number(apart.value)} ± {number(apart.error, 2)})"
        )
    by = f"{number(abs(apart.value))} ± {number(apart.error, 2)} of loss"
    return f"the plan is {better} than {other.name}{size} by {by} {where}"

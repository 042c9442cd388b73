"""A plan made by hand, so that what shows and saves plans can be tested without measuring any."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from layerhess.results.options import Option, Prune, Quantize
from layerhess.results.plan import (
    PLAN,
    ForwardCounts,
    MeasuredPlan,
    PlannedWeight,
    PlanRecord,
    PlanRow,
    Score,
)

LAYERS = {
    "stem.weight": (8, 1, 3, 3),
    "block1.conv1.weight": (8, 8, 3, 3),
    "block1.conv2.weight": (8, 8, 3, 3),
    "block2.conv1.weight": (16, 8, 3, 3),
    "block2.conv2.weight": (16, 16, 3, 3),
    "block2.shortcut.0.weight": (16, 8, 1, 1),
    "mixer.weight": (16, 16),
    "head.weight": (10, 16),
}
OPTIONS: tuple[Option, ...] = (Quantize(2), Quantize(3), Quantize(4), Quantize(8))
CHOSEN = (8, 4, 3, 4, 3, 8, 4, 8)


def weights(layers: dict[str, tuple[int, ...]]) -> tuple[PlannedWeight, ...]:
    return tuple(
        PlannedWeight(name, shape, "float32", math.prod(shape), "Conv2d" if len(shape) == 4 else "Linear")
        for name, shape in layers.items()
    )


def size_of(option: Option, weight: PlannedWeight) -> float:
    """Bytes, scales counted."""
    return (option.stored_bits(32) * weight.numel + option.extra_bits(weight.shape)) / 8.0


def rows(planned: tuple[PlannedWeight, ...], options: tuple[Option, ...], seed: int) -> tuple[PlanRow, ...]:
    rng = np.random.default_rng(seed)
    found = []
    for weight in planned:
        scale = float(rng.lognormal(-2.0, 1.2))
        for option in options:
            increase = scale * 4.0 ** (2 - option.stored_bits(32)) * float(rng.uniform(0.7, 1.4))
            found.append(
                PlanRow(
                    layer=weight.name,
                    option=option,
                    measured=increase,
                    measured_error=0.08 * increase,
                    kl=0.7 * increase,
                    kl_error=0.05 * increase,
                    predicted_curvature=increase * float(rng.uniform(0.5, 2.0)),
                    predicted_hawq_v2=increase * float(rng.uniform(0.2, 3.0)),
                    bits=option.stored_bits(32),
                    size_bytes=size_of(option, weight),
                    change=0.3 * 2.0 ** -option.stored_bits(32),
                )
            )
    return tuple(found)


def measured_plan(
    record: PlanRecord, name: str, bits: list[int], seed: int, *, held_out: bool = True, **changes: Any
) -> MeasuredPlan:
    """A plan of the record's weights; what it cost is the sum of its rows, times something."""
    rng = np.random.default_rng(seed)
    choice = {weight.name: Quantize(b) for weight, b in zip(record.weights, bits, strict=True)}
    by_layer = {(row.layer, row.option): row for row in record.rows}
    block = sum(by_layer[pair].measured for pair in choice.items() if pair in by_layer)
    increase = block * float(rng.uniform(1.05, 1.4))
    numel = sum(weight.numel for weight in record.weights)
    made = MeasuredPlan(
        name=name,
        choice=choice,
        measured=increase,
        measured_error=0.06 * increase,
        predicted=increase * float(rng.uniform(0.93, 1.07)),
        predicted_block=block,
        mean_bits=sum(b * weight.numel for b, weight in zip(bits, record.weights, strict=True)) / numel,
        size_bytes=sum(size_of(choice[weight.name], weight) for weight in record.weights),
        held_out=Score(1.1 * increase, 0.2 * increase) if held_out else None,
        metric=Score(0.96 - 0.02 * increase, 0.004) if held_out else None,
        against_plan=Score(0.3 * increase, 0.1 * increase),
    )
    return dataclasses.replace(made, **changes)


def plan(
    layers: dict[str, tuple[int, ...]] | None = None,
    chosen: tuple[int, ...] = CHOSEN,
    options: tuple[Option, ...] = OPTIONS,
    *,
    seed: int = 0,
    held_out: bool = True,
    random: int = 40,
    **changes: Any,
) -> PlanRecord:
    """A plan of eight layers with everything that a verified plan has."""
    rng = np.random.default_rng(seed)
    planned = weights(layers if layers is not None else LAYERS)
    table = rows(planned, options, seed)
    size = len(planned)
    pairs = rng.normal(0.0, 0.01, (size, size))
    pairs = pairs + pairs.T
    np.fill_diagonal(pairs, 0.0)
    base = PlanRecord(
        choice={weight.name: Quantize(bits) for weight, bits in zip(planned, chosen, strict=True)},
        weights=planned,
        options=options,
        rows=table,
        budget="4 bits a weight",
        mean_bits=0.0,
        size_bytes=0.0,
        float_bytes=4.0 * sum(weight.numel for weight in planned),
        loss=0.012345678901234567,
        predicted=0.0,
        predicted_block=0.0,
        measured=0.0,
        measured_error=0.0,
        interactions=pairs,
        found_by="with couplings",
    )
    bits = [option.bits for option in options if isinstance(option, Quantize)]

    def drawn() -> list[int]:
        return [int(rng.choice(bits)) for _ in range(size)]

    own = measured_plan(base, PLAN, list(chosen), 1, held_out=held_out, against_plan=None)
    baselines = {
        "uniform w4": measured_plan(base, "uniform w4", [4] * size, 2, held_out=held_out),
        "hawq_v2": measured_plan(base, "hawq_v2", [max(2, b - 1) for b in chosen], 3, held_out=held_out),
        "uniform w8": measured_plan(base, "uniform w8", [8] * size, 4, held_out=held_out, fits=False),
    }
    made = dataclasses.replace(
        base,
        mean_bits=own.mean_bits,
        size_bytes=own.size_bytes,
        predicted=own.predicted,
        predicted_block=own.predicted_block,
        measured=own.measured,
        measured_error=own.measured_error,
        candidates={
            "with couplings": dataclasses.replace(own, name="with couplings"),
            "measured": measured_plan(base, "measured", [4] * (size - 1) + [8], 5, held_out=held_out),
            "curvature": measured_plan(base, "curvature", drawn(), 6, held_out=held_out),
        },
        baselines=baselines,
        frontier=tuple(measured_plan(base, f"{b} bits", [b] * size, 10 + b, held_out=False) for b in bits),
        random=tuple(measured_plan(base, f"random {i}", drawn(), 30 + i, held_out=False) for i in range(random)),
        gap=0.0012345678901234567,
        gap_of="the quadratic with couplings",
        held_out_loss=Score(0.0345, 0.004) if held_out else None,
        metric=own.metric,
        metric_float=Score(0.9722, 0.0039) if held_out else None,
        metric_name="accuracy" if held_out else "",
        verdict="the plan is better than uniform w4 by 0.0123 +- 0.0041 of loss on held-out data",
        warnings=("block2.conv1.weight: at 2 bits its change is 60 % of its weights",),
        counts=ForwardCounts(33.0, 12.0, 44.0, 96.5),
        settings={"options": ["w2", "w3", "w4", "w8"], "budget": "4bit", "seed": 0, "model": "DigitNet"},
    )
    return dataclasses.replace(made, **changes)


def pruned(**changes: Any) -> PlanRecord:
    """A plan with options of every kind."""
    options: tuple[Option, ...] = (*OPTIONS, Prune(0.5), Prune("2:4"))
    made = plan(options=options)
    choice = {**made.choice, "head.weight": Prune("2:4"), "mixer.weight": Prune(0.5)}
    return dataclasses.replace(made, choice=choice, **changes)


def undone() -> PlanRecord:
    """A plan of which much is unknown: no curvature, no baselines, no interactions, one option that failed."""
    made = plan(held_out=False, random=0)
    failed = dataclasses.replace(
        made.rows[0],
        measured=math.nan,
        measured_error=math.nan,
        kl=math.nan,
        kl_error=math.nan,
        allowed=False,
        why_not="the loss is NaN",
    )
    unknown = [
        dataclasses.replace(row, predicted_curvature=math.nan, predicted_hawq_v2=math.nan, kl=math.nan)
        for row in (failed, *made.rows[1:])
    ]
    return dataclasses.replace(
        made,
        rows=tuple(unknown),
        candidates={},
        baselines={},
        frontier=(),
        interactions=np.full((len(made.weights), len(made.weights)), np.nan),
        predicted=math.nan,
        couplings="none",
        verdict="",
        warnings=("the metric raised ValueError: no such class; the plan is kept without it",),
    )

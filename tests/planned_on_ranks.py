"""What the ranks of tests/planning/test_ranks.py compute; alone, the same functions give the reference."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import layerhess as lh
from layerhess.planning.measuring.meter import Meter, Room
from layerhess.planning.rows_file import RowsFile
from on_ranks import network, place, share

CE = nn.CrossEntropyLoss()


def right(output: Tensor, target: Tensor) -> Tensor:
    return output.argmax(1) == target


def summed(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum"), float((batch[1] != -100).sum())


def numbers(plan: lh.Plan) -> dict[str, Any]:
    """All that must not depend on the number of ranks."""
    return {
        "choice": {name: option.name for name, option in plan.choice.items()},
        "rows": [
            [getattr(row, name) for name in ("measured", "measured_error", "kl", "kl_error", "predicted_curvature")]
            for row in plan.rows
        ],
        "plan": [plan.loss, plan.measured, plan.measured_error, plan.predicted, plan.predicted_block],
        "interactions": plan.interactions.tolist(),
        "baselines": {name: [one.measured, one.predicted] for name, one in plan.baselines.items()},
        "held out": [one.held_out.value for one in plan.random if one.held_out is not None],
        "metric": [score.value for score in (plan.metric, plan.metric_float) if score is not None],
        "forwards": [plan.counts.measuring, plan.counts.portfolio],
    }


def plans() -> dict[str, Any]:
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(7)).double()
    rank, size = place()
    y = torch.arange(20) % 3
    held: Any = (x, y) if size == 1 else ((x[:13], y[:13]), (x[13:], y[13:]), [])[rank]
    found = {
        "outputs": lh.plan(
            lh.Objective(network(), share(), CE), budget="3bit", held_out=held, metric=right, seed=1,
        ),
        "coarse": lh.plan(lh.Objective(network(), share(), lh.batch_loss(summed)), budget="3bit", curvature=False),
        "summed": lh.plan(
            lh.Objective(network(), share(), nn.CrossEntropyLoss(reduction="sum")), budget="3bit", curvature=False
        ),
    }  # fmt: skip
    return {name: numbers(plan) for name, plan in found.items()}


def resumed() -> dict[str, Any]:
    """A plan that is interrupted on all ranks, and goes on."""
    real, left = RowsFile.keep, [4]

    def keep(rows: RowsFile, name: str, measured: Any) -> None:
        real(rows, name, measured)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    out = Path(os.environ["OUT"])
    RowsFile.keep = keep  # type: ignore[method-assign]
    try:
        lh.plan(lh.Objective(network(), share(), CE), budget="3bit", out=out, curvature=False)
        raise AssertionError("it was not interrupted")
    except KeyboardInterrupt:
        pass
    RowsFile.keep = real  # type: ignore[method-assign]
    again = lh.plan(lh.Objective(network(), share(), CE), budget="3bit", out=out, curvature=False, resume=True)
    whole = lh.plan(lh.Objective(network(), share(), CE), budget="3bit", curvature=False)
    return {"again": numbers(again), "whole": numbers(whole)}


def shares() -> list[float]:
    """Of the rows of outputs that are kept, where batches are of other sizes on other ranks."""
    made = lh.Objective(network(), share(4 + 12 * place()[0]), CE)
    with made.session():
        meter = Meter(made, room=Room(outputs=900.0, batches=4))
        kept = [0 if output is None else len(output) for output in meter.float_model.outputs]
    return [meter.float_model.share, sum(kept), meter.forwards]


def everything() -> dict[str, Any]:
    return {"plans": plans(), "resumed": resumed(), "refusals": refusals(), "shares": shares()}


def refusals() -> dict[str, str]:
    """What one rank finds wrong is said on all, and all go on."""
    rank, _ = place()
    asked = {
        "other budgets": lambda: lh.plan(lh.Objective(network(), share(), CE), budget=f"{3 + rank}bit"),
        "other options": lambda: lh.plan(lh.Objective(network(), share(), CE), (2, 3 + rank)),
        "no option": lambda: lh.plan(lh.Objective(network(), share(), CE), (2, 3) if rank == 0 else ()),
        "raises": lambda: lh.plan(lh.Objective(network(), Raising(rank), CE), curvature=False),
    }
    found = {}
    for name, call in asked.items():
        try:
            call()
            found[name] = "nothing was raised"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    found["after"] = lh.plan(lh.Objective(network(), share(), CE), budget="3bit", curvature=False).found_by
    return found


class Raising:
    """Batches that rank 1 cannot read in its fourth pass."""

    def __init__(self, rank: int) -> None:
        self.rank, self.passes = rank, 0

    def __iter__(self) -> Any:
        self.passes += 1
        if self.passes == 4 and self.rank == 1:
            raise OSError("the file is gone")
        yield from share()

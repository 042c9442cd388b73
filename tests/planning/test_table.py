"""The table of single steps, and the steps around a plan."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import layerhess as lh
import planned
from layerhess.planning.budget import budget_of
from layerhess.planning.layers import layers_of
from layerhess.planning.measuring.meter import Meter
from layerhess.planning.predictions import unknown
from layerhess.planning.rows_file import RowsFile
from layerhess.planning.table import Table, around, measured_table


def made(meter: Meter, options: object = (2, 4), outputs: bool = True, **more: object) -> tuple[Table, RowsFile]:
    layers = layers_of(meter.objective, options, "weight", **more)  # type: ignore[arg-type]
    rows = RowsFile(None, meter.objective, {}, resume=False)
    return measured_table(meter, layers, unknown(layers), rows, measure=True, outputs=outputs), rows


def test_a_row_for_every_layer_and_option() -> None:
    objective = planned.objective()
    with objective.session():
        meter = Meter(objective)
        table, _ = made(meter, allowed={"2.weight": [4]})
        choices = [{name: option} for name in table.layers.names for option in table.layers.options]
        scores = [(meter.increase(one), meter.divergence(one)) for one in meter.measure(choices)]
    rows = table.rows(budget_of("4bit", table.layers))
    assert [(row.layer, row.option.name) for row in rows] == [
        (name, option) for name in ("0.weight", "2.weight", "4.weight") for option in ("w2", "w4")
    ]
    for row, (increase, kl) in zip(rows, scores, strict=True):
        if (row.layer, row.option.name) == ("2.weight", "w2"):
            assert not row.allowed and row.why_not and math.isnan(row.measured) and math.isnan(row.kl)
        else:
            assert row.allowed and (row.measured, row.measured_error) == (increase.value, increase.error)
            assert (row.kl, row.kl_error) == (kl.value, kl.error)
    assert rows[0].bits == 2.0 and rows[0].size_bytes == (2 * 72 + 16 * 12) / 8


def test_scores_are_infinite_where_an_option_is_out_and_unknown_where_one_is_missing() -> None:
    objective = planned.objective()
    with objective.session():
        table, _ = made(Meter(objective), allowed={"2.weight": [4]}, outputs=False)
    scores = table.scores("measured")
    assert (
        scores is not None and scores[1, 0] == math.inf and np.isfinite(scores[[0, 0, 1, 2, 2], [0, 1, 1, 0, 1]]).all()
    )
    assert table.scores("curvature") is None  # not computed


def test_steps_around_a_plan_are_what_is_gained_from_there() -> None:
    def burst(weight: Tensor) -> Tensor:
        return weight * 1e30

    burst.bits = 16.0  # type: ignore[attr-defined]
    x = planned.points(0, 60)[0]
    objective = lh.Objective(planned.objective().model, (x, torch.sin(x[:, :3])), torch.nn.MSELoss())
    base = (0, 1, 0)
    with objective.session():
        meter = Meter(objective)
        table, rows = made(meter, (2, 4, burst))
        assert all(why == "the loss is NaN or infinite" for why in (row[2] for row in table.why_not))
        assert all(row[2] is None for row in table.steps)
        found = around(meter, table, base, rows, room=100.0)
        assert found is not None
        at, steps, increases = found
        start = meter.increase(at).value
        for layer in range(3):
            for k in range(2):
                plan = [*base[:layer], k, *base[layer + 1 :]]
                (one,) = meter.measure([table.layers.choice(plan)])
                assert increases[layer, k] == pytest.approx(meter.increase(one).value - start, rel=1e-9, abs=1e-12)
                step = steps[layer][k]
                assert step is not None and np.array_equal(step.losses, one.losses)
        assert (increases[:, 2] == math.inf).all()
        spent = meter.forwards
        assert around(meter, table, base, rows, room=3.0) is None and meter.forwards == spent  # four would be made

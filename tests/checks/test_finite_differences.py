"""Products against finite differences of gradients: a hand-written backward pass that is wrong is found and named."""

from __future__ import annotations

import math

import pytest
from torch import nn

import layerhess as lh
from faulty_functions import Applies, Cut, kinked
from layerhess.checks.finite_differences import beyond_error
from refusals import CE, PAIRS, Table, analysis, mlp
from witness import refused

TABLE = Table()
case = TABLE.case

for _name, _model in {"smooth": lambda f: mlp(Applies(f)), "with kinks": kinked}.items():
    for _full in (True, False):
        case(f"wrong second derivative: a hand-written backward, {_name}, full={_full}", "2 (Cut)", "skip_failed")(
            analysis(model=lambda model=_model: model(Cut), full=_full)
        )


@pytest.mark.parametrize("name", TABLE)
def test_models_that_cannot_be_analysed_are_refused_in_words(name: str) -> None:
    TABLE.check(name)


def test_skip_failed_gives_nothing_where_the_fault_cannot_be_located() -> None:
    """With a cut backward pass each diagonal block is symmetric, and wrong: only the whole gives it away."""
    result = lh.analyze(lh.Objective(kinked(Cut), PAIRS, CE), full=False, skip_failed=True)
    assert all(spectrum.status.startswith("refused") for spectrum in result.blocks.values())


def test_finite_differences_name_the_tensor_inside_a_block_of_many() -> None:
    """In one block of everything, each fault of a hand-written backward pass would drown."""
    model = mlp(Applies(Cut), nn.Tanh())
    with refused(model, "a self-check failed", "2 (Cut)"):
        lh.analyze(lh.Objective(model, PAIRS, CE), blocks={"all": "*"}, full=False)


def test_a_step_that_tells_nothing_gives_no_figure() -> None:
    assert beyond_error(3.0, 0.5, 100.0) == pytest.approx(0.015)
    assert beyond_error(1.0, 0.5, 100.0) == 0.0
    assert beyond_error(1.0, 3.0, 100.0) is None and beyond_error(1.0, 1.0, 100.0, 1.5) is None
    assert beyond_error(0.0, 0.0, 0.0) is None and beyond_error(math.nan, 0.0, math.nan) is None

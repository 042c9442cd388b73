"""What is said of a plan: agreement against SciPy's own ranks, interactions, and what nobody asked for."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

import plans_by_hand
from layerhess.results.options import Quantize
from layerhess.results.plan import ForwardCounts, PlanRecord
from layerhess.show.plan import words


def test_the_rank_correlation_is_spearmans_and_the_error_the_median_ties_included() -> None:
    made = plans_by_hand.plan()
    found = [
        dataclasses.replace(one, measured=round(one.measured, 1), predicted=round(one.predicted, 1))
        for one in made.random
    ]
    told = words.agreement(found)
    assert told is not None
    measured, predicted = ([getattr(one, name) for one in found] for name in ("measured", "predicted"))
    assert len(set(measured)) < len(measured), "there are ties"
    assert told.rank_correlation == pytest.approx(stats.spearmanr(predicted, measured).statistic, abs=1e-12)
    errors = [abs(p - m) / m for p, m in zip(predicted, measured, strict=True)]
    assert told.median_error == pytest.approx(float(np.median(errors)), abs=1e-15)
    assert told.plans == len(found)


def test_unknown_predictions_and_failed_plans_do_not_count() -> None:
    made = plans_by_hand.plan()
    found = [dataclasses.replace(one, predicted=math.nan) if i % 2 else one for i, one in enumerate(made.random)]
    told = words.agreement(found)
    assert told is not None and told.plans == 20
    assert words.agreement(found[:6]) is None
    failed = dataclasses.replace(made, random=tuple(dataclasses.replace(r, failed="NaN") for r in made.random))
    assert len(words.measured_plans(failed)) == len(words.measured_plans(made)) - 40


def test_each_choice_counts_once_among_the_measured() -> None:
    made = plans_by_hand.plan(random=0)
    twice = dataclasses.replace(made, random=(made.baselines["uniform w4"], made.frontier[0]))
    assert len(words.measured_plans(twice)) == len(words.measured_plans(made))


def test_the_largest_pairs_come_first_with_their_sign_and_both_halves() -> None:
    made = plans_by_hand.plan()
    values = np.zeros((8, 8))
    values[0, 6] = values[6, 0] = -0.2
    values[3, 4] = values[4, 3] = 0.1
    values[1, 2] = values[2, 1] = math.nan
    made = dataclasses.replace(made, interactions=values)
    found = words.pairs(made)
    assert [(p.first, p.second, p.share) for p in found] == [
        ("stem.weight", "mixer.weight", -0.4),
        ("block2.conv1.weight", "block2.conv2.weight", 0.2),
    ]
    told = words.told_pairs(made)
    assert told[0].startswith("They make the increase larger together: block2.conv1.weight with block2.conv2")
    assert told[1].startswith("They make the increase smaller together: stem.weight with mixer.weight")


def test_unknown_interactions_are_said_to_be() -> None:
    assert words.pairs(plans_by_hand.undone()) == []
    assert "is not known" in words.told_pairs(plans_by_hand.undone())[0]


@pytest.mark.parametrize(
    ("block", "measured", "told"),
    [
        (0.08, 0.10, "Without interactions 20 % of the increase would have been missed."),
        (0.12, 0.10, "Without interactions the increase would have been overstated by 20 %."),
        (0.1, 0.1, "Nothing to speak of lies between the layers."),
    ],
)
def test_what_block_diagonal_thinking_misses_is_a_share_of_what_was_measured(
    block: float, measured: float, told: str
) -> None:
    made = dataclasses.replace(plans_by_hand.plan(), predicted_block=block, measured=measured)
    assert words.between_layers(made).endswith(told)
    assert words.between_layers(dataclasses.replace(made, predicted_block=math.nan)) == ""


def test_what_it_took_is_counted_apart() -> None:
    made = dataclasses.replace(plans_by_hand.plan(), counts=ForwardCounts(33.0, 12.0, 0.0, 96.5))
    told = words.cost(made)
    assert "33 to measure every layer and option; 12 for candidates" in told
    assert "baselines" not in told
    assert "96 gradients, counted apart" in told


def test_the_plans_own_row_has_its_held_out_scores() -> None:
    made = plans_by_hand.plan()
    assert words.own(made).held_out is not None
    bare = dataclasses.replace(made, candidates={}, baselines={})
    assert (words.own(bare).measured, words.own(bare).held_out) == (made.measured, None)
    moved = dataclasses.replace(made, choice={**made.choice, "head.weight": Quantize(2)})
    assert words.own(moved).held_out is None, "another plan's scores are not its own"


def test_layers_are_counted_by_option_in_the_order_of_the_options() -> None:
    assert words.tally(plans_by_hand.plan()) == "w3 for 2 layers, w4 for 3 layers, w8 for 3 layers"
    assert isinstance(plans_by_hand.plan(), PlanRecord)

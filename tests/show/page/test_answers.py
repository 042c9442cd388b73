"""The three answers: what is said of each kind of result, and what is not said of what is not known."""

from __future__ import annotations

import dataclasses

import numpy as np

import fabricated
from layerhess.analysis.result import Analysis
from layerhess.show.page.answers import GOOD, PLAIN, WARN, WRONG, Answer, answers, sharpest


def said(made: Analysis) -> dict[str, Answer]:
    return {answer.key: answer for answer in answers(made, sharpest(made))}


def text(answer: Answer) -> str:
    return " ".join([answer.headline, *answer.sentences])


def two(first: float, second: float, error: float = float("nan"), **changes: object) -> Analysis:
    """Two blocks with these top eigenvalues, exact but for sampling errors."""
    blocks = {
        name: fabricated.spectrum(
            name,
            eigenvalues=np.array([top, 0.5, -0.1]),
            error_bounds=np.full(3, 1e-9),
            sampling_errors=np.full(3, error),
        )
        for name, top in (("a.weight", first), ("b.weight", second))
    }
    return fabricated.analysis(blocks=blocks, full=None, full_mass=[], **changes)


def test_the_sharpest_layer_is_the_one_with_the_largest_eigenvalue() -> None:
    found = sharpest(two(3.0, 2.0))
    assert found is not None and found.names == ["a.weight"] and found.flattest == "b.weight"
    assert said(two(3.0, 2.0))["sharp"].headline == "a"


def test_two_layers_tie_within_twice_the_sampling_error_of_their_difference() -> None:
    tied = sharpest(two(3.0, 2.8, error=0.08))  # 0.2 against 2 * 0.113
    apart = sharpest(two(3.0, 2.7, error=0.08))
    assert tied is not None and tied.names == ["a.weight", "b.weight"]
    assert apart is not None and apart.names == ["a.weight"]
    assert "a tie on these data" in text(said(two(3.0, 2.8, error=0.08))["sharp"])


def test_what_has_not_converged_makes_no_headline() -> None:
    made = two(3.0, 2.0)
    stopped = fabricated.unconverged(made.blocks["a.weight"])
    made = dataclasses.replace(made, blocks={**made.blocks, "a.weight": stopped})
    found = said(made)
    assert found["sharp"].headline == "b" and "1 layer not converged or refused: they may be sharper" in text(
        found["sharp"]
    )
    assert found["trust"].tone == WRONG and "1 of 2 spectra NOT CONVERGED" in found["trust"].headline
    assert found["follows"].tone == WRONG and "below" not in found["follows"].headline
    nothing = dataclasses.replace(made, blocks={"a.weight": stopped})
    assert said(nothing)["sharp"].headline == "Not known yet"


def test_the_learning_rate_is_held_against_two_over_lambda_max_of_the_whole() -> None:
    made = fabricated.analysis()
    largest = made.full.eigenvalues[0]
    for factor, tone in ((1.2, WARN), (0.5, GOOD), (None, PLAIN)):
        rate = None if factor is None else factor * 2.0 / largest
        found = said(dataclasses.replace(made, settings={**made.settings, "learning_rate": rate}))["follows"]
        assert found.tone == tone and found.headline == f"Learning rate below {2.0 / largest:.3g}"
        assert factor is None or f"is {factor:g} times that" in text(found)


def test_damping_covers_the_most_negative_eigenvalue_with_its_bound() -> None:
    found = text(said(fabricated.analysis())["follows"])
    bottom, bound = fabricated.analysis().full.bottom
    shown = float(found.split("damping from ")[1].split(" ")[0])
    assert shown >= bound - bottom and shown <= 1.11 * (bound - bottom)


def test_another_matrix_limits_no_step() -> None:
    blocks = {n: dataclasses.replace(s, operator="empirical_fisher") for n, s in fabricated.analysis().blocks.items()}
    full = dataclasses.replace(fabricated.analysis().full, operator="empirical_fisher")
    found = said(fabricated.analysis(blocks=blocks, full=full))["follows"]
    assert "Learning rate" not in text(found) and "not of second derivatives" in text(found)


def test_the_share_between_layers_is_told_with_its_error() -> None:
    found = text(said(fabricated.estimated(fabricated.analysis()))["follows"])
    assert "Layers alone hold 18.0 ± 1.0 % of ‖H‖²" in found
    part = text(said(fabricated.estimated(fabricated.analysis(uncovered=("x",))))["follows"])
    assert "Layers alone hold" not in part


def test_the_share_of_the_steepest_direction_is_that_of_the_fewest_layers() -> None:
    made = two(3.0, 2.0)
    full = dataclasses.replace(fabricated.analysis().full)
    mass = [{"a.weight": 0.25, "b.weight": 0.75}] * 3
    found = text(said(dataclasses.replace(made, full=full, full_mass=mass))["sharp"])
    assert "b holds 75 % of the whole model’s steepest direction" in found


def test_a_layer_whose_largest_eigenvalue_was_not_asked_for_is_told_beside_the_headline() -> None:
    made = two(3.0, 2.0)
    b = made.blocks["b.weight"]
    below = dataclasses.replace(
        b,
        **{name: getattr(b, name)[2:] for name in ("eigenvalues", "error_bounds", "conditional_bounds", "converged")},
        sampling_errors=b.sampling_errors[2:],
        eigenvectors=b.eigenvectors[2:],
        end=("bottom",),
    )
    found = said(dataclasses.replace(made, blocks={**made.blocks, "b.weight": below}))["sharp"]
    assert found.headline == "a" and "Of 1 layer no largest eigenvalue was asked for" in text(found)


def test_the_smallest_is_named_only_where_all_are_known() -> None:
    names = ("a.weight", "b.weight", "c.weight")
    tops = dict(zip(names, (3.0, 2.0, 0.01), strict=True))
    blocks = {
        name: fabricated.spectrum(
            name,
            eigenvalues=np.array([top, 0.005, -0.1]),
            error_bounds=np.full(3, 1e-9),
            sampling_errors=np.full(3, np.nan),
        )
        for name, top in tops.items()
    }
    made = dataclasses.replace(two(3.0, 2.0), blocks=blocks)
    assert "The smallest is that of c, 0.01" in text(said(made)["sharp"])
    blocks["c.weight"] = fabricated.unconverged(blocks["c.weight"])
    assert "smallest" not in text(said(dataclasses.replace(made, blocks=blocks))["sharp"])


def test_what_was_asked_and_not_begun_is_not_said_to_be_unasked() -> None:
    made = two(3.0, 2.0)
    none = {
        name: dataclasses.replace(fabricated.refused(name), status="not converged: stopped before its first product")
        for name in made.blocks
    }
    found = said(dataclasses.replace(made, blocks=none))
    assert found["follows"].headline == "Not known yet" and "asked" not in text(found["follows"])

"""Comparisons of analyses made by hand: what is compared, what is not, and what is called different."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

import fabricated
from layerhess.linalg.estimates import DensityEstimate
from layerhess.results.comparison import BlockComparison, compared
from layerhess.results.record import SampledGroups
from layerhess.results.spectrum import AnalysisRecord, Spectrum

COUNTS = np.array([3.0, 5.0, 4.0, 4.0, 6.0, 2.0])


def sampled(spectrum: Spectrum, sums: Any, value: float | None = None) -> Spectrum:
    """The spectrum with these sums by group; its eigenvalues are theirs."""
    sums = np.asarray(sums, dtype=np.float64)
    top = float(sums.sum() / COUNTS.sum()) if value is None else value
    rest = sums - sums.sum() / COUNTS.sum() * COUNTS
    error = math.sqrt(6 / 5 * float((rest**2).sum())) / COUNTS.sum()
    return dataclasses.replace(
        spectrum,
        eigenvalues=np.array([top, 0.5 * top, -0.1 * top]),
        error_bounds=np.full(3, 1e-6 * top),
        missed_above=top * 1.01,
        sampling_errors=np.array([error, np.nan, np.nan]),
        sampling_sums=np.stack([sums, np.full(6, np.nan), np.full(6, np.nan)]),
    )


def analysis(*spectra: Spectrum, fingerprint: str = "same", **changes: Any) -> AnalysisRecord:
    groups = SampledGroups(fingerprint, COUNTS)
    given: dict[str, Any] = {"full": None, "full_mass": [], "groups": groups, "partial": "", **changes}
    return fabricated.analysis(blocks={s.name: s for s in spectra}, **given)


def block(first: Spectrum, second: Spectrum, **changes: Any) -> BlockComparison:
    return compared(analysis(first), analysis(second, **changes), ("a", "b")).blocks[first.name]


SUMS = COUNTS * np.array([1.0, 1.3, 0.8, 1.1, 0.9, 1.2])


def test_a_log_ratio_and_its_error_bound_hold_every_ratio_the_bounds_allow() -> None:
    a, b = fabricated.spectrum(seed=1), fabricated.spectrum(seed=2)
    found = compared(fabricated.one(a), fabricated.one(b), ("a", "b")).blocks["fc.weight"]
    (x, r), (y, s) = a.top, b.top  # type: ignore[misc]
    assert found.log_ratio == pytest.approx(math.log(y / x), rel=1e-12)
    ends = [math.log((y + i * s) / (x + j * r)) for i in (-1, 1) for j in (-1, 1)]
    assert found.log_ratio + found.error_bound >= max(ends) - 1e-15
    assert found.log_ratio - found.error_bound <= min(ends) + 1e-15
    weighed = math.log(y * b.weight_norm_squared / (x * a.weight_norm_squared))
    assert found.scale_free_log_ratio == pytest.approx(weighed, rel=1e-12)
    assert math.isnan(found.standard_error) and not found.significant and not found.paired
    assert found.status.startswith("no standard error")


def test_groups_that_change_alike_leave_no_standard_error_in_a_pair() -> None:
    """Twice the curvature in every group: each one's spread is large, that of the difference is nothing."""
    made = fabricated.spectrum()
    pair = block(sampled(made, SUMS), sampled(made, 2 * SUMS))
    assert pair.paired and pair.significant and pair.freedom == 5.0
    assert pair.log_ratio == pytest.approx(math.log(2.0)) and pair.standard_error <= 1e-15
    apart = block(sampled(made, SUMS), sampled(made, 2 * SUMS), fingerprint="other")
    each = sampled(made, SUMS)
    assert not apart.paired
    expected = math.sqrt(2.0) * each.sampling_errors[0] / each.eigenvalues[0]
    assert apart.standard_error == pytest.approx(expected) and apart.freedom == pytest.approx(10.0)


def test_a_paired_standard_error_is_that_of_leaving_groups_out() -> None:
    """The jackknife over groups, for sums that change little: both are right to first order."""
    rng = np.random.default_rng(3)
    first = COUNTS * (1.0 + 0.01 * rng.standard_normal(6))
    second = COUNTS * (1.1 + 0.01 * rng.standard_normal(6))
    left = [math.log(np.delete(second, g).sum() / np.delete(first, g).sum()) for g in range(6)]
    jackknife = math.sqrt(5 / 6 * float(((np.array(left) - np.mean(left)) ** 2).sum()))
    made = fabricated.spectrum()
    assert block(sampled(made, first), sampled(made, second)).standard_error == pytest.approx(jackknife, rel=0.15)


def test_nothing_within_the_error_bounds_is_significant() -> None:
    made = fabricated.spectrum()
    a, b = sampled(made, SUMS), sampled(made, 1.01 * SUMS)
    assert block(a, b).significant
    loose = dataclasses.replace(b, error_bounds=np.full(3, 0.02 * b.eigenvalues[0]))
    found = block(a, loose)
    assert not found.significant and found.p_value == 1.0 and found.status == "within bounds"


def test_an_eigenvalue_that_may_have_been_missed_is_mentioned() -> None:
    made = fabricated.spectrum()
    a, b = sampled(made, SUMS), sampled(made, 1.05 * SUMS)
    assert block(a, b).status == "different"
    wide = dataclasses.replace(a, missed_above=1.2 * a.eigenvalues[0], missed_probability=0.01)
    assert block(wide, b).status == "different: unless an eigenvalue was missed, which has a probability of 1%"
    assert block(b, wide).status.startswith("different: unless")
    larger = dataclasses.replace(b, missed_above=1.2 * b.eigenvalues[0])
    assert block(a, larger).status == "different", "a still larger one would be more different"


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (fabricated.refused("fc.weight"), "it was refused in the second"),
        (fabricated.unconverged(fabricated.spectrum()), "it has not converged in the second"),
        (fabricated.spectrum(eigenvalues=np.array([-1.0, -2.0, -3.0])), "not positive in the second"),
        (fabricated.spectrum(eigenvalues=np.zeros(3), status="zero: why"), "zero in the second"),
        (fabricated.spectrum(end=("bottom",) * 3), "the second has no largest eigenvalue"),
    ],
)
def test_what_has_no_positive_converged_eigenvalue_is_not_compared(second: Spectrum, said: str) -> None:
    found = block(fabricated.spectrum(), second)
    assert found.status.startswith("not compared: ") and said in found.status
    assert math.isnan(found.log_ratio) and math.isnan(found.p_value) and not found.significant
    assert found.finished == second.solved
    record = compared(analysis(fabricated.spectrum()), analysis(second), ("a", "b"))
    assert record.finished == second.solved


def test_a_further_eigenvalue_that_has_not_converged_is_no_obstacle() -> None:
    made = sampled(fabricated.spectrum(), SUMS)
    first_only = dataclasses.replace(made, converged=np.array([True, False, True]), status="not converged: the second")
    found = block(made, first_only)
    assert found.finished and found.log_ratio == 0.0 and found.status == "within bounds"


def test_the_discovery_rate_is_held_over_all_blocks() -> None:
    """A p-value of about 0.02 is a discovery alone, and none among twenty blocks that do not differ."""
    rng = np.random.default_rng(0)

    def pair(name: str, shift: float) -> tuple[Spectrum, Spectrum]:
        noise = rng.standard_normal(6)
        noise -= (noise * COUNTS).sum() / COUNTS.sum()
        noise *= 0.1 / math.sqrt(6 / 5 * float(((noise * COUNTS / COUNTS.sum()) ** 2).sum()))
        made = fabricated.spectrum(name)
        return sampled(made, COUNTS), sampled(made, COUNTS * math.exp(shift) * (1.0 + noise))

    first, second = pair("one", 0.33)
    alone = compared(analysis(first), analysis(second), ("a", "b")).blocks["one"]
    assert alone.significant and 0.01 < alone.p_value < 0.05
    others = [pair(f"other{i}", 0.0) for i in range(20)]
    many = compared(
        analysis(first, *(a for a, _ in others)), analysis(second, *(b for _, b in others)), ("a", "b")
    ).blocks
    assert not many["one"].significant and many["one"].log_ratio == alone.log_ratio
    assert not any(b.significant for b in many.values())


def test_notes_say_what_is_paired_and_why_nothing_can_be_said() -> None:
    made = sampled(fabricated.spectrum(), SUMS)

    def notes(a: AnalysisRecord, b: AnalysisRecord) -> str:
        return "; ".join(compared(a, b, ("a", "b")).notes)

    assert "the same 6 groups" in notes(analysis(made), analysis(made))
    assert "not paired" in notes(analysis(made), analysis(made, fingerprint="other"))
    fewer = notes(analysis(made), analysis(made, fingerprint="other", examples=100))
    assert "1,437 and 100 examples" in fewer
    assert "the models differ: 9 and 10 parameters" in notes(
        analysis(made, total_numel=9), analysis(made, total_numel=10)
    )
    plain = fabricated.one(fabricated.spectrum())
    assert "no standard errors: b was made without sampling=True" in notes(analysis(made), plain)
    assert "b was stopped early" in notes(analysis(made), analysis(made, partial="interrupted"))


def test_results_that_were_saved_without_groups_are_never_paired() -> None:
    made = sampled(fabricated.spectrum(), SUMS)
    old = dataclasses.replace(made, sampling_sums=np.empty((3, 0)))
    record = compared(analysis(made), analysis(old, groups=None), ("a", "b"))
    found = record.blocks["fc.weight"]
    assert not found.paired and math.isfinite(found.standard_error)
    assert found.freedom == pytest.approx(4 / (1 / 5 + 1 / 3)), "four groups are assumed where their number is unknown"
    assert "nothing can be paired" in "; ".join(record.notes)
    unknown = compared(analysis(made, fingerprint=""), analysis(made, fingerprint=""), ("a", "b"))
    assert not unknown.blocks["fc.weight"].paired


def test_blocks_of_one_only_are_listed_and_the_full_model_is_compared() -> None:
    a, b = fabricated.analysis(), fabricated.analysis()
    blocks = {name: s for name, s in b.blocks.items() if name != "head.weight"}
    b = dataclasses.replace(b, blocks={**blocks, "extra": fabricated.spectrum("extra")})
    record = compared(a, b, ("a", "b"))
    assert record.only_first == ("head.weight",) and record.only_second == ("extra",)
    assert list(record.blocks)[-1] == "(full)" and record.blocks["(full)"].log_ratio == 0.0
    assert "head.weight" not in record.blocks


def test_densities_are_compared_where_both_are_finished() -> None:
    def density(value: float, **changes: Any) -> DensityEstimate:
        grid, none = np.linspace(-1.0, 3.0, 5), np.zeros(5)
        made = DensityEstimate(
            grid, none, none, none, 0.01, 0, 1, np.array([[value]]), np.array([[1.0]]), value, 0.0, value**2, 0.0, ""
        )
        return dataclasses.replace(made, **changes)

    def distance(first: DensityEstimate | None, second: DensityEstimate) -> float:
        a, b = (fabricated.spectrum(density=d) for d in (first, second))
        return block(a, b).divergence

    assert distance(density(0.0), density(2.0)) == pytest.approx(1.0)
    assert distance(density(1.0), density(1.0)) == 0.0
    assert math.isnan(distance(density(0.0), density(2.0, finished=False)))
    assert math.isnan(distance(None, density(2.0)))

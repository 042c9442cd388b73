"""P-values and their adjustment against SciPy and statsmodels, and over many draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from layerhess.linalg.significance import adjusted, two_sided, welch


def test_p_values_are_those_of_a_t_test() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(7) + 0.4
    truth = stats.ttest_1samp(x, 0.0).pvalue
    assert two_sided(x.mean(), 0.0, x.std(ddof=1) / math.sqrt(7), 6.0) == pytest.approx(truth, rel=1e-12)


def test_what_an_error_bound_explains_is_no_evidence() -> None:
    assert two_sided(-0.3, 0.3, 0.0, 15.0) == 1.0
    assert two_sided(-0.5, 0.3, 0.1, 15.0) == pytest.approx(two_sided(0.2, 0.0, 0.1, 15.0))
    assert two_sided(0.5, 0.3, 0.0, 15.0) == 0.0 and two_sided(0.5, math.inf, 0.1, 15.0) == 1.0
    assert math.isnan(two_sided(0.5, 0.0, math.nan, math.nan))


def test_degrees_of_freedom_are_those_of_welchs_test() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal(6), 3.0 * rng.standard_normal(15)
    found = stats.ttest_ind(x, y, equal_var=False)
    errors = [x.std(ddof=1) / math.sqrt(6), y.std(ddof=1) / math.sqrt(15)]
    assert welch(errors, [5.0, 14.0]) == pytest.approx(found.df, rel=1e-12)
    assert welch([0.0, 0.0], [5.0, 14.0]) == 5.0


@pytest.mark.parametrize("m", [1, 2, 9, 200])
def test_adjusted_p_values_are_those_of_benjamini_and_yekutieli(m: int) -> None:
    p = np.random.default_rng(m).random(m) ** 3
    assert adjusted(p) == pytest.approx(multipletests(p, method="fdr_by")[1], rel=1e-12)
    with_gaps = np.insert(p, [0, m // 2, m], np.nan)
    made = adjusted(with_gaps)
    assert np.isnan(made[np.isnan(with_gaps)]).all()
    assert made[~np.isnan(with_gaps)] == pytest.approx(adjusted(p))


def test_few_false_discoveries_among_dependent_tests() -> None:
    """Twenty tests that share half of their noise, four of which are of something: 5 % of discoveries at most."""
    rng = np.random.default_rng(2)
    false, rounds = 0.0, 2000
    for _ in range(rounds):
        common, own = rng.standard_normal((2, 16, 20))
        x = common[:, :1] * rng.choice([-1.0, 1.0], 20) + own
        x[:, :4] += 2.0
        p = np.array([two_sided(c.mean(), 0.0, c.std(ddof=1) / 4.0, 15.0) for c in x.T])
        found = adjusted(p) <= 0.05
        false += found[4:].sum() / max(found.sum(), 1)
    assert false / rounds <= 0.05

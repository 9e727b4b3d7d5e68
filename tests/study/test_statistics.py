"""Statistics of paired runs, against values computed by other means."""

import math

import numpy as np
import pytest

from deit_jax.study.statistics import detectable, equivalence_p, holm, paired, power, sign_flip_p

# Student's own data (1908): hours of sleep won by two drugs, ten patients.
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_paired_is_students_test():
    found = paired(DRUG_2, DRUG_1)
    assert found.mean == pytest.approx(1.58)
    assert found.p == pytest.approx(0.002833, abs=1e-6)  # R: t.test(extra ~ group, paired = TRUE)
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert found.seeds == 10


def test_equal_or_single_differences_have_no_interval():
    assert math.isnan(paired([1.0], [0.5]).low)
    equal = paired([40.1, 50.3, 60.7], [30.1, 40.3, 50.7])  # 10 each, but for rounding
    assert equal.mean == pytest.approx(10)
    assert math.isnan(equal.p)
    assert math.isnan(equivalence_p(equal, 1.0))


def test_sign_flips_are_counted_by_hand():
    assert sign_flip_p(np.array([1.0, 2.0, 3.0])) == 2 / 8  # only all + and all - are as far from 0
    assert sign_flip_p(np.array([1.0, 2.0, -3.0])) == 1.0
    assert sign_flip_p(np.array([3.0, 2.0, -1.0])) == 4 / 8  # |sum| >= 4: +++, ++-, and both with all signs changed
    assert math.isnan(sign_flip_p(np.ones(20)))


def test_equivalence_is_two_one_sided_tests():
    from scipy import stats

    rng = np.random.default_rng(0)
    a, b = rng.normal(50, 0.5, (2, 10)) + np.array([[0.3], [0.0]])
    sides = [stats.ttest_1samp(a - b, m, alternative=s).pvalue for m, s in ((-1, "greater"), (1, "less"))]
    assert equivalence_p(paired(a, b), 1.0) == pytest.approx(max(sides), rel=1e-4)


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}  # x 4, 3, 2, 1; never below the one before
    )
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    with_nan = holm({"a": 0.02, "b": math.nan})
    assert with_nan["a"] == 0.02
    assert math.isnan(with_nan["b"])


def test_power_is_what_simulation_finds():
    from scipy import stats

    rng = np.random.default_rng(1)
    seen = stats.ttest_1samp(rng.normal(0.6, 0.7, (10, 20000)), 0.0).pvalue < 0.05
    assert power(0.6, 0.7, 10) == pytest.approx(seen.mean(), abs=0.01)
    assert power(0.0, 0.7, 10) == pytest.approx(0.05)


def test_detectable_difference_has_the_power_asked_for():
    smallest = detectable(0.7, 10, 0.01)
    assert power(smallest, 0.7, 10, 0.01) == pytest.approx(0.8, abs=1e-6)
    assert smallest > detectable(0.7, 10) > detectable(0.7, 20)
    assert math.isnan(detectable(0.7, 1))

"""The judge's statistics, held against scipy and against hand-made numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from amdahl_loop.domain import stats


@pytest.mark.parametrize("df", [1, 2, 3, 5, 7, 11, 20, 59, 300])
@pytest.mark.parametrize("probability", [0.005, 0.1, 0.5, 0.9, 0.975, 0.9944, 0.995, 0.9995])
def test_t_quantile_equals_scipy(probability: float, df: int) -> None:
    """The quantiles that looks, bounds and intervals use agree with scipy to nine digits."""
    assert stats.t_quantile(probability, df) == pytest.approx(reference.t.ppf(probability, df), rel=1e-9, abs=1e-12)


@given(t=st.floats(-60, 60), df=st.integers(1, 200))
def test_t_cdf_equals_scipy(t: float, df: int) -> None:
    """The distribution function agrees with scipy; below 1e-6 it is scipy that is 2.4e-9 off, as the next test shows."""
    assert stats.t_cdf(t, df) == pytest.approx(reference.t.cdf(t, df), abs=1e-10 if abs(t) >= 1e-6 else 1e-8)


@given(t=st.floats(-1e6, 1e6))
def test_t_cdf_of_one_degree_is_exact(t: float) -> None:
    """One degree of freedom is Cauchy's law, whose distribution function is an arc tangent."""
    assert stats.t_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-13)


@pytest.mark.parametrize("shape", [1, 2, 5, 40, 400])
@pytest.mark.parametrize("probability", [0.05, 0.5, 0.95])
def test_gamma_quantile_equals_scipy(probability: float, shape: int) -> None:
    """The belief about interruption rates has scipy's ends."""
    expected = reference.gamma.ppf(probability, shape, scale=1 / 86400)
    assert stats.gamma_quantile(probability, shape, 86400.0) == pytest.approx(expected, rel=1e-9)


@given(trials=st.integers(0, 40), data=st.data())
def test_sign_test_equals_the_binomial_tail(trials: int, data: st.DataObject) -> None:
    """Chance of at least so many heads."""
    hits = data.draw(st.integers(0, trials))
    assert stats.sign_test(hits, trials) == pytest.approx(reference.binom.sf(hits - 1, trials, 0.5), abs=1e-12)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20))
def test_bounds_equal_those_of_a_t_test(values: list[float]) -> None:
    """Mean, standard error and one-sided bounds are the textbook's."""
    found = stats.estimate(values)
    assert found.mean == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert found.se == pytest.approx(reference.sem(values) if len(set(values)) > 1 else 0.0, abs=1e-9)
    reach = float(reference.t.ppf(0.95, len(values) - 1)) * found.se
    assert found.lower(0.05) == pytest.approx(found.mean - reach, abs=1e-9)
    assert found.interval(0.90) == pytest.approx((found.mean - reach, found.mean + reach), abs=1e-9)


def test_one_value_bounds_nothing() -> None:
    """Without a spread every bound is infinite, so nothing can be proven with one block."""
    found = stats.estimate([0.5])
    assert (found.lower(0.1), found.upper(0.1)) == (-math.inf, math.inf)


def test_pooled_spread_ignores_differences_between_groups() -> None:
    """Each group is taken about its own mean; groups of one say nothing."""
    assert stats.pooled_sd([[0.0, 2.0], [10.0, 12.0], [99.0]]) == (pytest.approx(math.sqrt(2)), 2)
    assert stats.pooled_sd([[1.0], [2.0]]) == (math.inf, 0)


def test_pair_spread_halves_the_variance_of_a_difference() -> None:
    """Differences of equal pairs have twice the variance of one value."""
    assert stats.pair_sd([0.02, -0.02]) == pytest.approx(0.02 / math.sqrt(2))
    assert stats.pair_sd([]) == math.inf


@pytest.mark.parametrize(("values", "middle"), [([3.0], 3.0), ([1.0, 9.0, 2.0], 2.0), ([4.0, 1.0, 2.0, 3.0], 2.5)])
def test_median(values: list[float], middle: float) -> None:
    """Middle value, or the mean of the middle two."""
    assert stats.median(values) == middle


@pytest.mark.parametrize("broken", [lambda: stats.mean([]), lambda: stats.median([])])
def test_no_values_are_refused(broken: object) -> None:
    """A mean of nothing is a broken contract, not a zero."""
    assert callable(broken)
    with pytest.raises(ValueError, match="no values"):
        broken()


@pytest.mark.parametrize(("probability", "df"), [(0.0, 3), (1.0, 3), (0.5, 0)])
def test_impossible_quantiles_are_refused(probability: float, df: int) -> None:
    """The error names what was asked."""
    with pytest.raises(ValueError, match="undefined"):
        stats.t_quantile(probability, df)
    with pytest.raises(ValueError, match="undefined"):
        stats.gamma_quantile(probability, df, 1.0)

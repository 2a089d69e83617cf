"""How far may a handful of noisy numbers be trusted?

Student's t, the binomial sign test and the gamma law, in plain arithmetic: the judge needs four distributions and no
numerical library. Tests hold every function against scipy. Source of the algorithms: Press et al., Numerical Recipes,
section 6 (continued fraction of the incomplete beta function).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

_TINY = 1e-300
_FRACTION_TERMS = 500
_BISECTIONS = 200


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its standard error and degrees of freedom; without a spread the bounds are infinite."""

    mean: float
    se: float
    df: int

    def lower(self, alpha: float) -> float:
        """One-sided lower bound of the mean at level 1 - alpha."""
        return self.mean - self._reach(alpha)

    def upper(self, alpha: float) -> float:
        """One-sided upper bound of the mean at level 1 - alpha."""
        return self.mean + self._reach(alpha)

    def interval(self, level: float) -> tuple[float, float]:
        """Two-sided interval of the mean."""
        alpha = (1 - level) / 2
        return self.lower(alpha), self.upper(alpha)

    def _reach(self, alpha: float) -> float:
        return t_quantile(1 - alpha, self.df) * self.se if self.df >= 1 else math.inf


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; ValueError without values."""
    if not values:
        raise ValueError("the mean of no values is undefined")
    return math.fsum(values) / len(values)


def median(values: Iterable[float]) -> float:
    """Middle value, or the mean of the two middle ones; ValueError without values."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("the median of no values is undefined")
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def squared_deviations(values: Sequence[float]) -> float:
    """Sum of squared deviations from the mean."""
    centre = mean(values)
    return math.fsum((value - centre) ** 2 for value in values)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean of independent values, its standard error from their own spread."""
    df = len(values) - 1
    if df < 1:
        return Estimate(mean(values), math.inf, 0)
    return Estimate(mean(values), math.sqrt(squared_deviations(values) / df / len(values)), df)


def pooled_sd(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Standard deviation within groups and its degrees of freedom; (inf, 0) where no group has two values."""
    useful = [group for group in groups if len(group) > 1]
    df = sum(len(group) - 1 for group in useful)
    if df == 0:
        return math.inf, 0
    return math.sqrt(math.fsum(squared_deviations(group) for group in useful) / df), df


def pair_sd(gaps: Sequence[float]) -> float:
    """Standard deviation of one value, from differences of pairs that should be equal: var(x - y) = 2 var(x)."""
    if not gaps:
        return math.inf
    return math.sqrt(math.fsum(gap * gap for gap in gaps) / (2 * len(gaps)))


def sign_test(hits: int, trials: int) -> float:
    """One-sided p value: chance of at least `hits` heads in `trials` fair coins."""
    return math.fsum(math.comb(trials, k) for k in range(hits, trials + 1)) / 2.0**trials


def t_cdf(t: float, df: int) -> float:
    """Distribution function of Student's t with `df` degrees of freedom."""
    square = t * t
    if square < df:
        centre = 0.5 * _incomplete_beta(0.5, df / 2, square / (df + square))
        return 0.5 + math.copysign(centre, t)
    tail = 0.5 * _incomplete_beta(df / 2, 0.5, df / (df + square))
    return 1 - tail if t > 0 else tail


@lru_cache(maxsize=4096)
def t_quantile(probability: float, df: int) -> float:
    """Quantile of Student's t; ValueError outside 0 < probability < 1 or below one degree of freedom."""
    if not 0 < probability < 1 or df < 1:
        raise ValueError(f"t quantile of probability {probability} with {df} degrees of freedom is undefined")
    if probability < 0.5:
        return -t_quantile(1 - probability, df)
    high = 1.0
    while t_cdf(high, df) < probability:
        high *= 2
    return _bisect(lambda t: t_cdf(t, df), probability, high)


@lru_cache(maxsize=4096)
def gamma_quantile(probability: float, shape: int, rate: float) -> float:
    """Quantile of the gamma law with whole shape: its distribution function is a Poisson tail."""
    if not 0 < probability < 1 or shape < 1 or rate <= 0:
        raise ValueError(f"gamma quantile of probability {probability}, shape {shape}, rate {rate} is undefined")
    high = 1.0
    while _gamma_cdf(high, shape) < probability:
        high *= 2
    return _bisect(lambda x: _gamma_cdf(x, shape), probability, high) / rate


def _gamma_cdf(x: float, shape: int) -> float:
    """1 - P(Poisson(x) < shape), each term through its logarithm so that long exposures do not overflow."""
    if x <= 0:
        return 0.0
    return 1 - math.fsum(math.exp(k * math.log(x) - x - math.lgamma(k + 1)) for k in range(shape))


def _bisect(rising: Callable[[float], float], target: float, high: float) -> float:
    low = 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b), from the side on which its continued fraction converges fast."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x < (a + 1) / (a + b + 2):
        return math.exp(log_front) * _beta_fraction(a, b, x) / a
    return 1 - math.exp(log_front) * _beta_fraction(b, a, 1 - x) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function by Lentz's method."""
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _FRACTION_TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY

"""Statistics of runs that are paired by seed: difference and interval, tests, correction over a family, power."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
EXACT = 14  # pairs up to which all sign flips are enumerated


class Paired(NamedTuple):
    """The difference between two arms over the seeds that both have; nan where one seed, or equal differences, do not
    tell.

    mean, low, high: of the difference, with its 95 % confidence interval (Student's t). deviation: of the differences.
    p: two-sided paired t-test; p_flips: the exact sign-flip permutation test.
    """

    mean: float
    low: float
    high: float
    deviation: float
    p: float
    p_flips: float
    seeds: int

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.deviation / math.sqrt(self.seeds)


def paired(values: Sequence[float], others: Sequence[float]) -> Paired:
    """values - others, pair by pair."""
    difference = np.round(np.subtract(values, others), 6)  # equal differences are equal, whatever their last bits
    n, mean = len(difference), float(difference.mean())
    if n < 2 or not np.ptp(difference):
        return Paired(mean, math.nan, math.nan, math.nan, math.nan, math.nan, n)
    deviation = float(difference.std(ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / math.sqrt(n)
    test: Any = stats.ttest_1samp(difference, 0.0)
    p = float(test.pvalue)
    return Paired(mean, mean - half, mean + half, deviation, p, sign_flip_p(difference), n)


def sign_flip_p(difference: np.ndarray) -> float:
    """Two-sided p of the exact permutation test: the share of all sign patterns whose |sum| is at least the one seen.

    nan above `EXACT` pairs. Its smallest value is 2 / 2^n: with fewer than six pairs it cannot fall below 0.05.
    """
    if len(difference) > EXACT:
        return math.nan
    signs = np.array(list(itertools.product((1, -1), repeat=len(difference))))
    sums = np.abs(signs @ difference)
    return float((sums >= abs(difference.sum()) - 1e-9).mean())


def equivalence_p(result: Paired, margin: float) -> float:
    """p of the two one-sided t-tests (Schuirmann 1987) that the mean difference lies within ± margin."""
    if math.isnan(result.deviation):
        return math.nan
    inside = (margin - abs(result.mean)) / result.error  # the side that is nearer decides
    return float(stats.t.sf(inside, result.seeds - 1))


def holm(p: dict[str, float]) -> dict[str, float]:
    """p-values corrected over their family (Holm 1979); nan stays nan and does not count."""
    known = sorted((value, name) for name, value in p.items() if not math.isnan(value))
    corrected, largest = dict.fromkeys(p, math.nan), 0.0
    for i, (value, name) in enumerate(known):
        largest = max(largest, min(1.0, value * (len(known) - i)))
        corrected[name] = largest
    return corrected


def power(difference: float, deviation: float, seeds: int, alpha: float = 0.05) -> float:
    """Probability that a two-sided paired t-test at level alpha sees a true difference."""
    edge = stats.t.ppf(1 - alpha / 2, seeds - 1)
    shift = difference * math.sqrt(seeds) / deviation
    return float(stats.nct.sf(edge, seeds - 1, shift) + stats.nct.cdf(-edge, seeds - 1, shift))


def detectable(deviation: float, seeds: int, alpha: float = 0.05, wanted: float = 0.8) -> float:
    """The smallest true difference that the paired t-test sees with probability `wanted`; nan for one seed."""
    if seeds < 2 or not deviation > 0:
        return math.nan
    low, high = 0.0, 100 * deviation
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, deviation, seeds, alpha) < wanted else (low, middle)
    return high

"""The five claims of the paper that the study tests, with the rule for each, a family for Holm's correction; and the
statistics of runs that are paired by seed.

The rules were fixed before the study was seen (PLAN.md).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from deit_jax import models
from deit_jax.ablate import Scores, by_head

ALPHA = 0.05
MARGIN = 1.0  # points of top-1 within which two arms count as equal

Side = tuple[str, str]  # arm, head


class Paired(NamedTuple):
    """The difference between two arms over the seeds that both have; nan for one seed, and without variance.

    mean, low, high: of the difference, with its 95 % confidence interval (Student's t). deviation: of the differences.
    p: two-sided paired t-test; p_flips: exact sign-flip permutation test, at least 2 / 2^seeds.
    """

    mean: float
    low: float
    high: float
    deviation: float
    p: float
    p_flips: float
    seeds: int


def paired(values: Sequence[float], others: Sequence[float]) -> Paired:
    """values - others, pair by pair."""
    difference = np.round(np.subtract(values, others), 6)  # equal differences are equal, whatever their last bits
    n, mean = len(difference), float(difference.mean())
    if n < 2 or not np.ptp(difference):
        return Paired(mean, math.nan, math.nan, math.nan, math.nan, math.nan, n)
    test: Any = stats.ttest_1samp(difference, 0.0)
    low, high = test.confidence_interval()
    flips = stats.permutation_test((difference,), np.mean, permutation_type="samples", n_resamples=np.inf)
    deviation = float(difference.std(ddof=1))
    return Paired(mean, float(low), float(high), deviation, float(test.pvalue), float(flips.pvalue), n)


def equivalence_p(result: Paired, margin: float) -> float:
    """p of the two one-sided t-tests (Schuirmann 1987) that the mean difference lies within ± margin."""
    if math.isnan(result.deviation):
        return math.nan
    inside = (margin - abs(result.mean)) * math.sqrt(result.seeds) / result.deviation  # the nearer side decides
    return float(stats.t.sf(inside, result.seeds - 1))


def detectable(deviation: float, seeds: int, alpha: float = ALPHA, power: float = 0.8) -> float:
    """The smallest true difference that the paired t-test detects with probability `power`; nan for one seed."""
    if seeds < 2 or not deviation > 0:
        return math.nan
    return deviation * float(TTestPower().solve_power(nobs=seeds, alpha=alpha, power=power))


class Claim(NamedTuple):
    """`better` - `worse` is above 0, or with `equal`, within ± MARGIN. paper: the difference in its Tables 2 and 3."""

    name: str
    better: Side
    worse: Side
    paper: str
    equal: bool = False


class Verdict(NamedTuple):
    """p: of the claim's test, corrected over the family. detectable: the smallest difference with 80 % power, at the
    level of a test by itself and at the strictest of Holm's."""

    claim: Claim
    found: Paired
    p: float
    verdict: str
    detectable: tuple[float, float]


def claims(arms: list[str]) -> list[Claim]:
    """Those of the five whose arms the study has."""
    plain, hard, soft = (("none", "cls"), ("hard_no_token", "cls"), ("soft_no_token", "cls"))
    known = [
        Claim("hard distillation > none", hard, plain, "+2.1 / +1.1 / +1.2 (Ti / S / B)"),
        Claim("soft distillation ≈ none", soft, plain, "0.0 / 0.0 / 0.0", equal=True),
        Claim("hard > soft", hard, soft, "+2.1 / +1.1 / +1.2"),
        Claim("token with fusion ≥ hard without token", ("hard", "fused"), hard, "+0.2 / +0.3 / +0.4"),
    ]
    for conv, transformer in rivals(arms):
        name = "ConvNet teacher > transformer teacher of equal accuracy"
        known.append(Claim(name, (conv, "fused"), (transformer, "fused"), "+0.8 (B; teachers of 81.7 and 81.8)"))
    return [c for c in known if {c.better[0], c.worse[0]} <= set(arms)]


def rivals(arms: list[str]) -> list[Side]:
    """The arms (distilled from a ConvNet, from a transformer) of one kind that name teachers of their own."""

    def is_transformer(arm: str) -> bool:
        return issubclass(models.find(arm.partition("@")[2].partition(":")[0])[0], models.vit.ViT)

    named = [arm for arm in arms if "@" in arm]
    return [
        (a, b)
        for a, b in itertools.permutations(named, 2)
        if a.partition("@")[0] == b.partition("@")[0] and not is_transformer(a) and is_transformer(b)
    ][:1]


def difference(scores: Scores, side: Side, other: Side, fusion: str) -> Paired | None:
    """Over the seeds that both have; None where there is none."""
    a, b = (by_head(scores.get(arm, {}), head, fusion) for arm, head in (side, other))
    seeds = sorted(a.keys() & b.keys())
    return paired([a[s] for s in seeds], [b[s] for s in seeds]) if seeds else None


def decide(scores: Scores, fusion: str) -> list[Verdict]:
    """Each claim of the study: tested, corrected over the family, decided or not."""
    found = [(c, difference(scores, c.better, c.worse, fusion)) for c in claims(list(scores))]
    found = [(c, d) for c, d in found if d]
    raw = np.array([equivalence_p(d, MARGIN) if c.equal else d.p for c, d in found])
    corrected, known = raw.copy(), ~np.isnan(raw)
    if known.any():
        corrected[known] = multipletests(raw[known], method="holm")[1]
    out = []
    for (claim, d), p in zip(found, corrected.tolist(), strict=True):
        alone, strictest = (detectable(d.deviation, d.seeds, alpha) for alpha in (ALPHA, ALPHA / len(found)))
        out.append(Verdict(claim, d, p, verdict(claim, d, p), (alone, strictest)))
    return out


def verdict(claim: Claim, found: Paired, p: float) -> str:
    """decided, contradicted or not decided. A claim of equality is contradicted where the whole interval lies outside
    ± MARGIN; a claim of a difference, where the opposite difference is significant."""
    if math.isnan(p):
        return "not decided"
    if claim.equal:
        outside = found.low > MARGIN or found.high < -MARGIN
        return "decided" if p < ALPHA else "contradicted" if outside else "not decided"
    if p >= ALPHA:
        return "not decided"
    return "decided" if found.mean > 0 else "contradicted"

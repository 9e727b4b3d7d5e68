"""The five claims of the paper that a study decides, with the rule for each; a family for Holm's correction.

The rules were fixed before the study of results/cifar10 was seen (results/cifar10/PLAN.md).
"""

import itertools
import math
from typing import NamedTuple

from deit_jax import models
from deit_jax.study import statistics
from deit_jax.study.statistics import Paired

ALPHA = 0.05
MARGIN = 1.0  # points of top-1 within which two arms count as equal

Side = tuple[str, str]  # arm, head
Scores = dict[str, dict[int, dict[str, float]]]  # arm, seed, head → top-1


class Claim(NamedTuple):
    """`better` - `worse` is above 0, or with `equal`, within ± MARGIN. paper: the difference in its Tables 2 and 3."""

    name: str
    better: Side
    worse: Side
    paper: str
    equal: bool = False


class Decision(NamedTuple):
    """p: of the claim's test, corrected over the family. seen: the smallest difference with 80 % power, at the level of
    a test by itself and at the strictest of Holm's."""

    claim: Claim
    found: Paired
    p: float
    verdict: str
    seen: tuple[float, float]


def claims(arms: list[str]) -> list[Claim]:
    """Those of the five whose arms the study has."""
    known = [
        Claim("hard distillation > none", ("hard_no_token", "cls"), ("none", "cls"), "+2.1 / +1.1 / +1.2 (Ti / S / B)"),
        Claim("soft distillation ≈ none", ("soft_no_token", "cls"), ("none", "cls"), "0.0 / 0.0 / 0.0", equal=True),
        Claim("hard > soft", ("hard_no_token", "cls"), ("soft_no_token", "cls"), "+2.1 / +1.1 / +1.2"),
        Claim(
            "token with fusion ≥ hard without token", ("hard", "fused"), ("hard_no_token", "cls"), "+0.2 / +0.3 / +0.4"
        ),
    ]
    for conv, transformer in rivals(arms):
        name = "ConvNet teacher > transformer teacher of equal accuracy"
        known.append(Claim(name, (conv, "fused"), (transformer, "fused"), "+0.8 (B; teachers of 81.7 and 81.8)"))
    return [c for c in known if {c.better[0], c.worse[0]} <= set(arms)]


def rivals(arms: list[str]) -> list[Side]:
    """The arms (taught by a ConvNet, taught by a transformer) of one kind that name teachers of their own."""

    def is_transformer(arm: str) -> bool:
        return issubclass(models.find(arm.partition("@")[2].partition(":")[0])[0], models.vit.ViT)

    named = [arm for arm in arms if "@" in arm]
    return [
        (a, b)
        for a, b in itertools.permutations(named, 2)
        if a.partition("@")[0] == b.partition("@")[0] and not is_transformer(a) and is_transformer(b)
    ][:1]


def by_head(runs: dict[int, dict[str, float]], head: str, fusion: str) -> dict[int, float]:
    """{seed: top-1} of a head; the fused prediction of a model with one head is that head's. {} where there is none."""
    key = f"fused_{fusion}" if head == "fused" else head
    return {
        seed: heads[key] if key in heads else heads["cls"]
        for seed, heads in runs.items()
        if key in heads or head == "fused"
    }


def difference(scores: Scores, side: Side, other: Side, fusion: str) -> Paired | None:
    """Over the seeds that both have; None where there is none."""
    a, b = (by_head(scores.get(arm, {}), head, fusion) for arm, head in (side, other))
    seeds = sorted(a.keys() & b.keys())
    return statistics.paired([a[s] for s in seeds], [b[s] for s in seeds]) if seeds else None


def decide(scores: Scores, fusion: str) -> list[Decision]:
    """Each claim of the study: tested, corrected over the family, decided or not."""
    found = [(c, difference(scores, c.better, c.worse, fusion)) for c in claims(list(scores))]
    found = [(c, d) for c, d in found if d]
    raw = {c.name: statistics.equivalence_p(d, MARGIN) if c.equal else d.p for c, d in found}
    corrected = statistics.holm(raw)
    out = []
    for claim, d in found:
        p = corrected[claim.name]
        seen = [statistics.detectable(d.deviation, d.seeds, alpha) for alpha in (ALPHA, ALPHA / len(found))]
        out.append(Decision(claim, d, p, verdict(claim, d, p), (seen[0], seen[1])))
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

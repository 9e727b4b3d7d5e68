"""The paper's claims: which are asked, how they are decided."""

import math

import pytest

from deit_jax.study.claims import MARGIN, Claim, by_head, claims, decide, rivals, verdict
from deit_jax.study.statistics import Paired, paired

CONV, TRANSFORMER = "hard@regnety_digits:17", "hard@deit_digits_patch4_16:28"
A, B = ("a", "cls"), ("b", "cls")


def two_heads(top1: float, fused: float) -> dict[str, float]:
    return {"cls": top1, "dist": top1, "fused_logits": fused}


@pytest.fixture
def scores():
    noise = [0.1, -0.2, 0.3, 0.0, -0.1, 0.2]
    return {
        "none": {s: {"cls": 50.0 + x} for s, x in enumerate(noise)},
        "soft_no_token": {s: {"cls": 50.1 - x} for s, x in enumerate(noise)},
        "hard_no_token": {s: {"cls": 53.0 + 2 * x} for s, x in enumerate(noise)},
        "hard": {s: two_heads(40.0, 53.0 - 5 * x) for s, x in enumerate(noise)},
        CONV: {s: two_heads(60.0, 52.0 + x) for s, x in enumerate(noise)},
        TRANSFORMER: {s: two_heads(40.0, 54.0 - x) for s, x in enumerate(noise)},
    }


def test_each_claim_is_decided_by_its_rule(scores):
    found = {d.claim.name.split(" ")[0]: d for d in decide(scores, "logits")}
    assert {name: d.verdict for name, d in found.items()} == {
        "hard": "decided",
        "soft": "decided",
        "token": "not decided",
        "ConvNet": "contradicted",
    }
    assert found["ConvNet"].found.mean == pytest.approx(-1.9)
    assert len(decide(scores, "logits")) == 5


def test_p_is_corrected_over_the_family(scores):
    d = next(d for d in decide(scores, "logits") if d.claim.name.startswith("token"))
    assert d.p == pytest.approx(d.found.p)  # the largest of five is left as it is
    others = [d for d in decide(scores, "logits") if not d.claim.equal]
    smallest = min(others, key=lambda d: d.found.p)
    assert smallest.p > smallest.found.p


def test_only_what_a_study_has_is_asked(scores):
    assert [c.name for c in claims(["none", "hard_no_token"])] == ["hard distillation > none"]
    assert claims(["none"]) == decide({"none": scores["none"]}, "logits") == []
    assert rivals(list(scores)) == [(CONV, TRANSFORMER)]
    assert rivals([TRANSFORMER, "hard", CONV]) == [(CONV, TRANSFORMER)]
    assert rivals([CONV, "hard@regnety_cifar:3"]) == []


@pytest.mark.parametrize(
    ("values", "p", "expected"),
    [
        ([0.2, -0.1, 0.1], 0.01, "decided"),
        ([3.0, 3.1, 2.9], 1.0, "contradicted"),
        ([3.0, -2.9, 2.9], 1.0, "not decided"),
    ],
)
def test_a_claim_of_equality(values, p, expected):
    found = paired(values, [0.0] * len(values))
    assert verdict(Claim("a ≈ b", A, B, "", equal=True), found, p) == expected
    assert MARGIN == 1.0  # as written down before the study


def test_one_seed_decides_nothing():
    unknown = Paired(5.0, math.nan, math.nan, math.nan, math.nan, math.nan, 1)
    assert verdict(Claim("a > b", A, B, ""), unknown, math.nan) == "not decided"


def test_a_model_with_one_head_is_its_own_fusion(scores):
    assert by_head(scores["none"], "dist", "logits") == {}
    assert by_head(scores["none"], "fused", "logits")[0] == 50.1
    assert by_head(scores["hard"], "fused", "logits")[0] == 52.5

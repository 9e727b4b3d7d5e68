"""The CIFAR-10 study: which claims are tested, how they are decided; its report from the committed records."""

import importlib
import json
import math
import shutil

import numpy as np
import pytest
from helpers import ROOT
from scipy import stats

from deit_jax.ablate import ARMS, by_head

pytest.importorskip("statsmodels", reason="needs statsmodels: the study's report alone does")


def load(name: str):
    """A module of results/cifar10, which is a folder of scripts."""
    folder = ROOT / "results/cifar10"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        return importlib.import_module(name)


study, report = load("claims"), load("report")
MARGIN, Claim, Paired = study.MARGIN, study.Claim, study.Paired
claims, decide, detectable, equivalence_p = study.claims, study.decide, study.detectable, study.equivalence_p
paired, rivals, verdict = study.paired, study.rivals, study.verdict

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


def test_sign_flips_are_counted_by_hand():
    zero = [0.0, 0.0, 0.0]
    assert paired([1.0, 2.0, 3.0], zero).p_flips == 2 / 8  # only all + and all - are as far from 0
    assert paired([1.0, 2.0, -3.0], zero).p_flips == 1.0
    assert paired([3.0, 2.0, -1.0], zero).p_flips == 4 / 8  # |sum| >= 4: +++, ++-, and both with all signs changed


def test_equivalence_is_two_one_sided_tests():
    rng = np.random.default_rng(0)
    a, b = rng.normal(50, 0.5, (2, 10)) + np.array([[0.3], [0.0]])
    sides = [stats.ttest_1samp(a - b, m, alternative=s).pvalue for m, s in ((-1, "greater"), (1, "less"))]
    assert equivalence_p(paired(a, b), 1.0) == pytest.approx(max(sides), rel=1e-4)
    assert math.isnan(equivalence_p(paired([1.0], [0.5]), 1.0))


def test_the_detectable_difference_is_what_simulation_finds():
    rng = np.random.default_rng(1)
    smallest = detectable(0.7, 10)
    found = stats.ttest_1samp(rng.normal(smallest, 0.7, (10, 20000)), 0.0).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.01)
    assert detectable(0.7, 10, 0.01) > smallest > detectable(0.7, 20)
    assert math.isnan(detectable(0.7, 1))


def test_the_committed_report_is_that_of_the_committed_records(tmp_path):
    committed = ROOT / "results/cifar10"
    shutil.copy(committed / "ablation.json", tmp_path)
    report.write(committed / "runs", tmp_path)
    assert set(report.LABELS) == set(ARMS)
    written, text = (tmp_path / "ablation.md").read_text(), (committed / "ablation.md").read_text()
    settings = text.index("Settings that differ")  # from the defaults of today
    assert written[: written.index("Settings that differ")] == text[:settings]
    scores = json.loads((committed / "ablation.json").read_text())["scores"]
    assert json.loads((tmp_path / "ablation.json").read_text())["scores"] == scores
    assert (tmp_path / "runs/hard-0/done.json").read_text() == (committed / "runs/hard-0/done.json").read_text()


def test_only_seeds_that_every_arm_has_are_reported():
    scores = {"none": {0: {"cls": 1.0}, 1: {"cls": 2.0}}, "hard": {0: {"cls": 3.0}}, "hard_live": {}}
    assert report.complete(scores) == ({"none": {0: {"cls": 1.0}}, "hard": {0: {"cls": 3.0}}, "hard_live": {}}, [1])
    assert report.complete({}) == ({}, [])

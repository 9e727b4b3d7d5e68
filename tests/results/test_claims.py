"""The CIFAR-10 study: which claims are tested, how they are decided; its report from the committed records."""

import importlib
import json
import shutil

import pytest
from helpers import ROOT

from deit_jax.ablate import ARMS

pytest.importorskip("statsmodels", reason="needs statsmodels: the study's report alone does")


def load(name: str):
    """A module of results/cifar10, which is a folder of scripts."""
    folder = ROOT / "results/cifar10"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        return importlib.import_module(name)


study, report = load("claims"), load("report")
MARGIN, Claim, Paired = study.MARGIN, study.Claim, study.Paired
claims, decide = study.claims, study.decide
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
    assert [found[name].verdict for name in ("hard", "soft")] == ["decided"] * 2
    assert (found["token"].verdict, found["ConvNet"].verdict) == ("not decided", "contradicted")
    assert found["ConvNet"].found.mean == pytest.approx(-1.9)
    assert len(decide(scores, "logits")) == 5


def test_p_is_corrected_over_the_family(scores):
    d = next(d for d in decide(scores, "logits") if d.claim.name.startswith("token"))
    assert d.p == pytest.approx(d.found.p)  # the largest of five is left as it is
    others = [d for d in decide(scores, "logits") if not d.claim.equal]
    smallest = min(others, key=lambda d: d.found.p)
    assert smallest.p > smallest.found.p


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


def test_sign_flips_are_counted_by_hand():
    zero = [0.0, 0.0, 0.0]
    assert paired([1.0, 2.0, 3.0], zero).p_flips == 2 / 8  # only all + and all - are as far from 0
    assert paired([1.0, 2.0, -3.0], zero).p_flips == 1.0
    assert paired([3.0, 2.0, -1.0], zero).p_flips == 4 / 8  # |sum| >= 4: +++, ++-, and both with all signs changed


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

"""The CIFAR-10 study: its exact test by hand; its report from the committed records."""

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


def test_sign_flips_are_counted_by_hand():
    zero = [0.0, 0.0, 0.0]
    paired = study.paired
    assert paired([1.0, 2.0, 3.0], zero).p_flips == 2 / 8  # only all + and all - are as far from 0
    assert paired([1.0, 2.0, -3.0], zero).p_flips == 1.0
    assert paired([3.0, 2.0, -1.0], zero).p_flips == 4 / 8  # |sum| >= 4: +++, ++-, and both with all signs changed


@pytest.mark.slow
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
    scores = {"none": {0: {"cls": 1.0}, 1: {"cls": 2.0}}, "hard": {0: {"cls": 3.0}}}
    assert report.complete(scores) == ({"none": {0: {"cls": 1.0}}, "hard": {0: {"cls": 3.0}}}, [1])
    assert report.complete({}) == ({}, [])

"""Runs of several processes against the same run of one: 1 → 2 → 4 → 1, weights split over all of them (FSDP).

One process with eight devices trains the first epoch; two processes with Slurm's variables train the second, label and
do a study; four, started by hand, train half of the third and evaluate, and one ends it. Groups are started
once, and every test reads what they found.
"""

import shutil

import numpy as np
import pytest
from process_group import (
    STEPS_PER_EPOCH,
    as_started_by_hand,
    as_started_by_slurm,
    run_group,
    small_config,
    store_labels,
    train_until,
)

from deit_jax.distill.label_store import LabelStore
from deit_jax.train.log import read_log
from deit_jax.train.loop import train_run

pytestmark = [pytest.mark.slow, pytest.mark.long_runs]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(folder, {"two", "four": what each process of the group found}, {"alone", "split": results of the run in one
    piece and of the one in four})."""
    folder = tmp_path_factory.mktemp("processes")
    train_until(STEPS_PER_EPOCH, folder / "split")
    shutil.copytree(folder / "split", folder / "alone")
    alone = train_run(small_config(), folder / "alone")
    fsdp = {"mesh.fsdp": -1}
    two = [
        ("train_until", (2 * STEPS_PER_EPOCH, folder / "split"), fsdp),
        ("store_labels", (folder / "alone", folder / "labels"), {}),
        ("study", (folder / "study",), {}),
    ]
    four = [
        ("train_until", (2 * STEPS_PER_EPOCH + 2, folder / "split"), fsdp),
        ("evaluate", (folder / "alone",), {}),
    ]
    groups = {
        "two": run_group(2, as_started_by_slurm, two, folder / "two"),
        "four": run_group(4, as_started_by_hand, four, folder / "four"),
    }
    return folder, groups, {"alone": alone, "split": train_until(0, folder / "split")}


@pytest.mark.parametrize(("group", "count"), [("two", 2), ("four", 4)])
def test_each_process_has_one_device_of_all(runs, group, count):
    found = runs[1][group]
    assert [(one["processes"], one["devices"]) for one in found] == [(count, [count, 1])] * count


def test_training_goes_on_over_other_numbers_of_processes(runs):
    folder, _, _ = runs
    split, alone = ([r for r in read_log(folder / name) if "loss" in r] for name in ("split", "alone"))
    assert [r["step"] for r in split] == [r["step"] for r in alone] == list(range(1, 3 * STEPS_PER_EPOCH + 1))
    np.testing.assert_allclose([r["loss"] for r in split], [r["loss"] for r in alone], rtol=1e-5)
    np.testing.assert_allclose([r["grad_norm"] for r in split], [r["grad_norm"] for r in alone], rtol=1e-4)


def test_several_processes_evaluate_to_the_same_counts_as_one(runs):
    """50 images in batches of 16, of which the processes share out the last one unevenly."""
    _, groups, results = runs
    found, *others = (one["evaluate"] for one in groups["four"])
    assert others == [found] * len(others)
    for kind in ("params", "ema"):
        assert found[kind]["images"] == results["alone"][kind]["images"] == 50
        assert found[kind]["top1"] == results["alone"][kind]["top1"]
        assert found[kind]["loss"] == pytest.approx(results["alone"][kind]["loss"], rel=1e-4)


def test_two_processes_do_a_study_together(runs):
    folder, groups, _ = runs
    first, second = (one["study"] for one in groups["two"])
    assert first == second
    assert first.keys() == {"cls", "dist", "fused_logits", "fused_probabilities"}
    assert (folder / "study/results/ablation.md").is_file()
    assert {p.parent.name for p in folder.glob("study/**/done.json")} == {"teacher", "teacher-0-hard", "hard-0"}


def test_one_process_ends_what_four_have_saved(runs):
    _, _, results = runs
    for kind in ("params", "ema"):
        assert results["split"][kind]["loss"] == pytest.approx(results["alone"][kind]["loss"], rel=1e-4)
        assert results["split"][kind]["images"] == 50


def test_labels_of_two_processes_are_those_of_one(runs):
    folder, _, _ = runs
    store_labels(folder / "alone", folder / "labels of one")
    two, one = LabelStore(folder / "labels"), LabelStore(folder / "labels of one")
    assert two.header == one.header
    same = [two.read(step)["label"] == one.read(step)["label"] for step in range(72)]
    assert np.mean(same) > 0.999

"""The report's table of different predictions, the tokens' cosine."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import TINY_PLAIN, whole_config

from deit_jax import models
from deit_jax.augment import normalize
from deit_jax.report import run_report
from deit_jax.report.run_report import (
    disagreement,
    measure_disagreement,
    predict_student,
    teacher_predictions,
    token_cosine,
)
from deit_jax.train.run import PixelStatistics, open_run, open_teacher
from deit_jax.weights.orbax import read_weights

pytestmark = pytest.mark.long_runs  # as `whole_run`


def test_disagreement_is_the_share_of_other_decisions():
    found = disagreement({"a": np.array([0, 1, 2, 3]), "b": np.array([0, 1, 2, 0]), "c": np.array([1, 2, 3, 4])})
    assert found["a"] == {"a": 0.0, "b": 25.0, "c": 100.0}
    assert all(found[x][y] == found[y][x] for x in "abc" for y in "abc")


def test_cosine_is_one_for_equal_tokens_and_follows_the_blocks():
    build = models.constructor("deit_digits_distilled_patch4_16", num_classes=10)
    arrays = jax.jit(lambda key: models.init_arrays(build, key))(jax.random.key(0))
    model = nnx.merge(models.abstract(build)[0], *arrays)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    view = PixelStatistics(mean=(0.5,) * 3, std=(0.5,) * 3)
    cosine = token_cosine(model.inspect(normalize(images, **view)))
    assert len(cosine) == model.depth + 1
    assert np.abs(cosine).max() < 1
    last = np.asarray(model.inspect(normalize(images, **view))["blocks"][-1, :, :2])
    a, b = last[:, 0], last[:, 1]
    expected = np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    assert cosine[-1] == pytest.approx(expected, abs=6e-5)  # four digits

    model.dist_token[...] = model.cls_token[...]
    model.pos_embed[...] = model.pos_embed[...].at[:, 1].set(model.pos_embed[...][:, 0])
    np.testing.assert_allclose(token_cosine(model.inspect(normalize(images, **view))), 1, atol=1e-5)


@pytest.fixture
def finished(own_run):
    """(config, folder, what the student predicts, its run as with stored labels: without a live teacher)."""
    config = whole_config()
    run = open_run(config, own_run)
    outcomes = predict_student(run)
    return config, own_run, outcomes.heads | {"label": outcomes.column("label")}, run


def test_the_table_is_in_the_report_and_its_first_row_has_the_errors(finished):
    """100 - top-1 of each classifier, which was measured another way."""
    config, folder, student, _ = finished
    report = (folder / "report.md").read_text()
    run = open_run(config, folder, teacher_init=str(folder / "teacher"))
    found = measure_disagreement(run, student, teacher_predictions(run))
    results = json.loads((folder / "results.json").read_text())
    heads = results["student"]["params"]["heads"]
    top1 = {
        "teacher": results["teacher"]["params"]["top1"],
        "student without a teacher": results["plain"]["params"]["top1"],
        "class head": heads["cls"]["top1"],
        "distillation head": heads["dist"]["top1"],
        "both heads": heads["fused_logits"]["top1"],
    }
    errors = {name: 100 - percent for name, percent in top1.items()}
    assert found["true label"] == pytest.approx({"true label": 0.0} | errors)
    header = next(line for line in report.splitlines() if line.startswith("|  | true label"))
    assert all(f" {name} |" in header and f"| {name} |" in report for name in top1)
    assert re.search(r"\| after block \| 0 \| 1 \| 2 \|\n.*\n\| cosine( \| -?[01]\.\d\d){3} \|", report)


def test_pictures_are_of_all_classes_and_name_the_wrong_predictions(finished, monkeypatch):
    config, folder, *_ = finished
    run = open_run(config, folder, teacher_init=str(folder / "teacher"))
    outcomes, teachers = predict_student(run), teacher_predictions(run)
    drawn = []
    monkeypatch.setattr(run_report, "DRAWN", 10)
    monkeypatch.setattr(run_report.plots, "attention", lambda *args: drawn.extend(args[1:]))
    cosine = run_report.inspect_student(run, outcomes, teachers)
    images, weights, captions, grid = drawn
    model = nnx.merge(run.model.graphdef, *read_weights(folder)[1].values())
    seen = model.inspect(normalize(images, **run.pixel_statistics))
    np.testing.assert_allclose(weights, seen["attention"][-1], atol=1e-5)
    assert (weights.shape[-1] - 2, len(cosine)) == (grid[0] * grid[1], model.depth + 1)
    assert sorted(caption.split("\n")[0] for caption in captions) == [str(digit) for digit in range(10)]
    batches = list(run_report.evaluation_batches(run, 16))
    whole = {name: np.concatenate([batch[name] for batch in batches])[:359] for name in ("image", "label")}
    named = {"student": outcomes.column("joint"), **teachers}
    for image, caption in zip(images, captions, strict=True):
        (at,) = np.flatnonzero((whole["image"] == image).all((1, 2, 3)))
        label, *wrong = caption.split("\n")
        assert label == str(whole["label"][at])
        assert set(wrong) == {f"{who}: {x[at]}" for who, x in named.items() if x[at] != whole["label"][at]}
    config.distill.kind = "features"
    assert teacher_predictions(dataclasses.replace(run, config=config)) == {}


def test_a_run_from_stored_labels_leaves_the_teacher_out(finished):
    assert "teacher" not in measure_disagreement(finished[3], finished[2], teacher_predictions(finished[3]))


def test_several_teachers_have_a_column_each(finished):
    original, folder, student, run = finished
    config = original.copy_and_resolve_references()
    config.teacher.name, config.teacher.epochs = f"{TINY_PLAIN},{TINY_PLAIN}", 0
    config.teacher.init = f"{folder / 'teacher'},{folder / 'teacher'}"
    several = dataclasses.replace(run, teacher=open_teacher(config, run.data.train.class_names, run.model))
    found = measure_disagreement(several, student, teacher_predictions(several))
    assert found["teacher 1"]["teacher 2"] == 0.0
    assert np.isfinite(found["teacher 1"]["both heads"])

"""The report's table of different predictions, the tokens' cosine and the teacher's cost."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import TINY_PLAIN, whole_config

from deit_jax import models
from deit_jax.report.agreement import (
    agreement_section,
    disagreement,
    measure_agreement,
    teacher_time_fraction,
    token_cosine,
)
from deit_jax.train.run import open_data, open_models, open_run


def test_disagreement_is_the_share_of_other_decisions():
    found = disagreement({"a": np.array([0, 1, 2, 3]), "b": np.array([0, 1, 2, 0]), "c": np.array([1, 2, 3, 4])})
    assert found["a"] == {"a": 0.0, "b": 25.0, "c": 100.0}
    assert all(found[x][y] == found[y][x] for x in "abc" for y in "abc")


def test_cosine_is_one_for_equal_tokens_and_follows_the_blocks():
    build = models.constructor("deit_digits_distilled_patch4_16", num_classes=10)
    arrays = jax.jit(lambda key: models.init_arrays(build, key))(jax.random.key(0))
    model = nnx.merge(models.abstract(build)[0], *arrays)
    images = jax.random.normal(jax.random.key(0), (3, 16, 16, 3))
    cosine = token_cosine(model, images)
    assert cosine.shape == (model.depth + 1,)
    assert np.abs(cosine).max() < 1
    last = np.asarray(model.inspect(images)["blocks"][-1, :, :2])
    a, b = last[:, 0], last[:, 1]
    expected = np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    assert cosine[-1] == pytest.approx(expected, abs=1e-5)

    model.dist_token[...] = model.cls_token[...]
    model.pos_embed[...] = model.pos_embed[...].at[:, 1].set(model.pos_embed[...][:, 0])
    np.testing.assert_allclose(token_cosine(model, images), 1, atol=1e-5)


def test_the_teachers_share_is_of_the_step_without_waiting():
    log = [
        {"step": 20},
        {"images_per_second": 100.0, "wait_share": 0.5},
        {"images_per_second": 50.0, "wait_share": 0.0},
    ]
    # 5 ms and 20 ms an image: the median is 12.5 ms
    assert teacher_time_fraction(log, 0.0025) == pytest.approx(0.2)
    assert teacher_time_fraction([{"step": 1, "loss": 1.0}], 0.1) is None


@pytest.fixture
def finished(own_run):
    return whole_config(), own_run


def test_the_report_of_a_distilled_run_has_the_table(finished):
    _, folder = finished
    report = (folder / "report.md").read_text()
    assert "## Agreement" in report
    header = next(line for line in report.splitlines() if line.startswith("|  | true label"))
    for name in ("teacher", "student without a teacher", "class head", "distillation head", "both heads"):
        assert f" {name} |" in header
        assert f"| {name} |" in report
    assert "Cosine between class and distillation token" in report
    assert "The teacher takes about" in report


def test_different_decisions_against_the_true_label_are_the_errors(finished):
    """The table's first row is 100 - top-1 of each classifier, which was measured another way."""
    config, folder = finished
    found = measure_agreement(open_run(config, folder, teacher_init=str(folder / "teacher")))
    results = json.loads((folder / "results.json").read_text())
    errors = found["disagreement"]["true label"]
    assert errors["teacher"] == pytest.approx(100 - results["teacher"]["params"]["top1"])
    assert errors["student without a teacher"] == pytest.approx(100 - results["plain"]["params"]["top1"])
    heads = results["student"]["params"]["heads"]
    assert errors["class head"] == pytest.approx(100 - heads["cls"]["top1"])
    assert errors["distillation head"] == pytest.approx(100 - heads["dist"]["top1"])
    assert errors["both heads"] == pytest.approx(100 - heads["fused_logits"]["top1"])
    assert found["teacher_time_fraction"] > 0
    assert len(found["cosine"]) == 3


def test_a_run_from_stored_labels_leaves_the_teacher_out(finished):
    config, folder = finished
    found = measure_agreement(open_run(config, folder))  # as with stored labels: no live teacher
    assert "teacher" not in found["disagreement"]
    assert "teacher_time_fraction" not in found
    assert "teacher |" not in agreement_section(found).splitlines()[4].replace("without a teacher |", "")


def test_several_teachers_have_a_column_each(finished):
    original, folder = finished
    config = original.copy_and_resolve_references()
    config.teacher.name, config.teacher.epochs = f"{TINY_PLAIN},{TINY_PLAIN}", 0
    config.teacher.init = f"{folder / 'teacher'},{folder / 'teacher'}"
    several = dataclasses.replace(open_run(original, folder), teacher=open_models(config, open_data(config))[1])
    found = measure_agreement(several)["disagreement"]
    assert found["teacher 1"]["teacher 2"] == 0.0
    assert jnp.isfinite(found["teacher 1"]["both heads"])

"""The report's part about classes: counts, calibration, contact sheets, against what is known by construction."""

import json
import tracemalloc

import matplotlib
import numpy as np
import pytest
from PIL import Image

from deit_jax import plots
from deit_jax.evaluate import class_report, tables

NAMES = ["cat", "a|b", "c"]


def outcomes(labels, predictions, heads=None, confidence=None, names=NAMES, rows=4):
    """Each image a constant of its position; `confidence` is that of the prediction."""
    out = class_report.Outcomes(names)
    labels, predictions = np.array(labels), np.array(predictions)
    confidence = np.full(len(labels), 0.8) if confidence is None else np.array(confidence)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    heads = {"cls": predictions} if heads is None else {name: np.array(x) for name, x in heads.items()}
    for i in range(0, len(labels), rows):
        part = slice(i, i + rows)
        batch = {"image": images[part], "label": labels[part], "mask": np.ones(len(labels[part]))}
        predicted = heads | {"joint": predictions, "confidence": confidence}
        out.add(batch, {name: x[part] for name, x in predicted.items()})
    return out


def test_classes_heads_and_mistakes_are_counted():
    labels, cls = [0, 0, 0, 1, 1, 2, -1], [0, 0, 1, 1, 0, 2, 0]
    dist = [0, 2, 0, 1, 2, 2, 1]
    found = class_report.analyze(
        outcomes(labels, cls, {"cls": cls, "dist": dist}, [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
    )
    assert found["images"] == 6  # the unreadable one is left out everywhere
    assert found["confusion"] == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert [one["recall"] for one in found["classes"]] == pytest.approx([2 / 3, 1 / 2, 1])
    mistakes = [(m["position"], m["label"], m["predicted"]["joint"]) for m in found["mistakes"]]
    assert mistakes == [(4, "a|b", "cat"), (2, "cat", "a|b")]
    heads = found["heads"]
    assert (heads["disagree"], heads["class_head_right"], heads["distillation_head_right"]) == (3, 1, 1)
    assert [one["position"] for one in heads["examples"]] == [4, 2, 1]


def test_the_most_confident_mistakes_are_kept_over_all_batches():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.4, 1, 60)
    out = outcomes(np.zeros(60, int), np.ones(60, int), confidence=confidence)
    expected = np.argsort(-confidence)[: class_report.MAX_EXAMPLES]
    assert [(place, int(image[0, 0, 0])) for _, place, image in out.sheets["mistakes"]] == [(i, i) for i in expected]


def test_written_files_are_those_the_section_shows(tmp_path):
    out = outcomes([0, 1, 2, 0], [0, 1, 1, 1], {"cls": [0, 1, 1, 1], "dist": [0, 1, 2, 1]})
    section = class_report.write_class_report(tmp_path, out)
    for name in class_report.FILES[1:]:
        assert f"({name})" in section
        assert min(Image.open(tmp_path / name).size) > 150
    assert "| a\\|b | 1 | 3 | 33.3 | 100.0 | 50.0 |" in section
    assert "differ on 1 of 4 images (25.0 %)" in section
    assert json.loads((tmp_path / "classes.json").read_text())["classes"][2]["precision"] is None
    class_report.write_class_report(tmp_path, outcomes([0, 1], [0, 1]))
    assert not (tmp_path / "mistakes.png").exists()
    assert not (tmp_path / "heads.png").exists()


def test_many_classes_have_a_table_of_the_worst_instead_of_a_picture(tmp_path):
    names = [f"class {i}" for i in range(60)]
    labels = np.repeat(np.arange(60), 2)
    predictions = labels.copy()
    predictions[7] = 9  # one of class 3
    section = class_report.write_class_report(tmp_path, outcomes(labels, predictions, names=names))
    assert not (tmp_path / "confusion.png").exists()
    assert "20 classes of the lowest recall" in section
    assert "| class 3 | 2 | 1 | 100.0 | 50.0 | 66.7 |" in section
    assert "| class 3 | class 9 | 1 |" in section
    assert "| class 40 |" not in section


def test_captions_are_cut_with_an_ellipsis():
    assert plots.caption("abc abc abc abc abc", 8, 2) == "abc abc\nabc abc…"
    assert plots.caption("abc\x1b", 20) == "abc\\x1b"
    assert all(len(line) <= 8 for line in plots.caption("abc" * 20, 8, 2).split("\n"))


def test_pictures_of_many_and_few_images_leave_matplotlibs_settings_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.contact_sheet(tmp_path / "a.png", [np.zeros((8, 8, 3), np.uint8)] * 3, ["$x^{", "b", "c\nd"], columns=2)
    assert Image.open(tmp_path / "a.png").size[1] > 400
    images, captions = np.zeros((8, 16, 16, 3), np.uint8), ["a name that is long enough to wrap\npredicted b"] * 8
    plots.attention(tmp_path / "attention.png", images, np.ones((8, 2, 1, 17)), captions, (4, 4))
    assert Image.open(tmp_path / "attention.png").size[0] > 1000
    assert dict(matplotlib.rcParams) == before


def test_panels_of_objectives_loss_terms_and_agreement(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(plots, "save", lambda figure, path: seen.append(figure))
    terms = {"class_loss": 2.5, "distillation_loss": 1.5, "cls_agreement": 0.25, "dist_agreement": 0.5}
    distilled = [{"epoch": epoch, "loss": 2.0, **terms} for epoch in (1, 2)]
    plain = [{"epoch": 1, "loss": 2.0, "class_loss": 2.0}]
    runs, objectives = {"student": distilled, "plain": plain, "teacher": plain}, {"student": "hard"}
    plots.curves(tmp_path / "c.png", runs, objectives | {"plain": "ce", "teacher": "ce"})
    panels = {axis.get_ylabel(): [(x.get_label(), list(x.get_ydata())) for x in axis.lines] for axis in seen[0].axes}
    assert [len(panels[f"training loss: {objective}"]) for objective in ("hard", "ce")] == [1, 2]
    assert panels["loss terms"] == [("student, class loss", [2.5, 2.5]), ("student, distillation loss", [1.5, 1.5])]
    agreement = panels["agreement with the teacher's hard label, %"]
    assert agreement == [("student, class head", [25.0, 25.0]), ("student, distillation head", [50.0, 50.0])]
    assert len(panels) == 4


def test_top5_is_shown_among_more_than_five_classes_only():
    result = {"heads": {"cls": {"top1": 50.0, "top5": 100.0}}}
    results = [("m", {"params": result, "ema": result})]
    assert tables.accuracy_table(results, 5).splitlines()[2:] == [
        "| m | class head | trained | 50.00 |",
        "| m | class head | EMA | 50.00 |",
    ]
    assert "| m | class head | trained | 50.00 | 100.00 |" in tables.accuracy_table(results, 6)


def test_most_confused_pairs_leave_out_what_is_right():
    matrix = np.array([[9, 2, 0], [5, 9, 2], [0, 0, 9]])
    rows, columns = np.nonzero(matrix)
    labels, predictions = np.repeat(rows, matrix[rows, columns]), np.repeat(columns, matrix[rows, columns])
    assert class_report.most_confused(labels, predictions) == [(1, 0, 5), (0, 1, 2), (1, 2, 2)]
    assert class_report.most_confused(labels, predictions, 1) == [(1, 0, 5)]
    assert class_report.most_confused(labels, labels) == []


def test_many_classes_cost_no_more_than_the_images():
    """ImageNet-21k: a matrix of all pairs would take 3.8 GB."""
    labels = np.array([21_842, 21_842, 21_842, 5, 7])
    predictions = np.array([0, 0, 21_842, 5, 5])
    tracemalloc.start()
    assert class_report.most_confused(labels, predictions) == [(21_842, 0, 2), (7, 5, 1)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def test_calibration_by_hand():
    """Confidences 0.95, 0.85 | 0.65, 0.75, in bins of a fifth; then at the ends, and of a calibrated model."""
    found = class_report.calibration_error(
        np.array([0.95, 0.85, 0.65, 0.75]), np.array([True, True, False, True]), bins=5
    )
    assert found == pytest.approx((2 * 0.2 + 2 * 0.1) / 4)
    assert class_report.calibration_error(np.ones(2), np.ones(2, bool)) == 0
    assert class_report.calibration_error(np.full(100, 0.5), np.zeros(100, bool)) == pytest.approx(0.5)
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(7), 20_000)
    labels = np.array([rng.choice(7, p=p) for p in probabilities])
    assert class_report.calibration_error(probabilities.max(1), probabilities.argmax(1) == labels) < 0.02

"""The report's part about classes: counts, calibration, contact sheets, against what is known by construction."""

import json

import numpy as np
import pytest
from PIL import Image

from deit_jax import plot_text as text
from deit_jax import plots
from deit_jax.evaluate import breakdown, tables

NAMES = ["cat", "a|b", "犬"]


def outcomes(labels, predictions, heads=None, confidence=None, names=NAMES, batch=4):
    """Each image a constant of its position; `confidence` on the prediction, the rest spread evenly."""
    out = breakdown.Outcomes(names)
    labels, predictions = np.array(labels), np.array(predictions)
    confidence = np.full(len(labels), 0.8) if confidence is None else np.array(confidence)
    probabilities = np.repeat((1 - confidence)[:, None] / (len(names) - 1), len(names), 1)
    probabilities[np.arange(len(labels)), predictions] = confidence
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    heads = {"cls": predictions} if heads is None else {name: np.array(x) for name, x in heads.items()}
    for i in range(0, len(labels), batch):
        part = slice(i, i + batch)
        out.add(images[part], labels[part], probabilities[part], {name: x[part] for name, x in heads.items()})
    return out


def test_classes_heads_and_mistakes_are_counted():
    labels, cls = [0, 0, 0, 1, 1, 2, -1], [0, 0, 1, 1, 0, 2, 0]
    dist = [0, 2, 0, 1, 2, 2, 1]
    found = breakdown.analyze(outcomes(labels, cls, {"cls": cls, "dist": dist}, [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]))
    assert found["images"] == 6  # the unreadable one is left out everywhere
    assert found["confusion"] == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert [one["recall"] for one in found["classes"]] == pytest.approx([2 / 3, 1 / 2, 1])
    assert [(m["position"], m["label"], m["predicted"]["joint"]) for m in found["mistakes"]] == [
        (4, "a|b", "cat"),
        (2, "cat", "a|b"),
    ]
    heads = found["heads"]
    assert (heads["disagree"], heads["class_head_right"], heads["distillation_head_right"]) == (3, 1, 1)
    assert [one["position"] for one in heads["examples"]] == [4, 2, 1]


def test_the_most_confident_mistakes_are_kept_over_all_batches():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.4, 1, 60)
    out = outcomes(np.zeros(60, int), np.ones(60, int), confidence=confidence)
    expected = np.argsort(-confidence)[: breakdown.SHOWN]
    assert [shown.position for shown in out.sheet("mistakes")] == expected.tolist()
    assert [int(shown.image[0, 0, 0]) for shown in out.sheet("mistakes")] == expected.tolist()


def test_written_files_are_those_the_section_shows(tmp_path):
    out = outcomes([0, 1, 2, 0], [0, 1, 1, 1], {"cls": [0, 1, 1, 1], "dist": [0, 1, 2, 1]})
    section = breakdown.section(breakdown.write(tmp_path, out), tmp_path)
    for name in breakdown.FILES[1:]:
        assert f"({name})" in section
        assert min(Image.open(tmp_path / name).size) > 150
    assert "| a\\|b | 1 | 3 | 33.3 | 100.0 | 50.0 |" in section
    assert "differently on 1 of 4 images (25.0 %)" in section
    assert json.loads((tmp_path / "classes.json").read_text())["classes"][2]["precision"] is None
    breakdown.write(tmp_path, outcomes([0, 1], [0, 1]))  # nothing wrong: no sheet of an earlier report stays
    assert not (tmp_path / "mistakes.png").exists()
    assert not (tmp_path / "heads.png").exists()


def test_many_classes_have_a_table_of_the_worst_instead_of_a_picture(tmp_path):
    names = [f"class {i}" for i in range(60)]
    labels = np.repeat(np.arange(60), 2)
    predictions = labels.copy()
    predictions[7] = 9  # one of class 3
    section = breakdown.section(breakdown.write(tmp_path, outcomes(labels, predictions, names=names)), tmp_path)
    assert not (tmp_path / "confusion.png").exists()
    assert "20 classes of the lowest recall" in section
    assert "| class 3 | 2 | 1 | 100.0 | 50.0 | 66.7 |" in section
    assert "| class 3 | class 9 | 1 |" in section
    assert "| class 40 |" not in section


def test_text_is_drawable_and_cut_with_an_ellipsis(monkeypatch):
    monkeypatch.setattr(text, "glyphs", lambda: frozenset(map(ord, "abc кошка…é")))
    assert text.drawable("кошка é") == "кошка é"
    assert text.drawable("a犬\x1b") == "a\\u72ac\\x1b"
    assert text.shorten("abcabcabc", 6) == "abcab…"
    assert text.shorten("abcabc", 6) == "abcabc"
    assert text.caption("abc abc abc abc abc", 8, 2) == "abc abc\nabc abc…"
    assert all(len(line) <= 8 for line in text.caption("abc" * 20, 8, 2).split("\n"))


def test_many_images_wrap_and_a_plain_model_has_one_token(tmp_path):
    images, captions = np.zeros((40, 16, 16, 3), np.uint8), ["a name that is long enough to wrap\npredicted 犬"] * 40
    plots.attention(tmp_path / "attention.png", images, np.ones((40, 1, 16)), captions, (4, 4))
    width, height = Image.open(tmp_path / "attention.png").size
    assert width < 1900 < height


def test_objectives_have_panels_of_their_own(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(plots, "save", lambda figure, path: seen.append(figure))
    log = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]
    runs = {"student": log, "plain": log, "teacher": log}
    plots.curves(tmp_path / "c.png", runs, {"student": "hard", "plain": "ce", "teacher": "ce"})
    assert [(axis.get_ylabel(), len(axis.lines)) for axis in seen[0].axes] == [
        ("training loss: hard", 1),
        ("training loss: ce", 2),
    ]
    plots.plt.close(seen[0])


def test_top5_is_shown_among_more_than_five_classes_only():
    result = {"heads": {"cls": {"top1": 50.0, "top5": 100.0}}}
    results = [("m", {"params": result, "ema": result})]
    assert tables.accuracy_table(results, 5).splitlines()[2:] == [
        "| m | class head | trained | 50.00 |",
        "| m | class head | averaged | 50.00 |",
    ]
    assert "| m | class head | trained | 50.00 | 100.00 |" in tables.accuracy_table(results, 6)

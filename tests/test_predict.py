"""What `predict` prints and draws, and what `import deit_jax` costs."""

import csv
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import seeded
from helpers import SMALL, state_of
from PIL import Image
from safetensors.numpy import save_file

import deit_jax
from deit_jax import predict
from deit_jax.augment import normalize
from deit_jax.evaluate.classifier import make_classifier
from deit_jax.runtime import sharding
from deit_jax.weights import load_weights
from deit_jax.weights.metadata import Metadata, to_header

PHOTOS = [str(seeded.GOLDEN / name) for name in ("eval_cock.JPEG", "eval_giant_panda.JPEG")]


@pytest.fixture
def small(tmp_path):
    path = tmp_path / f"{SMALL}.safetensors"
    save_file(state_of(SMALL, num_classes=3), path)
    return path


def test_predict_prints_every_head(small, capsys):
    predict.main([str(small), *PHOTOS, "--top=2"])
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[4]] == PHOTOS
    assert [cell.strip() for cell in lines[1].split("  ") if cell] == ["class head", "distillation head", "both"]
    likeliest = [float(cell) for cell in re.findall(r"([\d.]+) %", lines[2])]
    second = [float(cell) for cell in re.findall(r"([\d.]+) %", lines[3])]
    assert len(likeliest) == 3
    assert all(33 < p <= 100 and p >= q for p, q in zip(likeliest, second, strict=True))


def test_probabilities_are_the_models(small):
    mesh = sharding.make_mesh()
    classifier = make_classifier({"params": load_weights(small)}, mesh)
    found = list(predict.predict_images(classifier, PHOTOS, mesh, top=3))
    views = np.stack([predict.read_view(path, classifier.view) for path in PHOTOS])
    model = deit_jax.load_model(small)
    cls, dist = model.heads(normalize(views, classifier.view.mean, classifier.view.std))
    both = np.asarray(jax.nn.softmax((cls + dist) / 2))
    for one, expected in zip(found, both, strict=True):
        assert [value for _, value in one.heads["both"]] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
        assert one.heads["both"][0][0] == f"class {expected.argmax()}"
        assert list(one.heads) == ["class head", "distillation head", "both"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DIR/x.jpg"], "none of the 1 evaluation images can be read, the first: .*x.jpg"),
        ([PHOTOS[0], "--crop=1.5"], "--crop 1.5"),
        ([PHOTOS[0], "--output=DIR/there.csv"], "there.csv: give a new FILE.csv"),
        (["DIR/empty"], "folder .*empty holds no images"),
        ([PHOTOS[0], "--output=DIR/no/x.csv"], "x.csv: give a new FILE.csv in a folder that exists"),
    ],
)
def test_bad_input_of_predict(tmp_path, small, capsys, arguments, message):
    (tmp_path / "x.jpg").write_bytes(b"no image")
    (tmp_path / "there.csv").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="2"):
        predict.main([str(small), *(text.replace("DIR", str(tmp_path)) for text in arguments)])
    assert re.search(f"^error: .*{message}", capsys.readouterr().err, re.MULTILINE)


def test_a_folder_becomes_a_table(tmp_path, small, capsys, caplog, monkeypatch):
    """Every path may begin with ~. Of an image that cannot be read the command fails, after the others are done."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos/deep").mkdir(parents=True)
    for name in ("b.jpeg", "deep/a.JPG"):
        (tmp_path / "photos" / name).write_bytes(Path(PHOTOS[0]).read_bytes())
    (tmp_path / "photos/broken.png").write_bytes(b"not an image")
    (tmp_path / "photos/notes.txt").write_text("not an image")
    folder = str(tmp_path / "photos")
    with pytest.raises(SystemExit, match="2"):
        predict.main([f"~/{small.name}", "~/photos", "--output=~/out.csv", "--attention=~/look.png", "--top=2"])
    assert Image.open(tmp_path / "look.png").width > 100
    said = capsys.readouterr()
    assert "2 of 3 images" in said.out
    assert "error: 1 of 3 images could not be read" in said.err
    assert f"{folder}/broken.png (cannot identify image file)" in caplog.text
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"{folder}/b.jpeg", f"{folder}/deep/a.JPG"]
    assert rows[0]["class1"] == rows[1]["class1"]
    assert sum(float(rows[0][f"probability{i}"]) for i in (1, 2)) <= 1 + 1e-6


def test_photos_are_turned_upright(tmp_path):
    pixels, exif = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8), Image.Exif()
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    exif[0x0112] = 6  # the others: data/test_images.py
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(tmp_path / "turned.png", exif=exif)
    view = predict.View(16, 0.875, "bicubic", (0.5,) * 3, (0.5,) * 3)
    np.testing.assert_array_equal(*(predict.read_view(str(path), view) for path in tmp_path.glob("*.png")))


def test_the_view_and_the_classes_are_the_weights_own_unless_set(tmp_path, small, capsys):
    """Control codes in their names are shown as text."""
    view = {"crop": 1.0, "interpolation": "bilinear", "mean": (0.0,) * 3, "std": (1.0,) * 3}
    header = to_header(Metadata(name=SMALL, class_names=["cat\x1b[31m", "dog", "bee\n"], **view))
    save_file(state_of(SMALL, num_classes=3), tmp_path / "x.safetensors", header)
    predict.main([str(tmp_path / "x.safetensors"), PHOTOS[0]])
    said = capsys.readouterr()
    assert "images: 16 px, crop 1, bilinear, mean (0.0, 0.0, 0.0), std (1.0, 1.0, 1.0)" in said.err
    assert "cat\\x1b[31m" in said.out
    assert "bee\\x0a" in said.out
    assert "\x1b" not in said.out
    predict.main([str(tmp_path / "x.safetensors"), PHOTOS[0], "--crop=0.5"])
    assert "images: 16 px, crop 0.5, bilinear, mean (0.0, 0.0, 0.0)" in capsys.readouterr().err
    predict.main([str(small), PHOTOS[0]])
    assert "images: 16 px, crop 0.875, bicubic, mean (0.485" in capsys.readouterr().err

"""What `predict` prints and draws, `certify`'s table, and what `import deit_jax` costs."""

import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import seeded
from helpers import SMALL, state_of
from PIL import Image
from safetensors.numpy import save_file

import deit_jax
from deit_jax import certify, convert, predict
from deit_jax.data import imagenet
from deit_jax.errors import UserError
from deit_jax.weights import load_weights

PHOTOS = [str(seeded.GOLDEN / name) for name in ("eval_cock.JPEG", "eval_giant_panda.JPEG")]


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.safetensors"
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
    model = deit_jax.load_model(small)
    images = seeded.images(2, 16)
    heads = predict.probabilities(model, images, "probabilities")
    cls, dist = model.heads(images)
    np.testing.assert_allclose(heads["both"], (jax.nn.softmax(cls) + jax.nn.softmax(dist)) / 2, atol=1e-6)
    assert list(predict.probabilities(deit_jax.create_model("regnety_digits"), images)) == ["class"]


def test_class_names(tmp_path, small):
    weights = load_weights(small)
    assert predict.names_of(weights) == ["class 0", "class 1", "class 2"]
    weights.class_names = ["ant", "bee", "cat"]
    convert.save_orbax(weights, tmp_path / "orbax")
    assert predict.names_of(load_weights(tmp_path / "orbax")) == ["ant", "bee", "cat"]
    assert len(set(imagenet.class_names())) == len(set(imagenet.synsets())) == 1000
    assert (imagenet.synsets()[388], imagenet.class_names()[388]) == ("n02510455", "giant panda")


def test_attention_is_drawn(tmp_path, small):
    predict.main([str(small), *PHOTOS, f"--attention={tmp_path / 'look.png'}", "--weights=params"])
    assert Image.open(tmp_path / "look.png").width > 100


def test_bad_input_of_predict(tmp_path, small):
    (tmp_path / "x.jpg").write_bytes(b"no image")
    for arguments, message in (
        ([str(tmp_path / "x.jpg")], "image .*x.jpg cannot be read"),
        ([str(tmp_path / "y.jpg")], "image .*y.jpg cannot be read .No such file"),
        ([PHOTOS[0], "--crop=1.5"], "--crop 1.5"),
        ([PHOTOS[0], f"--attention={tmp_path / 'no' / 'x.png'}"], "its folder does not exist"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            predict.main([str(small), *arguments])


@pytest.fixture
def labelled(tmp_path):
    """Twelve images of three ImageNet classes, the sixth to the eighth."""
    rng = np.random.default_rng(0)
    for synset in imagenet.synsets()[5:8]:
        folder = tmp_path / "val" / synset
        folder.mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "val"


def test_certify_counts_what_is_right(tmp_path, labelled, monkeypatch, capsys):
    folder, name = labelled, "deit_tiny_patch16_224"
    state = state_of(name)
    state["head.bias"][6] = 1e3  # it says the seventh class, whatever it sees
    save_file(state, tmp_path / "w.safetensors")
    rows = certify.certify(str(folder), {name: str(tmp_path / "w.safetensors")}, batch_size=8)
    assert rows == [[name, "0.875", "12", "33.333", "72.2", "-38.867", "FAIL"]]
    with pytest.raises(SystemExit) as stopped:
        certify.main([f"--data={folder}", f"--models={name}={tmp_path / 'w.safetensors'}", "--batch_size=8"])
    assert stopped.value.code == 1
    assert "here are 12" in capsys.readouterr().out
    monkeypatch.setitem(certify.PUBLISHED, name, ("", {0.875: 33.3, 1.0: 33.4}))
    rows = certify.certify(str(folder), {name: str(tmp_path / "w.safetensors")}, batch_size=8)
    assert [row[-1] for row in rows] == ["pass", "FAIL"]


def test_verdict_is_within_five_hundredths():
    assert certify.verdict(72.15, 72.2) == certify.verdict(72.25, 72.2) == "pass"
    assert certify.verdict(72.149, 72.2) == certify.verdict(72.251, 72.2) == "FAIL"


def test_certify_knows_the_published_models():
    names = set(certify.chosen(""))
    assert len(names) == 9
    assert all(name in hub for name, hub in certify.chosen("").items())
    assert certify.chosen("regnety_160=x.safetensors") == {"regnety_160": "x.safetensors"}
    with pytest.raises(UserError, match="'deit_tiny' is no published model .did you mean deit_tiny_"):
        certify.chosen("deit_tiny")


def test_bad_input_of_certify(tmp_path, small):
    with pytest.raises(UserError, match="is not a folder"):
        certify.open_images(str(tmp_path / "nothing"))
    for name in ("cats", "dogs"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "mine" / name / "0.png")
    with pytest.raises(UserError, match="has 3 classes, the data 2"):
        certify.certify(str(tmp_path / "mine"), {"deit_tiny_patch16_224": str(small)})


def test_import_is_light_and_models_need_no_data_libraries():
    code = """
import sys
import deit_jax
assert "jax" not in sys.modules
deit_jax.create_model, deit_jax.load_model, deit_jax.to_linen, deit_jax.resize_pos_embed, deit_jax.distillation_loss
deit_jax.augment, deit_jax.optimizer
heavy = {"grain", "tensorflow_datasets", "ml_collections", "torch", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
assert callable(deit_jax.eval_image) and callable(deit_jax.optimizer.decay_mask)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = deit_jax.nonsense

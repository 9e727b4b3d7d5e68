"""What `predict` prints and draws, and what `import deit_jax` costs."""

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
from deit_jax import convert, predict
from deit_jax.data import imagenet
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

"""The contact sheet shows the very images a step trains on."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from deit_jax.config import default_config, resolve
from deit_jax.data import pipeline, sources
from deit_jax.data.tools import show

ROOT = Path(__file__).parents[2]


def digits(**augment):
    config = default_config()
    config.data.name, config.batch_size, config.model.img_size = "digits", 16, 24
    config.augment.update(augment)
    return resolve(config)


def test_without_augmentation_the_crops_come_through():
    config = digits(flip=0.0, policy="none", erasing=0.0, mixup=0.0, cutmix=0.0)
    images, targets, names = show.augmented(config, step=3)
    batches = pipeline.train_batches(config, sources.open_sources(config)[0], size=24, start=3)
    batch = next(batches)
    batches.close()
    np.testing.assert_array_equal(images, batch["image"])
    np.testing.assert_array_equal(targets.argmax(1), batch["label"])
    assert show.caption(targets[0], names) == f"{batch['label'][0]}: 0.91"


def test_captions_name_both_images_of_a_mixture():
    target = np.full(100, 0.001)
    target[[7, 30]] += 0.3, 0.6
    names = [f"class {i}" for i in range(100)]
    assert show.caption(target, names) == "class 30: 0.60 + class 7: 0.30"
    assert show.caption(np.full(100, 0.01), names) == "-"


def test_sheet_places_every_image():
    images = np.stack([np.full((20, 20, 3), 10 * i, np.uint8) for i in range(11)])
    sheet = np.asarray(show.contact_sheet(images, ["a"] * 11))
    side = show.SIDE // 20 * 20
    for number in range(11):
        row, column = divmod(number, show.COLUMNS)
        top = show.GAP + row * (side + show.LINE + show.GAP)
        left = show.GAP + column * (side + show.GAP)
        assert (sheet[top : top + side, left : left + side] == 10 * number).all()


def test_command_writes_a_picture_and_one_line_for_bad_input(tmp_path):
    command = [sys.executable, "-m", "deit_jax.data.show", "--config=configs/digits.py"]
    output = tmp_path / "sheet.png"
    done = subprocess.run([*command, f"--output={output}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Image.open(output) as sheet:
        assert min(sheet.size) > 300
        assert np.asarray(sheet).std() > 30
    bad = subprocess.run([*command, "--config.data.root=nowhere"], cwd=ROOT, capture_output=True, text=True)
    assert bad.returncode == 2
    assert bad.stderr.strip().splitlines()[-1].startswith("error: data.root nowhere is not a folder")
    assert "Traceback" not in bad.stderr

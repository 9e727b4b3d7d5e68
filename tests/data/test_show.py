"""The contact sheet shows the very images a step trains on."""

import numpy as np
from helpers import configured

from deit_jax.data import loader, sources
from deit_jax.data.tools import show


def test_without_augmentation_the_crops_come_through():
    off = {"flip": 0.0, "policy": "none", "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
    settings = {"data.name": "digits", "batch_size": 16, "model.img_size": 24}
    config = configured(**settings | {f"augment.{name}": value for name, value in off.items()})
    images, targets, names = show.augmented(config, step=3)
    batches = loader.train_batches(config, sources.open_sources(config)[0], size=24, start=3)
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

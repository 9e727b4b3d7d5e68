"""Crops that are cut on the device: the host's pixels to the bit, on any number of devices."""

import types

import jax
import numpy as np
import pytest
from helpers import configured

from deit_jax.data import cache, device_crops, loader, sources
from deit_jax.data.base import ArraySource
from deit_jax.data.images import random_resized_crop
from deit_jax.errors import UserError
from deit_jax.runtime import hardware, sharding


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 16), (32, 32, 32), (31, 24, 48)])
def test_every_box_of_an_image_as_the_host_cuts_it(height, width, size):
    rng = np.random.default_rng(size)
    images = rng.choice([0, 255], (5, height, width, 3)).astype(np.uint8)  # overshoots at every edge
    images[1:] = rng.integers(0, 256, images[1:].shape)
    sizes = [(h, w) for h in range(1, height + 1) for w in range(1, width + 1)]
    boxes = np.array([(rng.integers(height - h + 1), rng.integers(width - w + 1), h, w) for h, w in sizes], np.int32)
    index = np.arange(len(boxes), dtype=np.int32) % len(images)
    cut = device_crops.cut_crops(images, index, boxes, size=size)
    host = [random_resized_crop(images[i], tuple(box), size) for i, box in zip(index, boxes.tolist(), strict=True)]
    np.testing.assert_array_equal(cut, host)


def digits(**changes):
    """Batches of the digits' training stream, and the config."""
    changes = {"batch_size": 64, "augment.repeats": 3} | changes
    config = configured(**{"data.name": "digits", "augment.crop_scale": (0.2, 1.0)} | changes)
    source = cache.keep_decoded(config, *sources.open_sources(config))[0]
    stream = loader.train_batches(config, source, size=16, start=3)
    out = [next(stream) for _ in range(3)]
    stream.close()
    return out


def test_a_stream_from_the_device_has_the_same_batches():
    mesh = sharding.make_mesh()
    for ours, theirs in zip(digits(**{"data.cache": "device"}), digits(), strict=True):
        assert isinstance(theirs["image"], np.ndarray)  # "auto" on a CPU
        assert isinstance(ours["image"], jax.Array)
        placed = sharding.place_batch(ours, mesh)
        assert placed["image"].sharding.num_devices == 8
        assert placed.keys() == theirs.keys()
        for name, values in theirs.items():
            np.testing.assert_array_equal(placed[name], values, err_msg=name)


def test_auto_takes_an_accelerator_where_the_pixels_are_the_same():
    gpu = types.SimpleNamespace(platform="gpu")
    with hardware.compiling_for(gpu):
        assert isinstance(digits()[0]["image"], jax.Array)
        for changes in ({"data.cache": "ram"}, {"augment.crop": "simple"}, {"data.resize": "fast"}):
            assert isinstance(digits(**changes)[0]["image"], np.ndarray)


@pytest.mark.parametrize(("changes", "pixels"), [({"augment.crop": "simple"}, (8, 8)), ({}, (8, 17))])
def test_images_that_cannot_be_cut_on_the_device(changes, pixels):
    source = ArraySource(np.zeros((4, *pixels, 3), np.uint8), np.zeros(4), ["a", "b"], name="others")
    config = configured(**{"data.name": "digits", "batch_size": 4, "data.cache": "device"} | changes)
    message = "one size, 16 pixels at most, augment.crop inception .* of others .* use --config.data.cache=ram"
    with pytest.raises(UserError, match=message):
        device_crops.open_crops(config, source, 16)

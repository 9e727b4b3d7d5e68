"""Crops that are cut on the devices: the host's pixels to the bit, with the images on one device or spread over all."""

import types

import jax
import numpy as np
import pytest
from helpers import configured, folder_of_images, photo
from PIL import Image

from deit_jax.config import validate
from deit_jax.data import cache, device_crops, loader, sources
from deit_jax.data.base import ArraySource
from deit_jax.data.images import random_resized_crop
from deit_jax.errors import UserError
from deit_jax.runtime import hardware, sharding


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 16), (32, 32, 32), (31, 24, 48)])
def test_every_box_of_an_image_as_the_host_cuts_it(height, width, size, devices):
    rng = np.random.default_rng(size)
    images = rng.choice([0, 255], (8, height, width, 3)).astype(np.uint8)  # overshoots at every edge
    images[1:] = rng.integers(0, 256, images[1:].shape)
    sizes = [(h, w) for h in range(1, height + 1) for w in range(1, width + 1)]
    boxes = np.array([(rng.integers(height - h + 1), rng.integers(width - w + 1), h, w) for h, w in sizes], np.int32)
    index = rng.permutation(np.arange(len(boxes), dtype=np.int32) % len(images))
    mesh = sharding.make_mesh(jax.devices()[:devices])
    spread = jax.device_put(images, sharding.batch_sharding(mesh))
    cut = device_crops.cut_crops(spread, index, boxes, size=size, mesh=mesh)
    assert cut.sharding.is_equivalent_to(sharding.batch_sharding(mesh), 4)  # as the train step takes it
    host = [random_resized_crop(images[i], tuple(box), size) for i, box in zip(index, boxes.tolist(), strict=True)]
    np.testing.assert_array_equal(cut, host)


def batches(config, start=3, on_devices=True):
    """Three batches of the training stream at 16 pixels."""
    source = cache.keep_decoded(config, *sources.open_sources(config))[0]
    source = device_crops.keep_on_devices(config, source) if on_devices else source
    stream = loader.train_batches(config, source, size=16, start=start)
    out = [next(stream) for _ in range(3)]
    stream.close()
    return out, stream.broken


def digits(**changes):
    settings = {"data.name": "digits", "batch_size": 64, "augment.repeats": 3, "augment.crop_scale": (0.2, 1.0)}
    return batches(configured(**settings | changes))[0]


def assert_same(ours, theirs):
    mesh = sharding.make_mesh(data=2, fsdp=4)
    for mine, other in zip(ours, theirs, strict=True):
        assert isinstance(other["image"], np.ndarray)
        assert isinstance(mine["image"], jax.Array)
        placed = sharding.place_batch(mine, mesh)
        assert placed["image"].sharding.num_devices == 8
        assert placed.keys() == other.keys()
        for name, values in other.items():
            np.testing.assert_array_equal(placed[name], values, err_msg=name)


def test_a_stream_from_the_devices_has_the_same_batches():
    assert_same(digits(**{"data.cache": "device"}), digits())  # "auto" on a CPU


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """18 photos of several sizes, two of which cannot be read, and one that is grey."""
    root = folder_of_images(tmp_path_factory.mktemp("photos"))
    photo(root / "class0" / "wide.png", 90, 31)
    Image.open(photo(root / "class1" / "tall.png", 10, 40)).convert("L").save(root / "class1" / "tall.png")
    for name in ("2.png", "3.png"):
        (root / "class0" / name).write_bytes(b"no image")
    return root


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_photos_are_cut_as_the_host_cuts_them_once_they_are_resized(photos, workers):
    changes = {"data.root": str(photos), "batch_size": 16, "data.workers": workers, "augment.repeats": 1}
    changes |= {"data.cache": "device", "data.device_size": 12, "data.holdout": 0.0}
    config = configured(**changes)
    (ours, broken), (theirs, named) = batches(config), batches(config, on_devices=False)
    assert_same(ours, theirs)
    assert broken == named
    assert {name.split("/")[-1].split()[0] for name in broken} == {"2.png", "3.png"}
    for mine, other in zip(batches(config, start=4)[0][:2], ours[1:], strict=True):  # as a run goes on
        np.testing.assert_array_equal(mine["image"], other["image"])
    wide = sources.open_sources(config)[0][8]  # after the eight of its class
    whole = Image.open(photos / "class0" / "wide.png").resize((34, 12), Image.Resampling.BICUBIC)  # int(12 * 90 / 31)
    np.testing.assert_array_equal(wide["image"], np.asarray(whole)[:, 11:23])


def test_each_device_takes_its_share_of_what_fits(photos, monkeypatch):
    changes = {"data.root": str(photos), "data.cache": "device", "data.device_size": 12, "data.holdout": 0.0}
    config = configured(**changes)
    source = sources.open_sources(config)[0]
    kept = device_crops.keep_on_devices(config, source)
    assert isinstance(kept, device_crops.OnDevices)
    assert {shard.data.shape for shard in kept.kept[0].addressable_shards} == {(3, 12, 12, 3)}  # 18 images, 6 of zeros
    said = "kept on the devices: 18 images of 12 x 12 pixels, 1.3 kB per device (8), resized first, which is"
    assert kept.notes[-1].startswith(said)
    monkeypatch.setattr(hardware, "device_memory", lambda *_: 1296)
    with pytest.raises(UserError, match=r"device, but one has 1.3 kB, for 18 images .* per device \(8\): use more"):
        device_crops.keep_on_devices(config, source)


def test_auto_takes_an_accelerator_where_the_pixels_are_the_same():
    gpu = types.SimpleNamespace(platform="gpu")
    with hardware.compiling_for(gpu):
        assert isinstance(digits()[0]["image"], jax.Array)
        for changes in ({"data.cache": "ram"}, {"augment.crop": "simple"}, {"data.resize": "fast"}):
            assert isinstance(digits(**changes)[0]["image"], np.ndarray)


@pytest.mark.parametrize(("pixels", "side"), [([(8, 17)] * 4, 0), ([(8, 8), (8, 9)] * 2, 0), ([(8, 8)] * 4, 17)])
def test_images_that_cannot_be_cut_on_the_devices(pixels, side):
    class Others(ArraySource):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"image": np.zeros((*pixels[index], 3), np.uint8)}

    config = configured(**{"model.img_size": 16, "data.cache": "device", "data.device_size": side})
    given = f"data.device_size is {side}" if side else "those of others are others"
    message = f"one size, 16 pixels at most, and {given}: use --config.data.device_size=16, or data.cache=ram"
    with pytest.raises(UserError, match=message):
        device_crops.keep_on_devices(config, Others(np.zeros((4, 1)), np.zeros(4), ["a", "b"], name="others"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.cache": "ram"}, "data.cache is ram, but devices that keep .* need device: use --config.data.cache=dev"),
        ({"augment.crop": "simple"}, "augment.crop is simple, .* need inception: use --config.augment.crop=inception"),
        (
            {"data.device_size": 0, "data.resize": "fast"},
            "resize is fast, .* need exact: use --config.data.resize=exact",
        ),
    ],
)
def test_settings_that_do_not_go_together(changes, message):
    with pytest.raises(UserError, match=message):
        validate(configured(**{"data.cache": "device", "data.device_size": 12} | changes))

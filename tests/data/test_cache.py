"""Decoded images in memory: the same batches, each image decoded once, and what does not fit is left or refused."""

import collections

import numpy as np
import pytest
from PIL import Image

from deit_jax.config import default_config, resolve
from deit_jax.data import cache, loader, sources
from deit_jax.errors import UserError
from deit_jax.runtime import hardware

SIZE = 24


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """data.cache → (train, evaluation) of 40 photos, one of which is cut off, and how often each image is decoded."""
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    for number in range(40):
        folder = tmp_path / f"class_{number % 2}"
        folder.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (32 + number, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.jpg", exif=exif)
    whole = (tmp_path / "class_1" / "39.jpg").read_bytes()
    (tmp_path / "class_1" / "39.jpg").write_bytes(whole[:300])
    decoded = collections.Counter()
    decode = cache.decode
    monkeypatch.setattr(cache, "decode", lambda image, exif: decoded.update([image]) or decode(image, exif))

    def open_with(how, **data):
        config = default_config()
        config.batch_size, config.data.root = 16, str(tmp_path)
        config.data.update({"cache": how, "exif": True, **data})
        config = resolve(config)
        return config, *cache.keep_decoded(config, *sources.open_sources(config)), decoded

    return open_with


def batches(config, train, evaluation):
    stream = loader.train_batches(config, train, size=SIZE)
    out = [next(stream) for _ in range(12)] + list(loader.eval_batches(config, evaluation, size=SIZE))
    stream.close()
    return out, dict(stream.broken)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_cache_changes_no_batch_and_decodes_each_image_once(opened, workers):
    plain, broken = batches(*opened("none")[:3])
    config, train, evaluation, decoded = opened("auto", workers=workers, threads=1)  # two may decode one image at once
    assert isinstance(train, cache.Cached)
    assert train.fingerprint == opened("none")[1].fingerprint
    ours, ours_broken = batches(config, train, evaluation)
    assert ours_broken == broken
    for a, b in zip(ours, plain, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)
    if not workers:  # which decode in processes of their own
        *once, cut = sorted(decoded.values())
        assert set(once) == {1}
        assert len(once) > 30
        assert cut > 1  # nothing to keep


@pytest.mark.parametrize("workers", [0, 2])
def test_auto_takes_a_quarter_of_the_free_memory(opened, monkeypatch, workers):
    train, evaluation = opened("auto")[1:3]
    needed = 4 * max(1, workers) * (train.estimate() + evaluation.estimate())
    assert 0.8 * 4 * 40 < needed / max(1, workers) / (51.5 * 40 * 3) < 1.2 * 4 * 40  # 51.5 rows on average
    for free, kept in ((needed + 1, True), (needed - 1, False)):
        monkeypatch.setattr(hardware, "free_memory", lambda free=free: free)
        assert isinstance(opened("auto", workers=workers)[1], cache.Cached) == kept


def test_more_than_the_memory_is_refused(opened, monkeypatch):
    monkeypatch.setattr(hardware, "free_memory", lambda: 1000.0)
    assert not isinstance(opened("auto")[1], cache.Cached)
    with pytest.raises(UserError, match="data.cache is ram, but the decoded images of .* use --config.data.cache=none"):
        opened("ram")


def test_pixels_in_memory_are_not_kept_twice():
    config = default_config()
    config.data.update({"name": "digits", "cache": "ram"})
    assert not isinstance(cache.keep_decoded(config, *sources.open_sources(resolve(config)))[0], cache.Cached)

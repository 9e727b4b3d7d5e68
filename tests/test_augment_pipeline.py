"""The whole device augmentation: an image's result is its own, whatever stands beside it and whatever the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deit_jax.augment import augment_train, normalize
from deit_jax.config import default_config

SIZE = 24


def config(**changes):
    cfg = default_config().augment
    cfg.update(changes)
    return cfg


def batch(count, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 6, 6, 3)).repeat(SIZE // 6, 1).repeat(SIZE // 6, 2)
    return {
        "image": np.clip(small + rng.integers(-9, 9, small.shape), 0, 255).astype(np.uint8),
        "label": rng.integers(0, 10, count).astype(np.int32),
        "index": rng.permutation(1000)[:count].astype(np.int32),
        "epoch": np.full(count, 3, np.int32),
        "repeat": rng.integers(0, 3, count).astype(np.int32),
    }


def run(data, cfg, step=5, seed=0):
    return jax.jit(lambda b, k, s: augment_train(b, k, s, cfg, 10))(data, jax.random.key(seed), step)


def unmixed(**changes):
    return config(mixup=0.0, cutmix=0.0, **changes)


def test_shapes_and_types():
    images, targets = run(batch(16), config())
    assert images.shape == (16, SIZE, SIZE, 3)
    assert images.dtype == jnp.float32
    assert targets.dtype == jnp.float32
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)


def test_everything_off_is_normalize():
    data = batch(8)
    cfg = unmixed(flip=0.0, policy="none", erasing=0.0, label_smoothing=0.0)
    images, targets = run(data, cfg)
    expected = (data["image"] / 255.0 - np.array(cfg.mean)) / np.array(cfg.std)
    np.testing.assert_allclose(images, expected, atol=1e-5)
    np.testing.assert_allclose(normalize(data["image"], cfg.mean, cfg.std), expected, atol=1e-5)
    np.testing.assert_array_equal(targets, np.eye(10)[data["label"]])


def test_flip_mirrors_its_share_of_images():
    data = batch(512)
    images, _ = run(data, unmixed(flip=0.3, policy="none", erasing=0.0))
    plain = normalize(data["image"], config().mean, config().std)
    is_flipped = np.all(np.isclose(images, plain[:, :, ::-1], atol=1e-5), axis=(1, 2, 3))
    is_same = np.all(np.isclose(images, plain, atol=1e-5), axis=(1, 2, 3))
    assert np.all(is_flipped | is_same)
    assert 0.2 < is_flipped.mean() < 0.4


@pytest.mark.parametrize("policy", ["rand", "three", "none"])
def test_an_image_does_not_depend_on_its_neighbours(policy):
    data = batch(32)
    cfg = unmixed(policy=policy)
    images, _ = run(data, cfg)
    order = np.random.default_rng(1).permutation(32)[:12]
    some, _ = run({name: value[order] for name, value in data.items()}, cfg)
    np.testing.assert_allclose(some, images[order], atol=1e-5)


@pytest.mark.parametrize("field", ["epoch", "index", "repeat"])
def test_each_view_of_an_image_is_another(field):
    data = batch(64)
    one, _ = run(data, unmixed())
    other, _ = run(data | {field: data[field] + 1}, unmixed())
    assert np.mean(np.any(one != other, axis=(1, 2, 3))) > 0.6


def test_step_changes_the_mixing_alone():
    data = batch(64)
    one, other = run(data, config(), step=0), run(data, config(), step=1)
    assert np.any(one[0] != other[0])
    np.testing.assert_array_equal(run(data, unmixed(), step=0)[0], run(data, unmixed(), step=1)[0])


def test_same_key_same_result_other_seed_other_result():
    data = batch(16)
    np.testing.assert_array_equal(run(data, config())[0], run(data, config())[0])
    assert np.any(run(data, config())[0] != run(data, config(), seed=1)[0])


@pytest.mark.parametrize("policy", ["rand", "three"])
def test_eight_devices_agree_with_one(policy):
    if jax.device_count() < 8:
        pytest.skip("needs eight (simulated) devices")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    data, cfg = batch(128), config(policy=policy)
    step = jax.jit(lambda b, k, s: augment_train(b, k, s, cfg, 10))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    images, targets = step(jax.device_put(data, sharding), jax.random.key(0), 5)
    alone_images, alone_targets = step(data, jax.random.key(0), 5)
    np.testing.assert_allclose(images, alone_images, atol=1e-5)
    np.testing.assert_allclose(targets, alone_targets, atol=1e-6)
    assert len(images.sharding.device_set) == 8

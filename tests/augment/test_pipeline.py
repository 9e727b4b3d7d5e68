"""The whole device augmentation: an image's result is its own, whatever stands beside it and whatever the devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deit_jax.augment import augment_train, normalize
from deit_jax.config import default_config
from deit_jax.errors import UserError

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


@functools.cache
def jitted(**changes):
    cfg = config(**changes)
    return jax.jit(lambda b, k, s: augment_train(b, k, s, cfg, 10))


def run(data, step=5, seed=0, **changes):
    return jitted(**changes)(data, jax.random.key(seed), step)


UNMIXED = {"mixup": 0.0, "cutmix": 0.0}


def test_everything_off_is_normalize():
    data, cfg = batch(8), config()
    images, targets = run(data, flip=0.0, policy="none", erasing=0.0, label_smoothing=0.0, **UNMIXED)
    expected = (data["image"] / 255.0 - np.array(cfg.mean)) / np.array(cfg.std)
    np.testing.assert_allclose(images, expected, atol=1e-5)
    np.testing.assert_allclose(normalize(data["image"], cfg.mean, cfg.std), expected, atol=1e-5)
    np.testing.assert_array_equal(targets, np.eye(10)[data["label"]])


def test_flip_mirrors_its_share_of_images():
    data = batch(512)
    images, _ = run(data, flip=0.3, policy="none", erasing=0.0, **UNMIXED)
    plain = normalize(data["image"], config().mean, config().std)
    is_flipped = np.all(np.isclose(images, plain[:, :, ::-1], atol=1e-5), axis=(1, 2, 3))
    is_same = np.all(np.isclose(images, plain, atol=1e-5), axis=(1, 2, 3))
    assert np.all(is_flipped | is_same)
    assert 0.2 < is_flipped.mean() < 0.4


@pytest.mark.parametrize("policy", ["rand", "three"])
def test_an_image_does_not_depend_on_its_neighbours(policy):
    data = batch(64)
    images, _ = run(data, policy=policy, **UNMIXED)
    order = np.random.default_rng(1).integers(0, 64, 64)  # some twice, some not at all
    some, _ = run({name: value[order] for name, value in data.items()}, policy=policy, **UNMIXED)
    np.testing.assert_array_equal(some, images[order])


@pytest.mark.parametrize("field", ["epoch", "index", "repeat"])
def test_each_view_of_an_image_is_another(field):
    data = batch(64)
    one, _ = run(data, policy="rand", **UNMIXED)
    other, _ = run(data | {field: data[field] + 1}, policy="rand", **UNMIXED)
    assert np.mean(np.any(one != other, axis=(1, 2, 3))) > 0.6


def test_step_changes_the_mixing_alone():
    data = batch(64)
    assert np.any(run(data, step=0)[0] != run(data, step=1)[0])
    one, other = (run(data, step, policy="rand", **UNMIXED)[0] for step in (0, 1))
    np.testing.assert_array_equal(one, other)


def test_same_key_same_result_other_seed_other_result():
    data = batch(64)
    np.testing.assert_array_equal(run(data)[0], run(data)[0])
    assert np.any(run(data)[0] != run(data, seed=1)[0])


def test_mixing_is_of_augmented_images_in_groups():
    data, cfg = batch(64), {"mix_group": 16, "cutmix": 0.0, "policy": "none"}  # flips and erasing augment
    images, targets = run(data, **cfg)
    alone, own = run(data, **(cfg | UNMIXED))
    for start in range(0, 64, 16):
        group = slice(start, start + 16)
        t, o, p = targets[group], own[group], own[group][::-1]
        differs = np.abs(o - p) > 0.5
        lam = np.median(((t - p) / jnp.where(differs, o - p, 1))[differs])
        np.testing.assert_allclose(images[group], lam * alone[group] + (1 - lam) * alone[group][::-1], atol=1e-4)


def test_an_unknown_policy_is_named():
    with pytest.raises(UserError, match=r"augment\.policy is 'auto'"):
        jax.eval_shape(lambda b: augment_train(b, jax.random.key(0), 0, config(policy="auto"), 10), batch(2))


@pytest.mark.slow
def test_eight_devices_agree_with_one_and_exchange_no_images():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    data, cfg, key = batch(256), config(policy="rand", mix_group=32), jax.random.key(0)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    as_users = {"xla_backend_optimization_level": 3}  # without, code for other numbers of rows rounds in other places
    on_eight = (
        jax.jit(
            lambda b, k, s: augment_train(b, k, s, cfg, 10),
            out_shardings=(sharding, sharding),
            compiler_options=as_users,
        )
        .lower(jax.device_put(data, sharding), key, 5)
        .compile()
    )
    images, targets = on_eight(jax.device_put(data, sharding), key, 5)
    one = jax.jit(lambda b, k, s: augment_train(b, k, s, cfg, 10, shards=1), compiler_options=as_users)
    on_one = one(data, key, 5)
    np.testing.assert_array_equal(images, on_one[0])
    np.testing.assert_array_equal(targets, on_one[1])
    assert len(images.sharding.device_set) == 8
    collectives = re.findall(r"= (.*) (?:all-gather|all-reduce|all-to-all|collective-permute)\(", on_eight.as_text())
    assert len(collectives) == 1  # how often the passes' loops turn
    assert re.match(r"s32\[\d+\]", collectives[0])

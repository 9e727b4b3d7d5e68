"""Mixup, cutmix and soft targets: timm's golden target, each pixel's origin, and the distributions of what is drawn."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from deit_jax.augment.erasing import Box
from deit_jax.augment.mix import Mix, draw_mix, mix_images, mix_targets, num_groups
from deit_jax.losses import soft_targets

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "mixup.npz")
DRAWS = 20_000


def cfg(**changes):
    return SimpleNamespace(**{"mixup": 0.8, "cutmix": 1.0, "mix_switch": 0.5, "mix_prob": 1.0} | changes)


def draws(settings, height=224, width=224):
    keys = jax.random.split(jax.random.key(3), DRAWS)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda k: draw_mix(k, settings, height, width)))(keys))


def mixes(lam, cutmix, box=(0, 0, 0, 0)):
    return Mix(jnp.float32([lam]), jnp.array([cutmix]), Box(*(jnp.array([edge]) for edge in box)))


def test_target_is_timms():
    target = mix_targets(soft_targets(GOLDEN["labels"], 1000, 0.1), jnp.float32([0.3]))
    np.testing.assert_allclose(target, GOLDEN["target"], atol=1e-7)


def test_mixup_blends_with_the_image_at_the_mirrored_position():
    images = np.random.default_rng(0).normal(size=(6, 4, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(mix_images(images, mixes(0.3, False)), 0.3 * images + 0.7 * images[::-1], atol=1e-6)


def test_cutmix_takes_the_box_from_the_partner_and_nothing_else():
    images = np.random.default_rng(0).normal(size=(6, 8, 9, 3)).astype(np.float32)
    expected = images.copy()
    expected[:, 2:5, 3:9] = images[::-1, 2:5, 3:9]
    np.testing.assert_array_equal(mix_images(images, mixes(0.1, True, (2, 5, 3, 9))), expected)


def test_groups_do_not_mix_with_each_other():
    images = np.zeros((8, 4, 4, 3), np.float32)
    images[4:] = 1
    one = mixes(0.3, False)
    mixed = mix_images(images, jax.tree.map(lambda x: jnp.concatenate([x, x]), one))
    np.testing.assert_allclose(mixed, images, atol=1e-6)


@pytest.mark.parametrize(
    ("batch", "wanted", "sizes"),
    [
        (1024, 64, [64] * 16), (96, 64, [48, 48]), (100, 64, [50, 50]), (1016, 64, [8] * 127), (63, 64, [63]),
        (67, 64, [34, 33]), (101, 64, [51, 50]), (127, 64, [64, 63]), (134, 64, [45, 45, 44]),
        (509, 64, [64] * 5 + [63] * 3), (7, 2, [2, 2, 2, 1]), (6, 1, [1] * 6), (1, 64, [1]),
    ],
)  # fmt: skip
def test_groups_have_partners_enough(batch, wanted, sizes):
    groups = num_groups(batch, wanted)
    assert [len(rows) for rows in np.array_split(np.arange(batch), groups)] == sizes


@pytest.mark.parametrize("batch", range(65, 700, 7))
def test_no_batch_is_left_unmixed(batch):
    groups = num_groups(batch, 64)
    assert batch // groups >= 8
    assert -(-batch // groups) <= 64


def test_groups_of_unequal_size_mix_as_groups_of_equal_size_do():
    images = np.random.default_rng(0).normal(size=(7, 8, 9, 3)).astype(np.float32)
    targets = np.eye(7, dtype=np.float32)
    one, other = mixes(0.3, False), mixes(0.6, True, (2, 5, 3, 9))
    both = jax.tree.map(lambda *x: jnp.concatenate(x), one, other)
    expected = [mix_images(images[:4], one), mix_images(images[4:], other)]
    np.testing.assert_array_equal(mix_images(images, both), np.concatenate(expected))
    expected = np.zeros((7, 7), np.float32)
    for row, partner, lam in [*((i, 3 - i, 0.3) for i in range(4)), *((4 + i, 6 - i, 0.6) for i in range(3))]:
        expected[row, row] += lam
        expected[row, partner] += 1 - lam
    np.testing.assert_allclose(mix_targets(targets, both.lam), expected, atol=1e-6)


def test_lambda_and_switch_follow_the_recipe():
    mix = draws(cfg())
    assert stats.binomtest(int(mix.cutmix.sum()), DRAWS, 0.5).pvalue > 1e-3
    assert stats.kstest(mix.lam[~mix.cutmix], stats.beta(0.8, 0.8).cdf).pvalue > 1e-3
    # Cutmix: compare with a direct simulation of the clipped box, its share corrected.
    rng = np.random.default_rng(0)
    cut = (224 * np.sqrt(1 - rng.beta(1, 1, DRAWS))).astype(int) // 2
    y, x = rng.integers(0, 224, (2, DRAWS))
    sides = [np.minimum(c + cut, 224) - np.maximum(c - cut, 0) for c in (y, x)]
    assert stats.ks_2samp(mix.lam[mix.cutmix], 1 - sides[0] * sides[1] / 224**2).pvalue > 1e-3


def test_share_is_the_boxs_area():
    mix = draws(cfg(mixup=0.0), 20, 30)
    assert mix.cutmix.all()
    inside = np.asarray(jax.vmap(lambda box: box.mask(20, 30).sum())(mix.box))
    np.testing.assert_allclose(mix.lam, 1 - inside / 600, atol=1e-6)
    assert mix.box.top.min() == 0
    assert mix.box.bottom.max() == 20
    assert mix.box.right.max() == 30


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
def test_cutmix_off_is_mixup_always_and_alpha_counts(alpha):
    mix = draws(cfg(cutmix=0.0, mixup=alpha))
    assert not mix.cutmix.any()
    assert stats.kstest(mix.lam, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_both_off_mixes_nothing():
    assert np.all(draws(cfg(cutmix=0.0, mixup=0.0)).lam == 1)


def test_tiny_alpha_stays_finite():
    lam = draws(cfg(cutmix=0.0, mixup=0.01)).lam
    assert np.isfinite(lam).all()
    assert 0.45 < lam.mean() < 0.55


def test_mix_prob_leaves_groups_alone():
    mix = draws(cfg(mix_prob=0.25))
    assert stats.binomtest(int((mix.lam < 1).sum()), DRAWS, 0.25).pvalue > 1e-4  # a box may be empty: lam 1

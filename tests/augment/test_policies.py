"""RandAugment and 3-Augment: what is drawn, over many draws, and that a batch becomes what PIL makes of each image."""

import functools
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from pil_ops import assert_close, pil_op, timm_arg
from scipy import stats

from deit_jax.augment import OPS
from deit_jax.augment.pixels import choose, on_chosen, pack, unpack
from deit_jax.augment.rand import draw_rand_augment, passes_needed, rand_augment
from deit_jax.augment.three import BLUR, GREY, SOLARIZE, draw_three_augment, gaussian_blur, three_augment
from deit_jax.config import SETTINGS

DRAWS = 20_000
FILL = (124, 116, 104)
SIGNED = [n for n in OPS if timm_arg(n, 5, 1) != timm_arg(n, 5, -1)]


def cfg(**changes):
    return SimpleNamespace(**{name: setting.default for name, setting in SETTINGS["augment"].items()} | changes)


def draws(function, settings, count=DRAWS, seed=1):
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda key: function(key, settings)))(keys))


@pytest.fixture(scope="module")
def drawn():
    return draws(draw_rand_augment, cfg(rand_resampling="random"))


@pytest.fixture(scope="module")
def photos():
    path = Path(__file__).parents[1] / "golden/eval_giant_panda.JPEG"
    photo, rng = np.asarray(Image.open(path).convert("RGB")), np.random.default_rng(0)
    corners = rng.integers(0, min(photo.shape[:2]) - 64, (240, 2))
    return np.stack([photo[y : y + 48, x : x + 64] for y, x in corners])


def test_ops_are_drawn_alike_and_independently(drawn):
    pairs = np.zeros((15, 15))
    np.add.at(pairs, (drawn.op[:, 0], drawn.op[:, 1]), 1)
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-3  # with replacement: the diagonal too


def test_half_of_the_ops_is_applied(drawn):
    assert stats.binomtest(int(drawn.applied.sum()), 2 * DRAWS, 0.5).pvalue > 1e-3
    both = np.bincount(drawn.applied.sum(1), minlength=3)
    assert stats.chisquare(both, DRAWS * np.array([0.25, 0.5, 0.25])).pvalue > 1e-3


def test_magnitude_is_a_normal_cut_at_ten(drawn):
    magnitude = drawn.magnitude.ravel()
    cut = magnitude == 10
    assert stats.binomtest(int(cut.sum()), len(magnitude), stats.norm.sf(2)).pvalue > 1e-3
    assert stats.kstest(magnitude[~cut], stats.truncnorm(-18, 2, loc=9, scale=0.5).cdf).pvalue > 1e-3
    assert draws(draw_rand_augment, cfg(rand_magnitude=0.5, rand_magnitude_std=2.0)).magnitude.min() == 0


def test_resampling_is_as_set(drawn):
    assert stats.binomtest(int(drawn.cubic.sum()), 2 * DRAWS, 0.5).pvalue > 1e-3
    assert cfg().rand_resampling == "bicubic"
    assert draws(draw_rand_augment, cfg(), 100).cubic.all()
    assert not draws(draw_rand_augment, cfg(rand_resampling="bilinear"), 100).cubic.any()


@pytest.mark.parametrize("name", OPS)
def test_argument_is_timms_and_its_sign_a_coin(drawn, name):
    chosen = drawn.op == OPS.index(name)
    magnitude, arg = drawn.magnitude[chosen].astype(float), drawn.arg[chosen]
    plus, minus = (np.array([timm_arg(name, m, sign) for m in magnitude]) for sign in (1, -1))
    is_plus, is_minus = np.isclose(arg, plus, atol=1e-5), np.isclose(arg, minus, atol=1e-5)
    assert np.mean(is_plus | is_minus) > 0.999  # a step of posterize or solarize may round the other way
    if name in SIGNED:
        assert stats.binomtest(int(is_plus.sum()), len(arg), 0.5).pvalue > 1e-4


def test_ops_do_not_depend_on_each_other(drawn):
    numbers = np.stack([drawn.op, drawn.applied, drawn.magnitude, drawn.cubic, drawn.arg > 0]).astype(float)
    correlation = np.corrcoef(numbers[:4].transpose(0, 2, 1).reshape(8, -1)) - np.eye(8)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(DRAWS)


@functools.partial(jax.jit, static_argnames="shards")
def apply_rand(images, ops, shards=1):
    return unpack(rand_augment(pack(images), ops, FILL, choose(passes_needed(ops), shards)))


@pytest.mark.parametrize(
    ("shards", "count", "places"), [(1, 2, [0, 1]), (8, 2, [0, 1]), (1, 4, [0, 3]), (1, 4, [1, 2])]
)
def test_rand_augment_is_pil_op_by_op(photos, shards, count, places):
    """Two ops at a time: the next ones enlarge what the first have rounded."""
    ops = draws(draw_rand_augment, cfg(rand_ops=count, rand_prob=0.8, rand_resampling="random"), len(photos))
    ops = ops._replace(applied=ops.applied & np.isin(np.arange(count), places))
    got = apply_rand(photos, ops, shards)
    for i, image in enumerate(photos):
        for j in range(count):
            if ops.applied[i, j]:
                resampling = "bicubic" if ops.cubic[i, j] else "bilinear"
                image = pil_op(OPS[ops.op[i, j]], image, float(ops.arg[i, j]), resampling, FILL)
        assert_close(got[i], image)


def test_three_choices_and_jitter_follow_the_recipe():
    drawn = draws(draw_three_augment, cfg())
    assert stats.chisquare(np.bincount(drawn.choice)).pvalue > 1e-3
    assert stats.kstest(drawn.sigma, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3
    for factor in drawn.jitter.T:
        assert stats.kstest(factor, stats.uniform(0.7, 0.6).cdf).pvalue > 1e-3
    orders, counts = np.unique(drawn.order, axis=0, return_counts=True)
    assert len(orders) == 6
    assert stats.chisquare(counts).pvalue > 1e-3


def test_jitter_of_more_than_one_stays_positive():
    assert draws(draw_three_augment, cfg(color_jitter=1.5), 1000).jitter.min() >= 0


def test_three_augment_is_pil_step_by_step(photos):
    drawn = draws(draw_three_augment, cfg(), len(photos))
    apply = jax.jit(lambda x, drawn: unpack(three_augment(pack(x), drawn, choose(drawn.choice == BLUR))))
    got = apply(photos, drawn)
    assert set(drawn.choice) == {GREY, SOLARIZE, BLUR}
    for i, image in enumerate(photos):
        picture = Image.fromarray(image)
        picture = {
            GREY: lambda p=picture: p.convert("L").convert("RGB"),
            SOLARIZE: lambda p=picture: ImageOps.solarize(p, 128),
            BLUR: lambda p=picture, s=drawn.sigma[i]: p.filter(ImageFilter.GaussianBlur(float(s))),
        }[int(drawn.choice[i])]()
        for which in drawn.order[i]:
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[which]
            picture = enhance(picture).enhance(float(drawn.jitter[i, which]))
        assert_close(got[i], np.asarray(picture))


@pytest.mark.parametrize("shape", [(48, 64), (3, 2), (1, 1)])
def test_blur_is_pils(photos, shape):
    image, sigmas = photos[0][: shape[0], : shape[1]], np.float32([0.1, 0.3, 0.7, 1.0, 1.41, 1.42, 1.8, 2.0])
    blur = jax.jit(lambda images, sigmas: unpack(gaussian_blur(pack(images), sigmas)))
    for sigma, got in zip(sigmas, blur(np.stack([image] * len(sigmas)), sigmas), strict=True):
        expected = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(float(sigma))))
        assert np.abs(np.asarray(got).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_a_pass_works_on_the_chosen_and_on_all_of_them(batch, share):
    rng = np.random.default_rng(batch)
    images, arg = jnp.array(rng.integers(0, 99, (batch, 2, 3))), rng.integers(0, 99, batch)
    needed = {"one": jnp.array(rng.random(batch) < share), "two": jnp.array(rng.random((3, batch)) < share)}
    for shards in {1, int(np.gcd(batch, 8))}:
        chosen = choose(needed, shards)
        for name, which in (("one", ()), ("two", (0,)), ("two", (2,))):
            one_pass = jax.tree.map(lambda x, which=which: x[which], chosen[name])
            got = on_chosen(lambda x, a: x + a[:, None, None], images, one_pass, jnp.array(arg))
            expected = images + (np.array(needed[name][which]) * arg)[:, None, None]
            np.testing.assert_array_equal(got, expected)

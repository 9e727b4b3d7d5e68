"""Random erasing: the box's distribution, its noise, and that nothing else is touched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from deit_jax.augment.erasing import draw_erasing, erase, normal_of_bits

DRAWS = 20_000


def draws(prob, height=224, width=224, count=DRAWS):
    keys = jax.random.split(jax.random.key(5), count)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda key: draw_erasing(key, prob, height, width)))(keys))


def simulate(height, width, rng):
    """timm's loop for one image: (h, w, top, left) of its box, or None after ten tries."""
    for _ in range(10):
        area, aspect = rng.uniform(0.02, 1 / 3) * height * width, np.exp(rng.uniform(np.log(0.3), -np.log(0.3)))
        h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if h < height and w < width:
            return h, w, rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    return None


@pytest.mark.parametrize(("height", "width"), [(224, 224), (32, 48)])
def test_boxes_are_timms(height, width):
    rng = np.random.default_rng(0)
    expected = np.array([box for box in (simulate(height, width, rng) for _ in range(DRAWS)) if box])
    box = draws(1.0, height, width).box
    h, w = box.bottom - box.top, box.right - box.left
    got = np.stack([h, w, box.top, box.left], 1)[h > 0]
    assert abs(len(got) - len(expected)) <= 5  # only tiny images run out of tries
    for g, e in zip((*got.T, got[:, 0] * got[:, 1]), (*expected.T, expected[:, 0] * expected[:, 1]), strict=True):
        assert stats.ks_2samp(g, e).pvalue > 1e-3


@pytest.mark.parametrize("prob", [0.25, 0.6, 0.0, 1.0])
def test_share_of_erased_images(prob):
    box = draws(prob).box
    erased = int((box.bottom > box.top).sum())
    assert stats.binomtest(erased, DRAWS, prob).pvalue > 1e-3


def test_no_bits_make_an_infinite_pixel():
    edges = jnp.asarray([0, 1, 2**9, 2**31 - 1, 2**31, 2**32 - 2**9, 2**32 - 2**8, 2**32 - 1], jnp.uint32)
    values = np.asarray(jax.jit(normal_of_bits)(edges))
    assert np.isfinite(values).all()
    assert values[0] == -values[-1] < -5  # the ends of the distribution, as far as 23 bits reach


def test_noise_is_standard_normal_and_each_pixels_own():
    drawn = draws(1.0, 64, 64, 200)
    images = np.full((200, 64, 64, 3), 9.0, np.float32)
    erased = np.asarray(erase(images, drawn))
    inside = np.asarray(drawn.box.mask(64, 64))
    np.testing.assert_array_equal(erased[~inside], images[~inside])
    assert stats.kstest(erased[inside].ravel()[::7], stats.norm.cdf).pvalue > 1e-3
    edges = {"top": 0, "bottom": 64, "left": 0, "right": 64}
    everywhere = drawn.box._replace(**{name: np.full(200, edge) for name, edge in edges.items()})
    whole = np.asarray(erase(images, drawn._replace(box=everywhere)))
    shifted = [whole[1:], whole[:, 1:], whole[:, :, 1:], whole[..., 1:]]  # next image, row, column, channel
    for axis, other in enumerate(shifted):
        same = np.take(whole, range(whole.shape[axis] - 1), axis)
        assert abs(np.corrcoef(same.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(other.size)
    assert abs(stats.kurtosis(whole.ravel())) < 0.01
    assert np.all(np.abs(whole.mean((1, 2, 3))) < 5 / 64 / np.sqrt(3))  # no image's noise is off centre
    assert len(np.unique(whole[0])) > 0.99 * whole[0].size


def test_nothing_drawn_nothing_erased():
    images = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(erase(images, draws(0.0, 16, 16, 8)), images)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (1, 40)])
def test_images_too_small_for_a_box(height, width):
    box = draws(1.0, height, width, 500).box
    assert np.all((box.bottom - box.top < max(height, 1)) & (box.right <= width))
    assert np.all((box.top >= 0) & (box.left >= 0))
    assert jnp.isfinite(erase(jnp.zeros((500, height, width, 3)), draws(1.0, height, width, 500))).all()

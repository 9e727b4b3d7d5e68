"""What every family of models does alike: arguments of any number type, batches of any size, forward derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import seeded_arrays

from deit_jax import models
from deit_jax.errors import UserError

SMALL = {
    "deit_digits_distilled_patch4_16": {"embed_dim": 48, "num_heads": 2, "depth": 2},
    "regnety_digits": {"depth": 2},
    "efficientnet_b0": {"width_coefficient": 0.25, "depth_coefficient": 0.5, "drop_rate": 0.0, "drop_path_rate": 0.0},
}
IMAGES = np.random.default_rng(0).standard_normal((3, 16, 16, 3)).astype(np.float32)
families = pytest.mark.parametrize("name", SMALL)
HEAVY = pytest.param("efficientnet_b0", marks=pytest.mark.slow)  # takes long to compile
heavy_families = pytest.mark.parametrize("name", ["deit_digits_distilled_patch4_16", "regnety_digits", HEAVY])


def small(name: str, **changes):
    return models.constructor(name, num_classes=5, **(SMALL[name] | {"img_size": 16} | changes))


@functools.cache
def forward(name: str):
    """A function of images, with weights for which the images matter."""
    arrays, (graphdef, _, _) = seeded_arrays(small(name)), models.abstract(small(name))
    return lambda images: nnx.merge(graphdef, arrays["params"], arrays["batch_stats"])(images)


def test_every_family_is_here():
    assert {models.find(name)[0] for name in SMALL} == set(models.FAMILIES)


@heavy_families
def test_a_program_of_any_batch_size_is_exported(name):
    model = forward(name)
    (batch,) = jax.export.symbolic_shape("batch")
    exported = jax.export.export(jax.jit(model))(jax.ShapeDtypeStruct((batch, 16, 16, 3), jnp.float32))
    np.testing.assert_allclose(exported.call(IMAGES), jax.jit(model)(IMAGES), atol=1e-5)


@families
@pytest.mark.parametrize(("given", "expected"), [([32, 64], (32, 64)), (np.int64(16), 16), (np.array([16, 16]), 16)])
def test_sizes_are_numbers_of_any_type(name, given, expected):
    build = small(name, img_size=given)
    assert build.keywords["img_size"] == expected
    models.abstract(build)


@pytest.mark.parametrize("given", [0, "16", (16, 16, 3), 16.5])
def test_what_is_no_size_is_told(unchecked, given):
    with pytest.raises(ValueError, match=r"img_size is .*: give pixels per side, or \(height, width\)"):
        small("deit_digits_distilled_patch4_16", img_size=given)


@heavy_families
def test_heads_are_taken_off_and_put_on_again(name):
    """Without them the model returns what they saw, as timm's `reset_classifier(0)`."""
    arrays, (graphdef, _, _) = seeded_arrays(small(name)), models.abstract(small(name))
    model = nnx.merge(graphdef, *jax.tree.map(jnp.asarray, (arrays["params"], arrays["batch_stats"])))
    call = nnx.jit(lambda model: (model(IMAGES), model.heads(IMAGES)))
    logits, _ = call(model)
    params = {path: leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    bodies = {path[:-1] for path in params if set(path) & {"head", "head_dist", "classifier"}}
    heads = [(params[*path, "kernel"], params[*path, "bias"]) for path in sorted(bodies)]
    model.reset_classifier(0, nnx.Rngs(0))
    together, seen = call(model)
    assert together.shape == (3, len(heads[0][0]))
    parts = [x @ kernel + bias for x, (kernel, bias) in zip(seen, heads, strict=False) if x is not None]
    np.testing.assert_allclose(sum(parts) / len(parts), logits, atol=1e-5)
    model.reset_classifier(7, nnx.Rngs(1))
    assert (nnx.eval_shape(lambda model: model(IMAGES), model).shape, model.num_classes) == ((3, 7), 7)


@families
def test_training_without_a_key_is_refused_where_something_is_dropped(name):
    if name == "regnety_digits":
        pytest.skip("a RegNet drops nothing")
    model = nnx.eval_shape(lambda: small(name, drop_path_rate=0.1)(rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match="needs a key"):
        nnx.eval_shape(lambda m: m.heads(IMAGES, train=True), model)

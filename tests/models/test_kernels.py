"""GELU and attention against plain definitions: values, derivatives, what is kept for the backward pass."""

import functools
import types

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx
from helpers import TINY_PLAIN

import deit_jax
from deit_jax import models
from deit_jax.errors import UserError
from deit_jax.models import kernels
from deit_jax.runtime import hardware

X = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -0.0, 1e-30, -1e-4, 30, -30, 100, -100]])

normalize = functools.partial(kernels.normalize, epsilon=0.1)
gelu_derivative = jax.jit(jax.vmap(jax.grad(kernels.gelu)))


def exact(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(GELU, its derivative) in float64."""
    cdf = 0.5 * scipy.special.erfc(-x / np.sqrt(2))
    return x * cdf, cdf + x * np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)


@pytest.mark.parametrize(("dtype", "ulp"), [(jnp.float32, 2.5e-7), (jnp.bfloat16, 2**-8), (jnp.float16, 2**-11)])
def test_gelu_is_the_exact_one(dtype, ulp):
    x = jnp.asarray(X, dtype)
    value, derivative = exact(np.asarray(x, np.float64))
    assert kernels.gelu(x).dtype == dtype
    scale = np.maximum(np.abs(np.asarray(x, np.float64)), 1)
    assert (np.abs(np.asarray(kernels.gelu(x), np.float64) - value) / scale).max() < ulp
    ours = gelu_derivative(x)
    assert ours.dtype == dtype
    assert (np.abs(np.asarray(ours, np.float64) - derivative) / scale).max() < ulp


def test_gelu_by_other_steps_is_the_same():
    x = jnp.asarray(X, jnp.float32)
    for ours, again in zip(*(kernels.value_and_derivative(x, again) for again in (False, True)), strict=True):
        np.testing.assert_allclose(again, ours, rtol=1e-6, atol=2e-7)


def test_gelu_stays_finite():
    x = jnp.asarray([np.inf, -1e38, 1e38, 3e38], jnp.float32)
    np.testing.assert_array_equal(kernels.gelu(x), np.asarray([np.inf, 0, 1e38, 3e38], np.float32))
    np.testing.assert_array_equal(gelu_derivative(x[1:]), [0, 1, 1])
    assert np.isnan(kernels.gelu(jnp.float32(np.nan)))


def draw(*shape, seed=0, scale=1.0, dtype=np.float32):
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), dtype)


def plain_attention(q, k, v):
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, precision="highest") / q.shape[-1] ** 0.5
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, axis=-1), v, precision="highest")


def value_and_gradients(attention, arrays, upstream):
    """(an attention's output, and its gradients), compiled as one."""

    @jax.jit
    def both(*arrays):
        out, pull = jax.vjp(attention, *arrays)
        return out, *pull(upstream.astype(out.dtype))

    return both(*arrays)


def test_normalize_in_float64_is_a_layer_norm():
    with jax.enable_x64(True):
        x, upstream = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 5, 16)))
        plain = lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 0.1)
        for ours, theirs in zip(*(value_and_gradients(f, [x], upstream) for f in (normalize, plain)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("attention", [kernels.attention, kernels.attention_recomputed], ids=["kept", "recomputed"])
def test_attention_and_its_gradient(attention, scale):
    *arrays, upstream = (draw(2, 3, 37, 64, seed=i, scale=scale) for i in range(4))
    ours, theirs = (value_and_gradients(f, arrays, upstream) for f in (attention, plain_attention))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_attention_scores_are_float32_whatever_the_type():
    q, k = (draw(1, 2, 9, 64, seed=i, scale=8.0, dtype=jnp.bfloat16) for i in range(2))
    weights = kernels.attention_weights(q, k)
    assert weights.dtype == jnp.float32
    wide = kernels.attention_weights(q.astype(jnp.float32), k.astype(jnp.float32))
    np.testing.assert_allclose(weights, wide, atol=1e-5)  # rounded to bfloat16, scores of 100 would be off by 0.5


@pytest.mark.parametrize("tokens", [17, 18])
def test_fused_attention_pads_odd_lengths_unseen(tokens):
    *arrays, upstream = (draw(2, 3, tokens, 64, seed=i) for i in range(4))
    # by jax's other implementation of the same call: cuDNN's needs its GPU
    fused = lambda q, k, v: kernels.fused_attention(q, k, v, implementation="xla")
    ours, theirs = (value_and_gradients(f, arrays, upstream) for f in (fused, plain_attention))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


class Plain(nnx.Module):
    """The model's blocks, written once more without scan, checkpoint or own derivative."""

    def __init__(self, model):
        self.model = model

    def logits(self, images):
        m = self.model
        x = m.embed(images)
        graphdef, stacked = nnx.split(m.blocks)
        for i in range(m.depth):
            block = nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], stacked))
            qkv = einops.rearrange(
                block.attn.qkv(block.norm1(x)), "b n (k h d) -> k b h n d", k=3, h=block.attn.num_heads
            )
            heads = einops.rearrange(plain_attention(*qkv), "b h n d -> b n (h d)")
            x = x + block.attn.proj(heads)
            x = x + block.mlp.fc2(jax.nn.gelu(block.mlp.fc1(block.norm2(x)), approximate=False))
        return m.head(m.norm(x)[:, 0])


def gradients(graphdef, params, images, logits):
    loss = lambda p: (jax.nn.log_softmax(logits(nnx.merge(graphdef, p, {}), images)) ** 2).mean()
    return jax.jit(jax.grad(loss))(params)


def assert_equal_gradients(ours, plain):
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * largest, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_models_gradient_is_the_plain_ones(remat):
    graphdef, params = with_drawn_parameters(TINY_PLAIN, remat=remat)
    images = draw(4, 16, 16, 3)
    ours = gradients(graphdef, params, images, lambda model, x: model.heads(x)[0])
    plain = gradients(graphdef, params, images, lambda model, x: Plain(model).logits(x))
    assert_equal_gradients(ours, plain)


@pytest.fixture
def forms(monkeypatch):
    """(attention, targets) of the form for CPUs and of that for GPUs: three products for queries, keys and values,
    padded tokens, norms and biases in the weights, GELU computed twice; cuDNN's call by jax's other implementation."""
    gpu = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
    attend = lambda tokens: functools.partial(kernels.fused_attention, implementation="xla", real=tokens)
    monkeypatch.setattr(kernels, "has_fused_attention", lambda *_: True)
    monkeypatch.setattr(kernels, "fused_attention_of", attend)
    return ("einsum", jax.devices()[:1]), ("cudnn", [gpu, gpu])


def with_drawn_parameters(name, **options):
    """(graphdef, parameters): of a model whose attention is not flat and whose norms do something."""
    build = models.constructor(name, num_classes=10, **options)
    params, _ = models.init_arrays(build, jax.random.key(0))
    params = jax.tree.map(lambda p: p + 0.05 * draw(*p.shape, seed=p.size), params)
    return models.abstract(build)[0], params


@pytest.mark.parametrize(  # 17 and 18 tokens
    "name", [pytest.param("deit_digits_patch4_16", marks=pytest.mark.slow), "deit_digits_distilled_patch4_16"]
)
def test_the_form_for_gpus_has_the_same_gradient(name, forms):
    images, grads = draw(4, 16, 16, 3), []
    for attention, targets in forms:
        with hardware.compiling_for(*targets):
            graphdef, params = with_drawn_parameters(name, attention=attention)
            grads.append(gradients(graphdef, params, images, lambda model, x: model.heads(x)[0]))
    plain, ours = grads
    assert_equal_gradients(ours, plain)


def test_the_form_for_gpus_is_as_exact_in_bfloat16(forms):
    images, errors = draw(32, 16, 16, 3), []
    run = jax.jit(lambda graphdef, params, images: nnx.merge(graphdef, params, {})(images), static_argnums=0)
    exact_logits = run(*with_drawn_parameters("deit_digits_patch4_16"), images)
    for attention, targets in forms:
        with hardware.compiling_for(*targets):
            graphdef, params = with_drawn_parameters("deit_digits_patch4_16", attention=attention, dtype="bfloat16")
            errors.append(float(jnp.square(run(graphdef, params, images) - exact_logits).mean()) ** 0.5)
    plain, ours = errors
    assert 0 < ours < 1.2 * plain


def kept_bytes(**options) -> int:
    """Memory the backward pass of a loss takes, from the compiled program."""
    graphdef, params, _ = models.abstract(models.constructor("deit_tiny_patch16_224", **options))
    images = jax.ShapeDtypeStruct((8, 224, 224, 3), np.float32)
    loss = lambda p, x: nnx.merge(graphdef, p, {}).heads(x)[0].sum()
    return jax.jit(jax.grad(loss)).lower(params, images).compile().memory_analysis().temp_size_in_bytes


def test_attention_weights_are_not_kept():
    # per layer: its input, normalized halves, queries, keys and values, heads; GELU and its derivative; and little else
    tokens, dim, depth = 8 * 197, 192, 12
    per_layer = 4 * tokens * (7 * dim + 3 * dim + 2 * 4 * dim)
    weights = 4 * 8 * 3 * 197**2
    assert kept_bytes() < depth * per_layer + 4 * weights + 2**26
    assert kept_bytes(attention="einsum") > kept_bytes() + depth * weights


def test_an_unknown_attention_is_named():
    with pytest.raises(UserError, match="attention 'auto' is not known: use einsum, recompute, cudnn"):  # of settings
        deit_jax.create_model("deit_digits_patch4_16", num_classes=10, attention="auto")


def test_cpu_has_no_fused_attention():
    with pytest.raises(UserError, match=r"needs an NVIDIA GPU.*here it is cpu, float32 and 32: use recompute"):
        deit_jax.create_model("deit_digits_patch4_16", num_classes=10, attention="cudnn")

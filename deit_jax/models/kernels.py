"""Fast GELU, normalization and attention that keep little for the backward pass.

What jax derives by itself keeps every intermediate of the forward pass, and the scan over the blocks copies all of that
into arrays of all layers. Here attention saves its arguments for the backward pass, and GELU its derivative, or on
a GPU its input alone; see docs/performance.md. `normalize`, of GPUs, has no forward-mode derivative.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from deit_jax.errors import UserError, nearest
from deit_jax.runtime import hardware

# Abramowitz & Stegun 1964, 7.1.26: erfc(z) = t (A1 + t (A2 + …)) exp(-z^2) + e, |e| < 1.5e-7, t = 1 / (1 + P z), z >= 0
P = 0.3275911
A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)

Heads = Float[Array, "batch heads tokens head_dim"]  # queries, keys or values
Elements = Float[Array, "*shape"]
Tokens = Float[Array, "*batch dim"]
Kept = tuple[Tokens, Float[Array, "*batch 1"]]  # normalized tokens, 1 / deviation


@jax.custom_jvp
def gelu(x: Elements) -> Elements:
    """x Phi(x), the exact GELU (Hendrycks & Gimpel 2016), computed in float32 with an error below 1.5e-7 x."""
    return value_and_derivative(x)[0]


@gelu.defjvp
def gelu_derivative(primals: tuple[Elements], tangents: tuple[Elements]) -> tuple[Elements, Elements]:
    """Value and tangent of `gelu`. On a GPU they share no step: XLA may put the ones that both share into memory, in
    float32, which takes longer than computing them again."""
    value, derivative = value_and_derivative(*primals)
    if hardware.target().platform == "gpu":
        derivative = value_and_derivative(*primals, again=True)[1]
    return value, derivative * tangents[0]


def value_and_derivative(x: Elements, again: bool = False) -> tuple[Elements, Elements]:
    """(x Phi(x), Phi(x) + x phi(x)) of the standard normal's distribution and density: one exponential for both.

    again: by steps that a compiler does not take for those of the other call.
    """
    z = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    exponential = jnp.exp(-0.5 * (z * z) if again else -0.5 * z * z)
    slope = P / math.sqrt(2)
    t = 1 / slope / (1 / slope + jnp.abs(z)) if again else 1 / (1 + slope * jnp.abs(z))
    tail = 0.5 * t * (A[0] + t * (A[1] + t * (A[2] + t * (A[3] + t * A[4])))) * exponential
    cdf = jnp.where(z < 0, tail, 1 - tail)
    derivative = cdf + z * exponential / math.sqrt(2 * math.pi)
    return (z * cdf).astype(x.dtype), derivative.astype(x.dtype)


def linear_of_gelu(linear: nnx.Linear, x: Float[Array, "rows hidden"]) -> Float[Array, "rows dim"]:
    """linear(gelu(x)). On a GPU the backward pass keeps x alone: GELU's gradient reads it anyway, and makes the value
    again."""
    if hardware.target().platform != "gpu" or type(linear) is not nnx.Linear or linear.bias is None:
        return linear(gelu(x))
    x, kernel, bias = linear.promote_dtype((x, linear.kernel[...], linear.bias[...]), dtype=linear.dtype)
    product = lambda x, kernel: linear.dot_general(gelu(x), kernel, (((1,), (0,)), ((), ())))
    return jax.checkpoint(product)(x, kernel) + bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def normalize(x: Tokens, epsilon: float) -> Tokens:
    """LayerNorm without scale and bias, statistics in float32. The backward pass keeps the result instead of x."""
    return normalize_and_keep(x, epsilon)[0]


def normalize_and_keep(x: Tokens, epsilon: float) -> tuple[Tokens, Kept]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centered = wide - wide.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + epsilon)
    out = (centered * scale).astype(x.dtype)
    return out, (out, scale)


def normalize_gradient(epsilon: float, kept: Kept, upstream: Tokens) -> tuple[Tokens]:
    out, scale = kept
    wide, given = out.astype(scale.dtype), upstream.astype(scale.dtype)
    along = wide * (given * wide).mean(-1, keepdims=True)
    return ((scale * (given - given.mean(-1, keepdims=True) - along)).astype(out.dtype),)


normalize.defvjp(normalize_and_keep, normalize_gradient)


def attention_weights(
    q: Float[Array, "batch heads queries head_dim"], k: Float[Array, "batch heads tokens head_dim"]
) -> Float[Array, "batch heads queries tokens"]:
    """softmax(q k^T / sqrt(d)) over the tokens; float32 at least: DeiT-B diverges with half-precision scores."""
    scores = jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    return jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1)


def attention(q: Heads, k: Heads, v: Heads) -> Heads:
    """`attention_weights(q, k)` v."""
    return jnp.einsum("...qk,...kd->...qd", attention_weights(q, k).astype(v.dtype), v)


# The weights are the largest arrays of a block and one of its eighteen products: the backward pass computes them again.
# prevent_cse: within the scan over the blocks nothing can undo that, and the barriers against it would cost time. Where
# the scan is unrolled XLA does undo it; there "einsum" is the setting.
attention_recomputed = jax.checkpoint(attention, prevent_cse=False)


def fused_attention(
    q: Heads, k: Heads, v: Heads, implementation: Literal["xla", "cudnn"] = "cudnn", real: int = 0
) -> Heads:
    """Attention by cuDNN, which never writes the weights to memory. NVIDIA GPUs from Ampere on, half precision; the
    scores are float32 inside.

    jax does not differentiate cuDNN's attention over an odd number of tokens (a plain ViT has 197): the sequence is
    padded by one masked token.

    real: number of tokens that are not padding already; 0: all.
    """
    batch, _, tokens, _ = q.shape
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # cuDNN has the tokens before the heads
    lengths = jnp.full(batch, real, jnp.int32) if 0 < real < tokens else None
    if tokens % 2:
        q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
        lengths = jnp.full(batch, tokens, jnp.int32)
    out = jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation=implementation
    )
    return out[:, :tokens].swapaxes(1, 2)


ATTENTION = {"einsum": attention, "recompute": attention_recomputed, "cudnn": fused_attention}


def find_attention(
    name: str, dtype: DTypeLike, head_dim: int, tokens: int = 0
) -> Callable[[Heads, Heads, Heads], Heads]:
    """The attention of that name: (queries, keys, values) → weighted values, per head.

    tokens: number of them that cudnn's attends to, where more are given; 0: all.

    Raises UserError for an unknown name, and for cudnn on a device, compute type or head size that it does not support.
    """
    if name not in ATTENTION:
        raise UserError(f"attention '{name}' is not known{nearest(name, ATTENTION)}: use {', '.join(ATTENTION)}")
    if name == "cudnn" and not has_fused_attention(dtype, head_dim):
        raise UserError(
            f"attention cudnn needs an NVIDIA GPU from Ampere on, bfloat16 and heads of 8 to 128, by eights; here it is"
            f" {hardware.target().platform}, {jnp.dtype(dtype)} and {head_dim}: use recompute"
        )
    return fused_attention_of(tokens) if name == "cudnn" else ATTENTION[name]


@functools.cache  # so that two models of one structure have one attention, and one compilation
def fused_attention_of(tokens: int) -> Callable[[Heads, Heads, Heads], Heads]:
    """`fused_attention` to the first `tokens` tokens; 0: to all."""
    return functools.partial(fused_attention, real=tokens)


def best_attention(name: str, dtype: DTypeLike, head_dim: int) -> str:
    """`name`, or for "auto" the fastest attention that the target device can run on this type and size of heads."""
    chosen = hardware.best("attention", name)
    if name == "auto" and chosen == "cudnn" and not has_fused_attention(dtype, head_dim):
        return "recompute"
    return chosen


def has_fused_attention(dtype: DTypeLike, head_dim: int) -> bool:
    """Whether the target device can run `fused_attention` on this type and size of heads."""
    device = hardware.target()
    if device.platform != "gpu" or head_dim % 8 or head_dim > 128:
        return False
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return False
    capability = str(getattr(device, "compute_capability", ""))  # "9.0"; AMD's is a name
    return capability[:1].isdigit() and float(capability) >= 8.0

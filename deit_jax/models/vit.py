"""ViT and DeiT: the vision transformer of Dosovitskiy et al. (2021, arXiv 2010.11929), with the distillation token of
Touvron et al. (2021, arXiv 2012.12877, section 4). Switches make it DeiT III's (2022, arXiv 2204.07118) and DINOv2's
(Oquab et al. 2023, arXiv 2304.07193), with registers (Darcet et al. 2023, arXiv 2309.16588).

In the paper's order: patch embedding, tokens, blocks, heads. The blocks are one module whose arrays have a leading
depth axis, scanned: one block is compiled, whatever the depth. Parameters are float32; products run in `dtype`;
attention scores, softmax, LayerNorm statistics and logits are float32.
"""

import functools
import math
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from deit_jax.arrays import AnyArray
from deit_jax.errors import UserError
from deit_jax.models import kernels
from deit_jax.models.inputs import Images, ImgSize, NoHead, check_images, image_size, training_key
from deit_jax.runtime import hardware

INIT_STD = 0.02  # of PyTorch's trunc_normal_, which cuts at +-2 absolute, 100 deviations out: a plain normal
weight_init = nnx.initializers.normal(INIT_STD)


def fuse(
    cls_logits: Float[AnyArray, "batch classes"],
    dist_logits: Float[AnyArray, "batch classes"] | None,
    how: str = "logits",
) -> Float[Array, "batch classes"]:
    """The two heads' joint prediction at test time.

    how: "logits" averages the logits (released code); "probabilities" averages the softmaxes (paper, section 4) and
    returns the logarithm. A model with one head (`dist_logits` None) predicts with that.
    """
    cls_logits = jnp.asarray(cls_logits)
    if dist_logits is None:
        return cls_logits
    if how == "logits":
        return (cls_logits + dist_logits) / 2
    if how == "probabilities":
        both = jnp.stack([jax.nn.log_softmax(cls_logits), jax.nn.log_softmax(dist_logits)])
        return jax.nn.logsumexp(both, axis=0) - math.log(2)
    raise UserError(f"fusion '{how}' is not known: use logits or probabilities")


def dropout(
    x: Float[Array, "*shape"], rate: float | Float[Array, ""], key: PRNGKeyArray | None, shape: tuple
) -> Float[Array, "*shape"]:
    """Zero each element of `shape` (broadcast to x) with probability `rate`, the rest scaled by 1 / (1 - rate)."""
    if key is None:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), 0)


class PatchEmbed(nnx.Conv):
    """Non-overlapping patches, each projected linearly: (B, H, W, 3) → (B, H/p x W/p, D), row by row."""

    def __init__(self, patch_size: int, embed_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        fan_in = patch_size * patch_size * 3
        # PyTorch implements this as a Conv2d with its default init: uniform +-1/sqrt(fan_in), bias too
        uniform = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -1.0, 1.0) / math.sqrt(fan_in)
        window = (patch_size, patch_size)
        options = {"kernel_init": uniform, "bias_init": uniform, "conv_general_dilated": project_patches}
        super().__init__(3, embed_dim, window, window, padding="VALID", dtype=dtype, rngs=rngs, **options)

    def __call__(self, images: Images) -> Float[Array, "batch patches dim"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return einops.rearrange(super().__call__(jnp.asarray(images)), "b h w d -> b (h w) d")


def project_patches(
    images: Float[Array, "batch height width 3"], kernel: Float[Array, "p p 3 dim"], *_: Any, **__: Any
) -> Float[Array, "batch rows columns dim"]:
    """The convolution whose stride is its window, as a product of two matrices: the fast one on every platform."""
    (batch, height, width), (p, dim) = images.shape[:3], kernel.shape[::3]
    patches = einops.rearrange(images, "b (h p) (w q) c -> (b h w) (p q c)", p=p, q=p)
    return (patches @ kernel.reshape(-1, dim)).reshape(batch, height // p, width // p, dim)


def dense(features_in: int, features_out: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(features_in, features_out, kernel_init=weight_init, dtype=dtype, rngs=rngs)


class LayerNorm(nnx.LayerNorm):
    """Flax's, in a named scope; `kernels.normalize` once `fold` has taken its scale and bias."""

    @jax.named_scope("norm")
    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().__call__(x) if self.scale is not None else kernels.normalize(x, self.epsilon)


class SplitLinear(nnx.Linear):
    """A linear layer with its outputs in three arrays of their own: queries, keys and values as cuDNN takes them.

    One product for all three would have to be copied apart, and their gradients together.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, dot_general=split_product, **options)

    def __call__(self, x: Float[Array, "rows dim"]) -> list[Float[Array, "rows dim"]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert self.bias is not None
        x, kernel, bias = self.promote_dtype((x, self.kernel[...], self.bias[...]), dtype=self.dtype)
        parts = self.dot_general(x, kernel, (((1,), (0,)), ((), ())))
        return [part + own for part, own in zip(parts, jnp.split(bias, 3), strict=True)]


def split_product(x: Float[Array, "rows dim"], kernel: Float[Array, "dim 3*dim"], *_: Any, **__: Any) -> list[Array]:
    """x times each third of the kernel's columns.

    The barriers have the gradient of x summed as q's + (k's + v's), the order in which XLA adds within the products,
    and keep XLA from joining small products again, whose results would have to be copied apart.
    """
    q, k, v = jnp.split(kernel, 3, axis=1)
    for_k = jax.lax.optimization_barrier(x)
    for_v = jax.lax.optimization_barrier(for_k)
    return [x @ q, for_k @ k, for_v @ v]


class Attention(nnx.Module):
    """Multi-head self-attention: softmax(Q K^T / sqrt(d)) V per head, heads joined and projected (Eq. 1).

    attention: "einsum", two products around a softmax; "recompute", the same but computed again in the backward pass,
    best where the blocks are scanned; "cudnn", fused, on NVIDIA GPUs.
    tokens: number of them that cudnn's attends to, where padding follows; 0: all.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        drop_rate: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        attention: str = "recompute",
        tokens: int = 0,
        rngs: nnx.Rngs,
    ):
        if dim % num_heads:
            raise UserError(f"embed_dim {dim} is not a multiple of num_heads {num_heads}")
        self.attend = kernels.find_attention(attention, dtype, dim // num_heads, tokens)
        linear = SplitLinear if attention == "cudnn" else nnx.Linear
        self.qkv = linear(dim, 3 * dim, kernel_init=weight_init, dtype=dtype, rngs=rngs)
        self.proj = dense(dim, dim, dtype, rngs)
        self.num_heads, self.drop_rate = num_heads, drop_rate

    def project_qkv(
        self, x: Float[Array, "batch tokens dim"]
    ) -> Float[Array, "3 batch heads tokens head_dim"] | list[Float[Array, "batch heads tokens head_dim"]]:
        """Queries, keys and values."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x.reshape(-1, dim))  # 2-D operands: the fast product on every platform
        if isinstance(qkv, list):
            split = lambda part: einops.rearrange(part, "(b n) (h d) -> b h n d", b=batch, n=tokens, h=self.num_heads)
            return [split(part) for part in qkv]
        return einops.rearrange(qkv, "(b n) (k h d) -> k b h n d", b=batch, n=tokens, k=3, h=self.num_heads)

    @jax.named_scope("attention")
    def __call__(
        self, x: Float[Array, "batch tokens dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch tokens dim"]:
        heads = self.attend(*self.project_qkv(x))
        out = self.proj(einops.rearrange(heads, "b h n d -> (b n) (h d)")).reshape(x.shape)
        return dropout(out, self.drop_rate, key if self.drop_rate else None, out.shape)


class Mlp(nnx.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(
        self, dim: int, hidden: int, *, drop_rate: float = 0.0, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        self.fc1 = dense(dim, hidden, dtype, rngs)
        self.fc2 = dense(hidden, dim, dtype, rngs)
        self.drop_rate = drop_rate

    @jax.named_scope("mlp")
    def __call__(
        self, x: Float[Array, "batch tokens dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch tokens dim"]:
        out = kernels.linear_of_gelu(self.fc2, self.fc1(x.reshape(-1, x.shape[-1]))).reshape(x.shape)
        return dropout(out, self.drop_rate, key if self.drop_rate else None, out.shape)


class LayerScale(nnx.Module):
    """Each channel times a learned factor, at first `init` (Touvron et al. 2021, arXiv 2103.17239); None: x itself."""

    def __init__(self, dim: int, init: float | None):
        self.gamma = nnx.Param(jnp.full(dim, init, jnp.float32)) if init else None

    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        return x if self.gamma is None else x * self.gamma[...].astype(x.dtype)


class Block(nnx.Module):
    """One pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        dim, num_heads, mlp_ratio: width, heads, hidden width of the MLP over `dim`.
        drop_rate: dropout after each branch's projection.
        norm_eps: added to the variance in the LayerNorms.
        init_values: of the LayerScale at each branch's end; None: there is none.
        dtype: of the products; parameters stay float32.
        attention: see `Attention`.

    Calling it with `key` trains: dropout acts, and each branch is dropped per sample with probability `drop_path`
    (stochastic depth, Huang et al. 2016). Without `key` it evaluates.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        drop_rate: float = 0.0,
        norm_eps: float = 1e-6,
        init_values: float | None = None,
        dtype: DTypeLike = jnp.float32,
        attention: str = "recompute",
        tokens: int = 0,
        rngs: nnx.Rngs,
    ):
        self.norm1 = LayerNorm(dim, epsilon=norm_eps, dtype=dtype, rngs=rngs)
        options = {"drop_rate": drop_rate, "dtype": dtype}
        self.attn = Attention(dim, num_heads, **options, attention=attention, tokens=tokens, rngs=rngs)
        self.norm2 = LayerNorm(dim, epsilon=norm_eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, round(dim * mlp_ratio), **options, rngs=rngs)
        self.ls1, self.ls2 = LayerScale(dim, init_values), LayerScale(dim, init_values)

    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        *,
        drop_path: float | Float[Array, ""] = 0.0,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "batch tokens dim"]:
        keys = [None] * 4 if key is None else jax.random.split(key, 4)
        per_sample = (x.shape[0], 1, 1)
        x = x + dropout(self.ls1(self.attn(self.norm1(x), key=keys[0])), drop_path, keys[1], per_sample)
        return x + dropout(self.ls2(self.mlp(self.norm2(x), key=keys[2])), drop_path, keys[3], per_sample)


def fold(block: Block) -> Block:
    """The same block object, on a GPU with what is constant per channel moved from activations into weights, which are
    few: the norms' scales and biases into the linear layers behind them, and the values' bias, which attention's
    weights only sum to itself, into the projection's; the keys' adds the same to all scores of a query, so that none of
    it is left. The backward pass then keeps the normalized tokens alone and sums fewer gradients over all tokens."""
    if hardware.target().platform != "gpu" or (type(block.attn), type(block.mlp)) != (Attention, Mlp):
        return block
    qkv, proj, fc1 = layers = block.attn.qkv, block.attn.proj, block.mlp.fc1
    parts = (*layers, block.norm1, block.norm2)
    if {*map(type, parts)} - {nnx.Linear, SplitLinear, LayerNorm} or any(part.bias is None for part in parts):
        return block  # a part is the user's own
    array = lambda parameter: parameter[...]
    through = lambda bias, kernel: (array(bias)[:, None] * kernel[...]).sum(0)  # float32, as no product on a GPU is
    for norm, linear in ((block.norm1, qkv), (block.norm2, fc1)):
        linear.bias = nnx.Param(array(linear.bias) + through(norm.bias, linear.kernel))
        linear.kernel[...] *= array(norm.scale)[:, None]
        norm.scale = norm.bias = None
    queries, _, values = jnp.split(array(qkv.bias), 3)
    qkv.bias = nnx.Param(jnp.pad(queries, (0, 2 * queries.size)))
    proj.bias = nnx.Param(array(proj.bias) + through(values, proj.kernel))
    return block


def row_major(x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
    """x, in the order in memory that its shape says. XLA's GPU compiler would have the batch vary fastest, which the
    heads' small products like, and transpose around every large product (docs/performance.md). On one GPU only: the
    partitioner would gather what is constrained."""
    one_gpu = [device.platform for device in hardware.targets()] == ["gpu"]
    return with_layout_constraint(x, Layout((0, 1, 2))) if one_gpu else x


REMAT = {
    "none": lambda body: body,
    "dots": lambda body: jax.checkpoint(body, policy=jax.checkpoint_policies.dots_saveable),
    "full": jax.checkpoint,
}


@functools.partial(jax.jit, static_argnames=("graphdef", "remat", "unroll", "inspect"))
def run_blocks(
    graphdef: nnx.GraphDef,
    stacked: nnx.State,
    x: Float[Array, "batch tokens dim"],
    rates: Float[Array, "depth"],
    key: PRNGKeyArray | None,
    *,
    remat: str,
    unroll: int,
    inspect: int = 0,
) -> tuple[Float[Array, "batch tokens dim"], Any]:
    """Scan the stacked blocks over x. jitted so that a call outside jit compiles once, not at every call.

    inspect: also return, per layer, the output (depth, B, N, D) and the attention of the first `inspect` tokens
    (depth, B, heads, inspect, N).
    """
    depth = rates.shape[0]
    keys = None if key is None else jax.random.split(key, depth)

    def body(x, layer):
        arrays, rate, key = layer
        x = row_major(x)
        block = fold(nnx.merge(graphdef, arrays))
        seen = None
        if inspect:
            q, k, _ = block.attn.project_qkv(block.norm1(x))
            seen = kernels.attention_weights(q[:, :, :inspect], k)
        x = block(x, drop_path=rate, key=key)
        return x, (x, seen) if inspect else None

    return jax.lax.scan(REMAT[remat](body), x, (stacked, rates, keys), unroll=unroll)


class ViT(nnx.Module):
    """A vision transformer; with `distilled`, DeiT's with a distillation token and a second head.

    Args:
        img_size, patch_size: pixels; `img_size` may be (height, width).
        num_classes: of each head; 0: none, and the model's outputs are what the heads would see.
        embed_dim, depth, num_heads, mlp_ratio: size of the transformer.
        distilled: tokens [cls, dist, patches] and two heads instead of [cls, patches] and one.
        two_heads: False leaves the distillation token without a head of its own (Hugging Face's
            DeiTForImageClassification): the class head alone predicts.
        norm_eps: added to the variance in the LayerNorms; 1e-6 in the released code.
        init_values: of the blocks' LayerScale; None: there is none (DeiT).
        init_std: of new tokens, positions and kernels of the blocks. A narrow model learns little at first with DeiT's,
            0.02, for whose widths that is some 1 / sqrt(embed_dim).
        no_embed_class: the patches alone have positions.
        reg_tokens: registers, learned tokens before the patches that no head reads.
        feature_width: of a linear layer on the tokens, for feature distillation (`heads_and_features`); 0: none.
        pos_antialias, pos_offset: how the positions are brought to another grid, see `resize_pos_embed`.
        drop_rate, drop_path_rate: dropout; stochastic depth of the last block, rising linearly from 0.
        uniform_drop_path: that of every block alike (DeiT III's released code).
        dtype: compute type. Parameters are always float32.
        attention: "einsum", "recompute" or "cudnn", see `Attention`.
        remat: what the backward pass computes again ("none", "dots": all but products, "full": everything).
        scan_unroll: blocks per iteration of the scan.

    Raises UserError where `img_size` is not a multiple of `patch_size`.
    """

    head: nnx.Linear | NoHead
    head_dist: nnx.Linear | NoHead

    def __init__(
        self,
        *,
        img_size: ImgSize = 224,
        patch_size: int = 16,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        distilled: bool = False,
        two_heads: bool = True,
        norm_eps: float = 1e-6,
        init_values: float | None = None,
        init_std: float = INIT_STD,
        no_embed_class: bool = False,
        reg_tokens: int = 0,
        feature_width: int = 0,
        pos_antialias: bool = False,
        pos_offset: float = 0.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        uniform_drop_path: bool = False,
        dtype: DTypeLike = jnp.float32,
        attention: str = "recompute",
        remat: str = "none",
        scan_unroll: int = 1,
        rngs: nnx.Rngs,
    ):
        size = image_size(img_size)
        self.img_size = size if isinstance(size, tuple) else (size, size)
        for size in self.img_size:
            if size % patch_size or size <= 0:
                below = max(1, size // patch_size) * patch_size
                near = f"{below} or {below + patch_size}" if size > patch_size else f"{patch_size}"
                raise UserError(f"img_size {size} is not a multiple of patch_size {patch_size}: use {near}")
        self.grid = (self.img_size[0] // patch_size, self.img_size[1] // patch_size)
        self.patch_size, self.embed_dim, self.depth = patch_size, embed_dim, depth
        self.num_heads, self.norm_eps = num_heads, norm_eps
        self.distilled, self.prefix_tokens = distilled, 1 + distilled + reg_tokens
        self.no_embed_class, self.pos_antialias, self.pos_offset = no_embed_class, pos_antialias, pos_offset
        self.two_heads = distilled and two_heads
        self.drop_rate, self.drop_path_rate, self.dtype = drop_rate, drop_path_rate, jnp.dtype(dtype)
        self.uniform_drop_path = uniform_drop_path
        self.remat, self.scan_unroll = remat, scan_unroll
        self.pad_to_even = attention == "cudnn"

        tokens = self.prefix_tokens + self.grid[0] * self.grid[1]
        positions = self.grid[0] * self.grid[1] + (0 if no_embed_class else self.prefix_tokens)
        self.patch_embed = PatchEmbed(patch_size, embed_dim, dtype=self.dtype, rngs=rngs)
        draw = nnx.initializers.normal(init_std)
        self.cls_token = nnx.Param(draw(rngs.params(), (1, 1, embed_dim), jnp.float32))
        if distilled:
            self.dist_token = nnx.Param(draw(rngs.params(), (1, 1, embed_dim), jnp.float32))
        if reg_tokens:
            self.reg_token = nnx.Param(draw(rngs.params(), (1, reg_tokens, embed_dim), jnp.float32))
        self.pos_embed = nnx.Param(draw(rngs.params(), (1, positions, embed_dim), jnp.float32))

        def block(rngs):
            options = {"drop_rate": drop_rate, "norm_eps": norm_eps, "dtype": self.dtype, "attention": attention}
            options |= {"init_values": init_values, "tokens": tokens}
            return Block(embed_dim, num_heads, mlp_ratio, **options, rngs=rngs)

        self.blocks = nnx.vmap(block)(rngs.split(depth))
        for _, layer in nnx.iter_modules(self.blocks):
            if isinstance(layer, nnx.Linear):
                layer.kernel[...] *= init_std / INIT_STD
        self.norm = LayerNorm(embed_dim, epsilon=norm_eps, dtype=self.dtype, rngs=rngs)
        self.reset_classifier(num_classes, rngs)
        if feature_width:
            self.feature_proj = dense(embed_dim, feature_width, jnp.float32, rngs)

    def reset_classifier(self, num_classes: int, rngs: nnx.Rngs) -> None:
        """Put new heads in the place of those that the model has."""
        self.num_classes = num_classes
        for name in ("head", "head_dist")[: 1 + self.two_heads]:
            setattr(self, name, dense(self.embed_dim, num_classes, jnp.float32, rngs) if num_classes else NoHead())

    def embed(self, images: Images) -> Float[Array, "batch tokens dim"]:
        """Patches behind the class (and distillation) token and registers, position embedding added."""
        check_images(images, self.img_size)
        patches, positions = self.patch_embed(images), self.pos_embed[...].astype(self.dtype)
        names = ("cls_token", "dist_token", "reg_token")
        prefix = jnp.concatenate([getattr(self, name)[...] for name in names if hasattr(self, name)], axis=1)
        prefix = jnp.broadcast_to(prefix.astype(self.dtype), (images.shape[0], *prefix.shape[1:]))
        if self.no_embed_class:
            return jnp.concatenate([prefix, patches + positions], axis=1)
        return jnp.concatenate([prefix, patches], axis=1) + positions

    def encode(
        self, x: Float[Array, "batch tokens dim"], *, key: PRNGKeyArray | None = None, inspect: int = 0
    ) -> tuple[Float[Array, "batch tokens dim"], Any]:
        """The blocks: (tokens, what `run_blocks` saw on the way)."""
        graphdef, stacked = nnx.split(self.blocks)
        rates = jnp.linspace(self.drop_path_rate if self.uniform_drop_path else 0.0, self.drop_path_rate, self.depth)
        tokens = x.shape[1]
        if self.pad_to_even and not inspect:  # one more token here, which cuDNN masks, saves a copy in every block
            x = jnp.pad(x, ((0, 0), (0, tokens % 2), (0, 0)))
        x, seen = run_blocks(
            graphdef,
            stacked,
            x,
            rates,
            key,
            remat=self.remat,
            unroll=min(self.scan_unroll, self.depth),
            inspect=inspect,
        )
        return x[:, :tokens], seen

    def heads(
        self, images: Images, *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "batch classes"], Float[Array, "batch classes"] | None]:
        """Logits of the class head and of the distillation head (None where there is none), float32.

        train with `key`: dropout and stochastic depth act; every random number follows from `key`. NNX's
        `model.train()` and `model.eval()` have no effect.
        """
        key = training_key(train, key, self.drop_rate, self.drop_path_rate)
        tokens, _ = self.encode(self.embed(images), key=key)
        return self.read_heads(self.norm(tokens[:, : 1 + self.distilled]))

    def read_heads(
        self, tokens: Float[Array, "batch tokens dim"]
    ) -> tuple[Float[Array, "batch classes"], Float[Array, "batch classes"] | None]:
        """The heads' logits of normalized tokens."""
        prefix = tokens[:, : 1 + self.distilled].astype(jnp.float32)
        return self.head(prefix[:, 0]), self.head_dist(prefix[:, 1]) if self.two_heads else None

    def heads_and_features(
        self, images: Images, *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> tuple[tuple[Float[Array, "batch classes"], Float[Array, "batch classes"] | None], dict[str, Array]]:
        """What `heads` returns, and the class token and the patches projected to `feature_width`, float32."""
        tokens = self.features(images, train=train, key=key)
        projected = self.feature_proj(tokens.astype(jnp.float32))
        return self.read_heads(tokens), self.by_kind(projected)

    def by_kind(self, tokens: Float[Array, "batch tokens dim"]) -> dict[str, Float[Array, "batch _ dim"]]:
        """The class token, and the patches row by row."""
        return {"class": tokens[:, :1], "patches": tokens[:, self.prefix_tokens :]}

    def __call__(
        self, images: Images, *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch classes"]:
        """Logits; a distilled model's are the mean of its heads' (as released; `fuse` has the paper's way)."""
        return fuse(*self.heads(images, train=train, key=key))

    def features(
        self, images: Images, *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch tokens dim"]:
        """Normalized tokens after the last block: class (and distillation) token, registers, patches row by row."""
        key = training_key(train, key, self.drop_rate, self.drop_path_rate)
        return self.norm(self.encode(self.embed(images), key=key)[0])

    def inspect(self, images: Images) -> dict[str, Float[Array, "..."]]:
        """Intermediate activations, in evaluation mode.

        Returns a dictionary: `embed` (B, N, D) tokens before the blocks; `blocks` (depth, B, N, D) after each;
        `attention` (depth, B, heads, prefix, N) of the tokens before the patches to all tokens; `norm` (B, N, D).
        """
        x = self.embed(images)
        tokens, (blocks, attention) = self.encode(x, inspect=self.prefix_tokens)
        return {"embed": x, "blocks": blocks, "attention": attention, "norm": self.norm(tokens)}


SIZES = {
    "tiny": {"embed_dim": 192, "num_heads": 3},
    "small": {"embed_dim": 384, "num_heads": 6},
    "medium": {"embed_dim": 512, "num_heads": 8},
    "base": {"embed_dim": 768, "num_heads": 12},
    "large": {"embed_dim": 1024, "num_heads": 16, "depth": 24},
    "huge": {"embed_dim": 1280, "num_heads": 16, "depth": 32, "patch_size": 14},
}
# Small images, small machines: digits and CIFAR-10.
WIDTH_96 = {"embed_dim": 96, "num_heads": 3, "patch_size": 4}
SMALL = {
    "pico_patch4_12": {"embed_dim": 64, "num_heads": 2, "depth": 3, "patch_size": 4, "img_size": 12},
    "mini_patch4_16": WIDTH_96 | {"depth": 2, "img_size": 16, "init_std": 0.1},
    "digits_patch4_16": WIDTH_96 | {"depth": 4, "img_size": 16},
    "nano_patch4_32": WIDTH_96 | {"depth": 6, "img_size": 32},
    "cifar_patch4_32": {"embed_dim": 192, "num_heads": 3, "depth": 9, "patch_size": 4, "img_size": 32},
}

CONFIGS: dict[str, dict] = {
    f"deit_{size}{mark}_patch16_{pixels}": {**SIZES[size], "distilled": bool(mark), "img_size": pixels}
    for size in ("tiny", "small", "base")
    for mark in ("", "_distilled")
    for pixels in (224, 384)
}
CONFIGS |= {
    f"vit_{size}_patch16_{pixels}": {**SIZES[size], "img_size": pixels}
    for size in ("tiny", "small", "base", "large")
    for pixels in (224, 384)
}
CONFIGS["vit_huge_patch14_224"] = SIZES["huge"] | {"img_size": 224}

DEIT3 = {"init_values": 1e-4, "no_embed_class": True, "uniform_drop_path": True}
DINOV2 = {"init_values": 1e-5, "patch_size": 14, "img_size": 518}
REGISTERS = {"reg_tokens": 4, "no_embed_class": True, "pos_antialias": True}
CONFIGS |= {
    f"deit3_{size}_patch{SIZES[size].get('patch_size', 16)}_{pixels}": {**SIZES[size], **DEIT3, "img_size": pixels}
    for size in ("small", "medium", "base", "large", "huge")
    for pixels in ((224,) if size in ("medium", "huge") else (224, 384))
}
CONFIGS |= {
    f"vit_{size}_patch14_{mark}dinov2": SIZES[size] | DINOV2 | switches
    for size in ("small", "base", "large")
    for mark, switches in (("", {"pos_offset": 0.1}), ("reg4_", REGISTERS))
}
CONFIGS |= {
    f"deit_{name.split('_')[0]}{mark}_{name.split('_', 1)[1]}": {**sizes, "distilled": bool(mark)}
    for name, sizes in SMALL.items()
    for mark in ("", "_distilled")
}

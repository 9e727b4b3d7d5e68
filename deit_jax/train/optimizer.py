"""AdamW, LAMB and SGD as DeiT uses them: which parameters decay, the learning rate at each step, the EMA."""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Integer

from deit_jax.config import IMAGENET_TRAIN_IMAGES, Config, resolve
from deit_jax.errors import UserError
from deit_jax.own import is_own
from deit_jax.runtime.sharding import is_stacked
from deit_jax.weights.names import HEADS

EMBEDDING = ("patch_embed", "cls_token", "dist_token", "reg_token", "pos_embed")  # below the first block


def decay_mask(params: Any, decay_dist_token: bool = True) -> Any:
    """True for each parameter that weight decay shrinks: kernels, and `dist_token` as in the released code.

    Decided by name, since stacked biases have two axes. params: pure nested dictionary; the mask has its form.
    """

    def decays(path, _):
        name = next(str(entry.key) for entry in reversed(path) if hasattr(entry, "key"))  # nnx.State ends in a value
        return name == "kernel" or (name == "dist_token" and decay_dist_token)

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """The optimizer without its last part, the multiplication by -learning rate, which the train step does.

    AdamW: clipping, Adam, decoupled decay. LAMB: the same, then `scale_by_trust_ratio`. SGD: clipping, coupled decay,
    Nesterov momentum, in PyTorch's order. Last, the updates are multiplied by `lr_factors`: a parameter's learning
    rate, and so its decay, differs by that factor, as that of a parameter group of its own.
    """
    o = config.optimizer
    clip = optax.clip_by_global_norm(o.clip_norm) if o.clip_norm else optax.identity()
    decay = optax.add_decayed_weights(o.weight_decay, lambda params: decay_mask(params, o.decay_dist_token))
    if o.name == "sgd":
        parts = [clip, decay, optax.trace(o.momentum, nesterov=True)]
    else:
        parts = [clip, optax.scale_by_adam(o.beta1, o.beta2, o.eps), decay]
    if o.name == "lamb":
        parts.append(optax.stateless(lambda updates, params: scale_by_trust_ratio(updates, params, o.decay_dist_token)))
    if o.head_lr_scale != 1 or o.layer_decay != 1 or o.freeze:
        scaled = lambda updates, _: jax.tree.map(jnp.multiply, updates, lr_factors(updates, config))
        parts.append(optax.stateless(scaled))
    return optax.chain(*parts)


def scale_by_trust_ratio(updates: Any, params: Any, decay_dist_token: bool = True) -> Any:
    """LAMB's last part (You et al. 2020, arXiv 1904.00962): updates times |parameter| / |update|, norms per layer.

    As in apex's FusedLAMB, parameters without decay (`decay_mask`) keep their update. updates: as the parameters, whose
    blocks are stacked along the first axis.
    """
    scale = lambda update, param: optax.scale_by_trust_ratio().update(update, optax.EmptyState(), param)[0]

    def scaled(path, update, param, decays):
        stacked = is_stacked(jax.tree_util.keystr(path, simple=True, separator="/"))
        return (jax.vmap(scale) if stacked else scale)(update, param) if decays else update

    return jax.tree_util.tree_map_with_path(scaled, updates, params, decay_mask(params, decay_dist_token))


def lr_factors(params: Any, config: Config) -> Any:
    """What each parameter's learning rate is multiplied by: a number, or an array over the stacked blocks.

    The heads by `optimizer.head_lr_scale`, frozen parameters (`frozen_mask`) by 0, and by `optimizer.layer_decay` once
    for each layer above: all blocks and the heads for the embeddings, none for the last norm and the heads (BEiT, Bao
    et al. 2022, arXiv 2106.08254, and MAE). params: pure nested dictionary.

    Raises UserError for a layer-wise decay of another model than a ViT.
    """
    o = config.optimizer
    if o.layer_decay != 1 and ("pos_embed" not in params or is_own(config.model.name)):
        raise UserError(f"optimizer.layer_decay is {o.layer_decay}, but {config.model.name} is no ViT: use 1.0")

    def factor(path, param, frozen):
        part = path[0].key
        scale = (o.head_lr_scale if part in HEADS else 1.0) * (not frozen)
        if part == "blocks" and o.layer_decay != 1:
            scale = scale * o.layer_decay ** np.arange(len(param), 0, -1, dtype=np.float32)
            return scale.reshape(-1, *[1] * (param.ndim - 1))
        if part in EMBEDDING and o.layer_decay != 1:
            depth = len(jax.tree.leaves(params["blocks"])[0])
            scale *= o.layer_decay ** (depth + 1)
        return scale

    return jax.tree_util.tree_map_with_path(factor, params, frozen_mask(params, o.freeze))


def frozen_mask(params: Any, freeze: str) -> Any:
    """True for each parameter that `optimizer.freeze` keeps as it is.

    Args:
        params: pure nested dictionary.
        freeze: "" for none, "backbone" for all but the heads, or a regular expression that is looked for in names as
            "blocks.attn.qkv.kernel" (all blocks are one array).

    Raises UserError for an expression that is none, or fits no parameter, or all of them.
    """
    name = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    try:
        pattern = re.compile(freeze or "$^")
    except re.error as error:
        raise UserError(f"optimizer.freeze '{freeze}' is no regular expression: {error}") from None
    holds = lambda path, _: path[0].key not in HEADS if freeze == "backbone" else bool(pattern.search(name(path)))
    mask = jax.tree_util.tree_map_with_path(holds, params)
    if freeze and len({*jax.tree.leaves(mask)}) == 1:
        names = [name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        which = "all parameters" if any(jax.tree.leaves(mask)) else "none of the parameters"
        raise UserError(f"optimizer.freeze '{freeze}' fits {which}: {', '.join(names)}")
    return mask


def stop_frozen(params: Any, freeze: str) -> Any:
    """The parameters, those that are frozen without a gradient: none is computed for them."""
    if not freeze:
        return params
    stop = lambda param, frozen: jax.lax.stop_gradient(param) if frozen else param
    return jax.tree.map(stop, params, frozen_mask(params, freeze))


def num_steps(config: Config, steps_per_epoch: int) -> int:
    """Steps of the whole run: `steps` where given, else `epochs` passes."""
    return config.steps or config.epochs * steps_per_epoch


def lr_scale(config: Config) -> float:
    """The peak learning rate over `optimizer.lr`: batch_size / lr_batch, or 1 where lr_batch is 0."""
    return config.batch_size / config.optimizer.lr_batch if config.optimizer.lr_batch else 1.0


def schedule(
    config: Config, steps_per_epoch: int | None = None
) -> Callable[[Integer[Array, "*steps"] | int], Float[Array, "*steps"]]:
    """step (0, 1, …) → learning rate, float32, traceable.

    Peak lr x batch_size / lr_batch (lr where lr_batch is 0) after a linear warm-up, then a half cosine down to min_lr
    (or constant); neither end lies above the peak. By `optimizer.lr_update`:

    "step": moves every step; the cosine spans what is left after warm-up, which is at most half of the run.
    "epoch": the released code: one rate per epoch, set one epoch late (epochs 0 and 1 both train at warmup_lr), the
    cosine counted from epoch 0.

    steps_per_epoch: None means ImageNet-1k's at this batch size (1251 at 1024).
    """
    config = resolve(config)  # of a caller that has left settings to the recipe
    o = config.optimizer
    per_epoch = steps_per_epoch or max(1, IMAGENET_TRAIN_IMAGES // config.batch_size)
    scale = lr_scale(config)
    peak = o.lr * scale
    start, end = (min(x * (scale if o.scale_floors else 1.0), peak) for x in (o.warmup_lr, o.min_lr))
    total = num_steps(config, per_epoch) / per_epoch  # epochs

    def rate(epoch, warmup, offset):
        rising = start + (peak - start) * epoch / max(warmup, 1e-9)
        progress = jnp.clip((epoch - offset) / max(total - offset, 1e-9), 0.0, 1.0)
        falling = end + (peak - end) * 0.5 * (1 + jnp.cos(math.pi * progress))
        return jnp.where(epoch < warmup, rising, falling if o.schedule == "cosine" else peak)

    def by_step(step):
        warmup = min(o.warmup_epochs, total / 2)
        return rate(step / per_epoch, warmup, warmup)

    def by_epoch(step):
        return rate(jnp.maximum(step // per_epoch - 1, 0), o.warmup_epochs, 0.0)

    return by_step if o.lr_update == "step" else by_epoch


def describe_schedule(config: Config, steps_per_epoch: int) -> str:
    """The learning rates of a resolved config in one line, which shows where they do not rise and fall as set: where
    floors are at or above the peak (small batches scale the peak, not the floors), or a run is shorter than the
    warm-up, or the released schedule's delay."""
    rates = np.asarray(jax.jit(schedule(config, steps_per_epoch))(jnp.arange(num_steps(config, steps_per_epoch))))
    top = int(np.argmax(rates >= rates.max() * (1 - 1e-6)))
    rise = f", rising to {rates[top]:.3g} in {top} warm-up steps" if top else ""
    return f"learning rate: {rates[0]:.3g} at first{rise}, {rates[-1]:.3g} at the end"


def ema_decay_at(config: Config, step: Integer[Array, ""] | int) -> Float[Array, ""] | float:
    """The decay of the EMA in update `step` (0, 1, …).

    With `optimizer.ema_warmup` it rises as (1 + step) / (10 + step) up to `optimizer.ema_decay` (TensorFlow's
    ExponentialMovingAverage with `num_updates`): a short run then averages about its last tenth, not its first weights.
    """
    decay = config.optimizer.ema_decay
    return jnp.minimum(decay, (1 + step) / (10 + step)) if config.optimizer.ema_warmup else decay

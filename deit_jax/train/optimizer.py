"""AdamW (and SGD) as DeiT uses it: which parameters decay, the learning rate at each step, the averaged weights."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from deit_jax.config import IMAGENET_TRAIN_IMAGES, resolve


def decay_mask(params: dict, decay_dist_token: bool = True) -> dict:
    """True for each parameter that weight decay shrinks: kernels, and `dist_token` as in the released code.

    Decided by name, since stacked biases have two axes. params: pure nested dictionary; the mask has its form.
    """

    def decays(path, _):
        name = next(str(entry.key) for entry in reversed(path) if hasattr(entry, "key"))  # nnx.State ends in a value
        return name == "kernel" or (name == "dist_token" and decay_dist_token)

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(config) -> optax.GradientTransformation:
    """Gradient → step direction: clipping, Adam, decoupled decay; or decay, momentum (SGD, as PyTorch orders them).
    The train step multiplies it by -learning rate."""
    o = config.optimizer
    clip = optax.clip_by_global_norm(o.clip_norm) if o.clip_norm else optax.identity()
    decay = optax.add_decayed_weights(o.weight_decay, lambda params: decay_mask(params, o.decay_dist_token))
    if o.name == "sgd":
        return optax.chain(clip, decay, optax.trace(o.momentum, nesterov=True))
    return optax.chain(clip, optax.scale_by_adam(o.beta1, o.beta2, o.eps), decay)


def num_steps(config, steps_per_epoch: int) -> int:
    """Steps of the whole run: `steps` where given, else `epochs` passes."""
    return config.steps or config.epochs * steps_per_epoch


def schedule(config, steps_per_epoch: int | None = None) -> Callable[[jax.Array | int], jax.Array]:
    """step (0, 1, …) → learning rate, float32, traceable.

    Peak lr x batch_size / lr_batch after a linear warm-up, then a half cosine down to min_lr (or constant). By
    `optimizer.lr_update`:

    "step": moves every step; the cosine spans what is left after warm-up, which is at most half of the run.
    "epoch": the released code: one rate an epoch, set one epoch late (epochs 0 and 1 both train at warmup_lr), the
    cosine counted from epoch 0.

    steps_per_epoch: None means ImageNet-1k's at this batch size (1251 at 1024).
    """
    config = resolve(config)
    o = config.optimizer
    per_epoch = steps_per_epoch or max(1, IMAGENET_TRAIN_IMAGES // config.batch_size)
    scale = config.batch_size / o.lr_batch
    peak = o.lr * scale
    start, end = (x * (scale if o.scale_floors else 1.0) for x in (o.warmup_lr, o.min_lr))
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

"""The train step, one pure function: batch → augment → teacher → student → loss → gradient → AdamW → EMA → metrics."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from deit_jax import models
from deit_jax.augment import augment_train
from deit_jax.losses import distillation_loss
from deit_jax.randomness import purpose_key
from deit_jax.student import Student
from deit_jax.train.optimizer import make_optimizer, num_steps, schedule


def create_state(student: Student, config, weights: dict | None = None, *, seed: jax.Array | int = 0) -> dict:
    """The whole state of a run as one pure nested dictionary; runs inside jit.

    `step` updates made; `offset` how many batches the data is ahead of them (after a roll-back); `seed`, here and not
    in the code, so that runs of all seeds share one compilation; `params`, `batch_stats`; `opt`; `ema` ({"params",
    "batch_stats"}, empty without averaging); `nonfinite` counts of non-finite steps: in a row, in all.
    """
    if weights is None:
        params, batch_stats = models.init_arrays(student.build, purpose_key(seed, "init"))
    else:
        params, batch_stats = weights["params"], weights["batch_stats"]
    zero = jnp.zeros((), jnp.int32)
    ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if config.optimizer.ema_decay else {}
    return {
        "step": zero, "offset": zero, "seed": zero + seed, "params": params, "batch_stats": batch_stats,
        "opt": make_optimizer(config).init(params), "ema": ema, "nonfinite": {"in_row": zero, "total": zero},
    }  # fmt: skip


def make_update(student: Student, teacher: Callable, config, rate: Callable) -> Callable:
    """(state, batch, teacher's arrays, key) → (state, metrics): teacher, loss, gradient, AdamW, EMA.

    batch: `image` (B, S, S, 3) float32, normalized and mixed; `target` (B, classes) probabilities; what the teacher
    needs besides. rate: step → learning rate. A step whose loss or gradient is not finite changes no weight; it counts.
    """
    tx, d, parts = make_optimizer(config), config.distill, config.accumulate

    def loss_fn(params, batch_stats, teacher_arrays, part, key):
        with jax.named_scope("teacher"):
            teacher_logits = teacher(teacher_arrays, part, part["image"])
        model = nnx.merge(student.graphdef, params, batch_stats)
        cls, dist = model.heads(part["image"], train=True, key=key)
        loss = distillation_loss(
            cls, dist, part["target"], teacher_logits,
            kind=d.kind, alpha=d.alpha, tau=d.tau, normalization=d.normalization,
        )  # fmt: skip
        return loss, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def gradients(state, teacher_arrays, batch, key):
        """(loss, new statistics, gradient), the batch cut into `accumulate` parts."""
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        if parts == 1:
            (loss, batch_stats), grads = grad_fn(state["params"], state["batch_stats"], teacher_arrays, batch, key)
            return loss, batch_stats, grads

        def one(carry, xs):
            loss, batch_stats, grads = carry
            (part_loss, batch_stats), part_grads = grad_fn(state["params"], batch_stats, teacher_arrays, *xs)
            return (loss + part_loss, batch_stats, jax.tree.map(jnp.add, grads, part_grads)), None

        # every part takes rows of every device, so that none moves
        cut = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
        start = jnp.zeros(()), state["batch_stats"], jax.tree.map(jnp.zeros_like, state["params"])
        (loss, batch_stats, grads), _ = jax.lax.scan(one, start, (cut, jax.random.split(key, parts)))
        return loss / parts, batch_stats, jax.tree.map(lambda g: g / parts, grads)

    def update(state: dict, batch: dict, teacher_arrays, key: jax.Array) -> tuple[dict, dict]:
        loss, batch_stats, grads = gradients(state, teacher_arrays, batch, key)
        with jax.named_scope("optimizer"):
            norm, lr = optax.global_norm(grads), rate(state["step"])
            direction, opt = tx.update(grads, state["opt"], state["params"])
            params = jax.tree.map(lambda p, u: p - lr * u, state["params"], direction)
        ema = state["ema"]
        if ema:
            with jax.named_scope("ema"):
                ema = optax.incremental_update(
                    {"params": params, "batch_stats": batch_stats}, ema, 1 - config.optimizer.ema_decay
                )

        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        new = {"params": params, "batch_stats": batch_stats, "opt": opt, "ema": ema}
        new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, {k: state[k] for k in new})
        nonfinite = {
            "in_row": jnp.where(finite, 0, state["nonfinite"]["in_row"] + 1),
            "total": state["nonfinite"]["total"] + jnp.where(finite, 0, 1),
        }
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "lr": lr,
            "nonfinite_in_row": nonfinite["in_row"],
            "nonfinite_total": nonfinite["total"],
        }
        return {**state, **new, "step": state["step"] + 1, "nonfinite": nonfinite}, metrics

    return update


def make_step(student: Student, teacher: Callable, config, steps_per_epoch: int, shards: int | None = None) -> Callable:
    """The train step: (state, batch, teacher's arrays) → (state, metrics), a pure function to be jitted.

    batch: `image` uint8 (B, S, S, 3), `label`, `index`, `epoch`, `repeat` (B,), and `teacher` where labels are stored.
    metrics: scalars, left on the device. shards: devices the batch is split over (None: all that jax has).
    """
    update = make_update(student, teacher, config, schedule(config, steps_per_epoch))
    total = num_steps(config, steps_per_epoch)

    def step(state: dict, batch: dict, teacher_arrays) -> tuple[dict, dict]:
        position = (state["step"] + state["offset"]) % total
        key = purpose_key(state["seed"], "augment")
        with jax.named_scope("augment"):
            images, targets = augment_train(batch, key, position, config.augment, student.num_classes, shards)
        key = jax.random.fold_in(purpose_key(state["seed"], "drop"), position)
        return update(state, {**batch, "image": images, "target": targets}, teacher_arrays, key)

    return step

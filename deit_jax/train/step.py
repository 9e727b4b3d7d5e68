"""The train step, one pure function: batch → augment → teacher → student → loss → gradient → AdamW → EMA → metrics."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Integer, PRNGKeyArray, Shaped

from deit_jax import models
from deit_jax.augment import augment_train
from deit_jax.config import Config
from deit_jax.losses import distillation_loss
from deit_jax.models.layout import Layout, pin_params
from deit_jax.randomness import purpose_key, small_seed
from deit_jax.student import Student
from deit_jax.train.optimizer import ema_decay_at, make_optimizer, num_steps, schedule

State = dict[str, Any]
Batch = dict[str, Shaped[Array, "batch ..."]]
Images = Float[Array, "batch height width 3"]  # normalized, augmented and mixed
Metrics = dict[str, Shaped[Array, ""]]
Schedule = Callable[[Integer[Array, ""] | int], Float[Array, ""]]
Answers = Float[Array, "batch classes"] | Integer[Array, "batch"]  # a teacher's: logits or decisions
TeacherFunction = Callable[[Any, Batch, Images], Answers | None]


class Teacher(NamedTuple):
    """What the step distils from.

    Attributes:
        logits: (arrays, batch, images) → logits, decisions, or None.
        arrays: what `logits` needs, as an argument of the jitted step: a constant of its size would be compiled in.
        models: of a live teacher, its models (`deit_jax.distill.teacher.TeacherModel`), one for each of `arrays`.
    """

    logits: TeacherFunction
    arrays: Sequence[Any] = ()
    models: Sequence[Any] = ()


def no_teacher(arrays: Any, batch: Batch, images: Images) -> None:
    """The `Teacher.logits` of objectives without a teacher."""


NO_TEACHER = Teacher(no_teacher)


def create_state(
    student: Student, config: Config, weights: dict | None = None, *, seed: Integer[Array, ""] | int = 0
) -> State:
    """Create the whole state of a run as one pure nested dictionary; runs inside jit.

    Returns `step` (steps taken, skipped ones included), `offset` (batches by which the data is ahead of `step` after
    roll-backs), `seed` (here and not in the code, so that runs of all seeds share one compilation), `params`,
    `batch_stats`, `opt`, `ema` ({"params", "batch_stats"}, empty without averaging) and `nonfinite` (counts of skipped
    steps: in a row, total).
    """
    if weights is None:
        params, batch_stats = models.init_arrays(student.build, purpose_key(seed, "init"))
    else:
        params, batch_stats = weights["params"], weights["batch_stats"]
    zero = jnp.zeros((), jnp.int32)
    ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if config.optimizer.ema_decay else {}
    return {
        "step": zero,
        "offset": zero,
        "seed": zero + small_seed(seed),
        "params": params,
        "batch_stats": batch_stats,
        "opt": make_optimizer(config).init(params),
        "ema": ema,
        "nonfinite": {"in_row": zero, "total": zero},
    }


def make_loss(student: Student, teacher: TeacherFunction, config: Config) -> Callable:
    """(params, batch_stats, teacher's arrays, batch, key) → (loss, new batch statistics)."""
    d = config.distill

    def loss_fn(
        params: dict, batch_stats: dict, teacher_arrays: Any, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict]:
        with jax.named_scope("teacher"):
            teacher_logits = teacher(teacher_arrays, batch, batch["image"])
        model = nnx.merge(student.graphdef, params, batch_stats)
        cls, dist = model.heads(batch["image"], train=True, key=key)
        loss = distillation_loss(
            cls,
            dist,
            batch["target"],
            teacher_logits,
            kind=d.kind,
            alpha=d.alpha,
            tau=d.tau,
            normalization=d.normalization,
        )
        return loss, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    return loss_fn


def make_gradient(loss_fn: Callable, accum_steps: int, layout: Layout | None = None) -> Callable:
    """(params, batch_stats, teacher's arrays, batch, key) → (loss, new batch statistics, gradient).

    With accum_steps > 1 the batch is cut into that many microbatches, computed one after the other to save memory; loss
    and gradient are their means. The sum of the gradients is split over devices as `layout` stores the parameters.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def whole(params, batch_stats, teacher_arrays, batch, key):
        (loss, batch_stats), grads = grad_fn(params, batch_stats, teacher_arrays, batch, key)
        return loss, batch_stats, grads

    def accumulated(params, batch_stats, teacher_arrays, batch, key):
        def add_microbatch(carry, xs):
            loss, batch_stats, grads = carry
            # else the compiler gathers split weights once, before the loop, and holds them whole through all of it
            weights, loss = jax.lax.optimization_barrier((params, loss)) if layout else (params, loss)
            (micro_loss, batch_stats), micro_grads = grad_fn(weights, batch_stats, teacher_arrays, *xs)
            grads = pin_params(jax.tree.map(jnp.add, grads, micro_grads), layout)
            return (loss + micro_loss, batch_stats, grads), None

        # each microbatch takes rows from every device, so that no row has to move
        split = lambda x: x.reshape(-1, accum_steps, *x.shape[1:]).swapaxes(0, 1)
        microbatches = jax.tree.map(split, batch), jax.random.split(key, accum_steps)
        zeros = jnp.zeros(()), batch_stats, pin_params(jax.tree.map(jnp.zeros_like, params), layout)
        (loss, batch_stats, grads), _ = jax.lax.scan(add_microbatch, zeros, microbatches)
        return loss / accum_steps, batch_stats, jax.tree.map(lambda g: g / accum_steps, grads)

    return whole if accum_steps == 1 else accumulated


def make_update(student: Student, teacher: TeacherFunction, config: Config, lr_schedule: Schedule) -> Callable:
    """(state, batch, teacher's arrays, key) → (state, metrics): teacher, loss, gradient, AdamW, EMA.

    batch: `image` (B, S, S, 3) float32, normalized and mixed; `target` (B, classes) probabilities; and what the teacher
    needs. A step whose loss or gradient is not finite leaves the weights as they are and is counted in `nonfinite`.
    """
    tx = make_optimizer(config)
    gradient = make_gradient(make_loss(student, teacher, config), config.accumulate, student.layout)

    def update(state: State, batch: Batch, teacher_arrays: Any, key: PRNGKeyArray) -> tuple[State, Metrics]:
        loss, batch_stats, grads = gradient(state["params"], state["batch_stats"], teacher_arrays, batch, key)
        with jax.named_scope("optimizer"):
            grad_norm, lr = optax.global_norm(grads), lr_schedule(state["step"])
            updates, opt = tx.update(grads, state["opt"], state["params"])
            params = optax.apply_updates(state["params"], jax.tree.map(lambda u: -lr * u, updates))
        ema = state["ema"]
        if ema:
            with jax.named_scope("ema"):
                keep = ema_decay_at(config, state["step"])
                ema = optax.incremental_update({"params": params, "batch_stats": batch_stats}, ema, 1 - keep)

        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new = {"params": params, "batch_stats": batch_stats, "opt": opt, "ema": ema}
        new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, {name: state[name] for name in new})
        in_row = jnp.where(finite, 0, state["nonfinite"]["in_row"] + 1)
        total = state["nonfinite"]["total"] + jnp.where(finite, 0, 1)
        metrics = {"loss": loss, "grad_norm": grad_norm, "lr": lr, "nonfinite_in_row": in_row, "nonfinite_total": total}
        return {**state, **new, "step": state["step"] + 1, "nonfinite": {"in_row": in_row, "total": total}}, metrics

    return update


def make_step(
    student: Student, teacher: TeacherFunction, config: Config, steps_per_epoch: int, shards: int | None = None
) -> Callable:
    """The train step, (state, batch, teacher's arrays) → (state, metrics): a pure function, to be jitted.

    batch: `image` uint8 (B, S, S, 3), `label`, `index`, `epoch`, `repeat` (B,), and `teacher` where labels are stored.
    metrics: scalars, left on the device. shards: devices the batch is split over (None: all that jax has).
    """
    update = make_update(student, teacher, config, schedule(config, steps_per_epoch))
    total = num_steps(config, steps_per_epoch)

    def step(state: State, batch: Batch, teacher_arrays: Any) -> tuple[State, Metrics]:
        position = (state["step"] + state["offset"]) % total
        key = purpose_key(state["seed"], "augment")
        with jax.named_scope("augment"):
            images, targets = augment_train(batch, key, position, config.augment, student.num_classes, shards)
        key = jax.random.fold_in(purpose_key(state["seed"], "drop"), position)
        return update(state, {**batch, "image": images, "target": targets}, teacher_arrays, key)

    return step

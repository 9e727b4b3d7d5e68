"""The train step, one pure function: batch → augment → teacher → student → loss → gradient → update → EMA → metrics.

Model, state and step need no data, so that a step can be planned without any.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Integer, PRNGKeyArray, Shaped

from deit_jax import models
from deit_jax.augment.pipeline import augment_train
from deit_jax.config import Config
from deit_jax.config.recipes import RECIPES, value_of
from deit_jax.data.batch import DeviceBatch
from deit_jax.distill.teacher import TeacherFunction, feature_width
from deit_jax.errors import UserError
from deit_jax.losses import OBJECTIVES, distillation_terms, teacher_agreement, weighted_sum
from deit_jax.models.kernels import best_attention
from deit_jax.own import is_own
from deit_jax.randomness import purpose_key, small_seed
from deit_jax.runtime import hardware, sharding
from deit_jax.train.optimizer import ema_decay_at, make_optimizer, num_steps, schedule, stop_frozen

Metrics = dict[str, Shaped[Array, ""]]


class ModelSpec(NamedTuple):
    """The model that a run trains, student or teacher, without its arrays.

    Attributes:
        build: its constructor, a function of `rngs`.
        graphdef: its structure, to be merged with arrays.
        img_size: height and width in pixels.
        num_classes: number of classes per head.
        mesh: the devices its arrays are split over; None: one device.
    """

    build: functools.partial
    graphdef: nnx.GraphDef
    img_size: int
    num_classes: int
    mesh: Mesh | None = None

    def on(self, mesh: Mesh) -> "ModelSpec":
        """The same model, which computes with arrays that are split over the devices of `mesh`."""
        if mesh.size == 1:
            return self
        model = nnx.merge(*models.abstract(self.build))
        return self._replace(graphdef=nnx.graphdef(sharding.gather_kernels(model, mesh)), mesh=mesh)


def model_spec(config: Config, num_classes: int) -> ModelSpec:
    """The model that `config.model` describes, for data of `num_classes`.

    Raises:
        UserError: settings that do not make a model, or a model that does not fit the objective.
    """
    m = config.model
    module, defaults = models.find(m.name)
    options = {"num_classes": num_classes, "img_size": m.img_size or defaults.get("img_size", 224)}
    options["dtype"] = hardware.compute_dtype(m.dtype)
    if issubclass(module, models.vit.ViT):
        head_dim = defaults["embed_dim"] // defaults["num_heads"]
        options["attention"] = best_attention(m.attention, options["dtype"], head_dim)
        options |= {"scan_unroll": hardware.best("scan_unroll", m.scan_unroll), "remat": m.remat}
    options |= dropout_options(config, module)
    if OBJECTIVES[config.distill.kind].teacher == "features":
        if not issubclass(module, models.vit.ViT):
            raise UserError(f"distill.kind {config.distill.kind} needs tokens, {m.name} has none: train a ViT")
        grid = options["img_size"] // (defaults | options).get("patch_size", 16)
        options["feature_width"] = feature_width(config, options["img_size"], grid)
    build = models.constructor(m.name, **options)
    graphdef, *shapes = models.abstract(build)
    two_heads = getattr(nnx.merge(graphdef, *shapes), "two_heads", False)
    if OBJECTIVES[config.distill.kind].two_heads and not two_heads:
        raise UserError(
            f"distill.kind {config.distill.kind} needs two heads, {m.name} has one: use the distilled model"
        )
    both_learn = OBJECTIVES[config.distill.kind].term and 0 < config.distill.alpha < 1 and not config.train_baseline
    if is_own(m.name) and two_heads and not both_learn:  # of registered models the settings say it
        raise UserError(
            f"model.name {m.name} has two heads, one of which would stay untrained: use a class of one, or distill with"
            " 0 < distill.alpha < 1 and --config.train_baseline=False"
        )
    return ModelSpec(build, graphdef, options["img_size"], num_classes)


def dropout_options(config: Config, module: type[nnx.Module]) -> dict[str, float]:
    """The module's arguments for `model.drop_rate` and `model.drop_path_rate`.

    Raises UserError where one of them is set and the module has none (a RegNet); the recipe's value is ignored there.
    """
    taken, options = inspect.signature(module.__init__).parameters, {}
    for name in ("drop_rate", "drop_path_rate"):
        value, path = config.model[name], f"model.{name}"
        by_recipe = path in RECIPES[config.recipe] and value == value_of(config.recipe, path, config.distill.kind)
        if name in taken:
            options[name] = value
        elif value and not by_recipe:
            raise UserError(f"{path} is {value}, but {config.model.name} has none: leave it out")
    return options


class TrainState(flax.struct.PyTreeNode):
    """Everything that a run carries from step to step.

    Attributes:
        step: number of steps taken, skipped ones included.
        offset: number of batches by which the data is ahead of `step` after roll-backs.
        seed: of the run; part of the state, so that runs of all seeds share one compilation.
        params, batch_stats: the student's arrays, pure nested dictionaries.
        opt_state: of `make_optimizer`.
        ema: {"params", "batch_stats"}, exponential moving averages; {} without them.
        nonfinite: counts of skipped steps, {"in_row", "total"}.
    """

    step: Any  # int32, as the next two; trees of shapes and shardings have this structure too
    offset: Any
    seed: Any
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: Any
    ema: dict[str, Any]
    nonfinite: dict[str, Any]


def create_state(
    student: ModelSpec, config: Config, weights: dict | None = None, *, seed: Integer[Array, ""] | int = 0
) -> TrainState:
    """The state before the first step; runs inside jit.

    weights: {"params", "batch_stats"} to start from; None draws them from the seed.
    """
    if weights is None:
        params, batch_stats = models.init_arrays(student.build, purpose_key(seed, "init"))
    else:
        params, batch_stats = weights["params"], weights["batch_stats"]
    zero = jnp.zeros((), jnp.int32)
    ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if config.optimizer.ema_decay else {}
    return TrainState(
        step=zero,
        offset=zero,
        seed=zero + small_seed(seed),
        params=params,
        batch_stats=batch_stats,
        opt_state=make_optimizer(config).init(params),
        ema=ema,
        nonfinite={"in_row": zero, "total": zero},
    )


def make_train_step(
    student: ModelSpec,
    teacher: TeacherFunction | None,
    config: Config,
    steps_per_epoch: int,
    augment: Callable = augment_train,
) -> Callable[[TrainState, DeviceBatch, Any], tuple[TrainState, Metrics]]:
    """The train step of a resolved config, to be jitted: (state, batch, teacher's arrays) → (state, metrics).

    Args:
        student: its structure, split over devices or not.
        teacher: None for objectives without one.
        config: resolved.
        steps_per_epoch: of the schedule.
        augment: as `augment_train`; tests replace it.

    The step's batch: `image` uint8 (B, S, S, 3), `label`, `index`, `epoch`, `repeat` (B,), and `teacher` where labels
    are stored. Its metrics are scalars, left on the device.
    """
    loss_fn = make_loss(student, teacher, config)
    gradient = accumulate(jax.value_and_grad(loss_fn, has_aux=True), config.accumulate, student.mesh)
    update, total = make_update(config, steps_per_epoch), num_steps(config, steps_per_epoch)
    shards = student.mesh.size if student.mesh else 1  # devices the batch is split over

    def train_step(state: TrainState, batch: DeviceBatch, teacher_arrays: Any) -> tuple[TrainState, Metrics]:
        # after a roll-back the images and draws go on, the learning rate goes back: it follows the step
        position = (state.step + state.offset) % total
        with jax.named_scope("augment"):
            key = purpose_key(state.seed, "augment")
            images, targets = augment(batch, key, position, config.augment, student.num_classes, shards)
        batch = {**batch, "image": images, "target": targets}

        key = jax.random.fold_in(purpose_key(state.seed, "drop"), position)
        (loss, (batch_stats, metrics)), grads = gradient(state.params, state.batch_stats, teacher_arrays, batch, key)
        with jax.named_scope("optimizer"):
            state, of_update = update(state, loss, grads, batch_stats)
        return state, metrics | {"loss": loss} | of_update

    return train_step


def make_loss(student: ModelSpec, teacher: TeacherFunction | None, config: Config) -> Callable:
    """(params, batch_stats, teacher's arrays, augmented batch, key) → (loss, (new batch statistics, metrics)).

    The metrics are the loss's terms, and the fraction of images on which each head agrees with the teacher.
    """
    d, objective = config.distill, OBJECTIVES[config.distill.kind]

    def loss_fn(params: dict, batch_stats: dict, teacher_arrays: Any, batch: DeviceBatch, key: PRNGKeyArray):
        images = batch["image"]
        with jax.named_scope("teacher"):
            teacher_output = None if teacher is None else teacher(teacher_arrays, batch)
            if teacher and not d.labels and hardware.target().platform == "gpu":
                # the student waits, so that its activations can take the memory of the teacher's
                teacher_output, images = jax.lax.optimization_barrier((teacher_output, images))
        model = nnx.merge(student.graphdef, stop_frozen(params, config.optimizer.freeze), batch_stats)
        if objective.teacher == "features":
            (cls, dist), features = model.heads_and_features(images, train=True, key=key)
        else:
            (cls, dist), features = model.heads(images, train=True, key=key), None
        settings = {name: d[name] for name in ("kind", "tau", "normalization", "alpha")}
        settings |= {"class_loss": config.class_loss, "features": features}
        terms = distillation_terms(cls, dist, batch["target"], teacher_output, **settings)
        metrics = terms | teacher_agreement(cls, dist, teacher_output)
        return weighted_sum(terms, d.alpha), (nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), metrics)

    return loss_fn


def make_update(config: Config, steps_per_epoch: int) -> Callable:
    """(state, loss, gradient, new batch statistics) → (state after the step, metrics): the configured optimizer, AdamW
    by default (what is clipped and what decays: `make_optimizer`), at the schedule's learning rate, then the EMA.

    A step whose loss or gradient is not finite leaves the weights and all that follows from them unchanged, and is
    counted.
    """
    tx, lr_schedule = make_optimizer(config), schedule(config, steps_per_epoch)

    def update(state: TrainState, loss: Float[Array, ""], grads: dict, batch_stats: dict) -> tuple[TrainState, Metrics]:
        if hardware.target().platform == "gpu":
            # else XLA would concatenate the blocks' gradients again for each of the optimizer's four results
            grads = jax.lax.optimization_barrier(grads)
        grad_norm, lr = optax.global_norm(grads), lr_schedule(state.step)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)  # not multiplied by the learning rate yet
        params = optax.apply_updates(state.params, jax.tree.map(lambda u: -lr * u, updates))
        ema = state.ema
        if ema:
            with jax.named_scope("ema"):
                keep = ema_decay_at(config, state.step)
                ema = optax.incremental_update({"params": params, "batch_stats": batch_stats}, ema, 1 - keep)

        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new = {"params": params, "batch_stats": batch_stats, "opt_state": opt_state, "ema": ema}
        new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, {name: getattr(state, name) for name in new})
        in_row = jnp.where(finite, 0, state.nonfinite["in_row"] + 1)
        skipped = state.nonfinite["total"] + jnp.where(finite, 0, 1)
        state = state.replace(step=state.step + 1, nonfinite={"in_row": in_row, "total": skipped}, **new)
        return state, {"grad_norm": grad_norm, "lr": lr, "nonfinite_in_row": in_row, "nonfinite_total": skipped}

    return update


class Program(NamedTuple):
    """The jitted functions of a run on a mesh; nothing is compiled before their first call.

    Attributes:
        model: what is trained, on the mesh: as `Run.model`, computing with arrays that are split over its devices.
        abstract_state: shapes, types and shardings of the state.
        initialize: (weights or None, seed) → state.
        step: (state, batch, teacher's arrays) → (state, metrics); the state's memory is used again.
    """

    model: ModelSpec
    abstract_state: TrainState
    initialize: Callable
    step: jax.stages.Wrapped


def make_program(
    student: ModelSpec, teacher: TeacherFunction | None, config: Config, steps_per_epoch: int, mesh: Mesh
) -> Program:
    """The functions of a run whose state is placed on the devices of `mesh`; arguments as `make_train_step`."""
    shapes = jax.eval_shape(lambda: create_state(student, config))
    places = sharding.param_shardings(shapes, mesh)
    abstract_state = jax.tree.map(lambda x, place: x.update(sharding=place), shapes, places)
    initialize = lambda weights, seed: create_state(student, config, weights, seed=seed)
    student = student.on(mesh)
    step = make_train_step(student, teacher, config, steps_per_epoch)
    jitted = jax.jit(step, out_shardings=(places, None), donate_argnums=0)
    quick = {"xla_backend_optimization_level": 1} if mesh.devices.flat[0].platform == "cpu" else None  # runs once
    return Program(student, abstract_state, jax.jit(initialize, out_shardings=places, compiler_options=quick), jitted)


def accumulate(grad_fn: Callable, microbatches: int, mesh: Mesh | None = None) -> Callable:
    """`grad_fn` over a batch cut into microbatches, computed one after the other to save memory.

    Args:
        grad_fn: (params, batch_stats, teacher's arrays, batch, key) → ((loss, (batch statistics, metrics)), gradient).
        microbatches: number of them; with 1 `grad_fn` itself is returned.
        mesh: the devices over which the sum of the gradients is split as the parameters are; None: one device.

    Returns a function like `grad_fn`: loss, metrics and gradient are means over the microbatches.
    """
    if microbatches == 1:
        return grad_fn

    def accumulated(params: dict, batch_stats: dict, teacher_arrays: Any, batch: DeviceBatch, key: PRNGKeyArray):
        def add_microbatch(carry, microbatch):
            loss, batch_stats, grads = carry
            # else the compiler gathers split weights once, before the loop, and holds them whole through all of it
            weights, loss = jax.lax.optimization_barrier((params, loss)) if mesh else (params, loss)
            (micro_loss, (batch_stats, metrics)), micro_grads = grad_fn(
                weights, batch_stats, teacher_arrays, *microbatch
            )
            grads = sharding.constrain_params(jax.tree.map(jnp.add, grads, micro_grads), mesh)
            return (loss + micro_loss, batch_stats, grads), metrics

        def split(x: Shaped[Array, "batch ..."]) -> Shaped[Array, "parts rows ..."]:
            # each microbatch takes rows from every device, so that no row has to move
            return x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)

        parts = jax.tree.map(split, batch), jax.random.split(key, microbatches)
        zeros = jnp.zeros(()), batch_stats, sharding.constrain_params(jax.tree.map(jnp.zeros_like, params), mesh)
        (loss, batch_stats, grads), metrics = jax.lax.scan(add_microbatch, zeros, parts)
        loss, grads = jax.tree.map(lambda x: x / microbatches, (loss, grads))
        return (loss, (batch_stats, jax.tree.map(jnp.mean, metrics))), grads

    return accumulated

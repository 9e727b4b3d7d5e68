"""One training run, from top to bottom: what is trained, the step, the loop.

DESIGN in one line: batch → augment → teacher → student → loss → gradient → AdamW → EMA → metrics, all in one jit.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from deit_jax import hardware, models, sharding
from deit_jax.augment import augment_train
from deit_jax.errors import UserError
from deit_jax.interrupt import Interrupted, Stop
from deit_jax.losses import distillation_loss
from deit_jax.optimizer import make_optimizer, num_steps, schedule
from deit_jax.randomness import purpose_key


class Student(NamedTuple):
    """What is trained: the constructor of the model, its structure, and the sizes the data must have."""

    build: Callable
    graphdef: nnx.GraphDef
    img_size: int
    num_classes: int


def compute_dtype(name: str):
    """The compute type a config names; "auto" is bfloat16 on accelerators and float32 on CPU."""
    return jnp.dtype(hardware.best("dtype", name, jax.default_backend()))


def make_student(config, num_classes: int) -> Student:
    """The model `config.model` describes, for data of `num_classes`. Raises UserError for what makes no model."""
    m = config.model
    module, defaults = models.find(m.name)
    options = {"num_classes": num_classes, "img_size": m.img_size or defaults.get("img_size", 224)}
    options["dtype"] = compute_dtype(m.dtype)
    if issubclass(module, models.vit.ViT):
        options |= {k: m[k] for k in ("drop_rate", "drop_path_rate", "attention", "remat", "scan_unroll")}
        for name in ("attention", "scan_unroll"):
            options[name] = hardware.best(name, m[name], jax.default_backend())
    if config.distill.kind == "second_cls" and not defaults.get("distilled"):
        raise UserError(f"distill.kind second_cls needs two heads, {m.name} has one: use its distilled namesake")
    build = models.constructor(m.name, **options)
    return Student(build, models.abstract(build)[0], options["img_size"], num_classes)


def init_state(student: Student, config, weights: dict | None = None, *, seed: jax.Array | int = 0) -> dict:
    """The whole state of a run as one pure nested dictionary; runs inside jit.

    `step` updates made; `offset` how many batches the data is ahead of them (after a roll-back); `seed`, here and not
    in the code, so that runs of all seeds share one compilation; `params`, `stats`; `opt`; `ema` ({"params", "stats"},
    empty without averaging); `bad` counts of non-finite steps: in a row, in all.
    """
    if weights is None:
        params, stats = models.init_arrays(student.build, purpose_key(seed, "init"))
    else:
        params, stats = weights["params"], weights["stats"]
    zero = jnp.zeros((), jnp.int32)
    ema = jax.tree.map(jnp.copy, {"params": params, "stats": stats}) if config.optimizer.ema_decay else {}
    return {
        "step": zero, "offset": zero, "seed": zero + seed, "params": params, "stats": stats,
        "opt": make_optimizer(config).init(params), "ema": ema, "bad": {"in_row": zero, "total": zero},
    }  # fmt: skip


def make_update(student: Student, teacher: Callable, config, rate: Callable) -> Callable:
    """(state, batch, teacher's arrays, key) → (state, metrics): teacher, loss, gradient, AdamW, EMA.

    batch: `image` (B, S, S, 3) float32, normalized and mixed; `target` (B, classes) probabilities; what the teacher
    needs besides. rate: step → learning rate. A step whose loss or gradient is not finite changes no weight; it counts.
    """
    tx, d, parts = make_optimizer(config), config.distill, config.accumulate

    def loss_fn(params, stats, teacher_arrays, part, key):
        with jax.named_scope("teacher"):
            teacher_logits = teacher(teacher_arrays, part, part["image"])
        model = nnx.merge(student.graphdef, params, stats)
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
            (loss, stats), grads = grad_fn(state["params"], state["stats"], teacher_arrays, batch, key)
            return loss, stats, grads

        def one(carry, xs):
            loss, stats, grads = carry
            (part_loss, stats), part_grads = grad_fn(state["params"], stats, teacher_arrays, *xs)
            return (loss + part_loss, stats, jax.tree.map(jnp.add, grads, part_grads)), None

        # every part takes rows of every device, so that none moves
        cut = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
        start = jnp.zeros(()), state["stats"], jax.tree.map(jnp.zeros_like, state["params"])
        (loss, stats, grads), _ = jax.lax.scan(one, start, (cut, jax.random.split(key, parts)))
        return loss / parts, stats, jax.tree.map(lambda g: g / parts, grads)

    def update(state: dict, batch: dict, teacher_arrays, key: jax.Array) -> tuple[dict, dict]:
        loss, stats, grads = gradients(state, teacher_arrays, batch, key)
        with jax.named_scope("optimizer"):
            norm, lr = optax.global_norm(grads), rate(state["step"])
            direction, opt = tx.update(grads, state["opt"], state["params"])
            params = jax.tree.map(lambda p, u: p - lr * u, state["params"], direction)
        ema = state["ema"]
        if ema:
            with jax.named_scope("ema"):
                ema = optax.incremental_update({"params": params, "stats": stats}, ema, 1 - config.optimizer.ema_decay)

        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        new = {"params": params, "stats": stats, "opt": opt, "ema": ema}
        new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, {k: state[k] for k in new})
        bad = {
            "in_row": jnp.where(finite, 0, state["bad"]["in_row"] + 1),
            "total": state["bad"]["total"] + jnp.where(finite, 0, 1),
        }
        metrics = {"loss": loss, "grad_norm": norm, "lr": lr, "bad_in_row": bad["in_row"], "bad_total": bad["total"]}
        return {**state, **new, "step": state["step"] + 1, "bad": bad}, metrics

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


def train(
    config, workdir: str | Path, *, title: str = "student", teacher_init: str = "", decisions: dict | None = None
) -> dict:
    """Train what `config` (resolved and valid) describes, or finish the run that `workdir` holds.

    teacher_init: weights of a teacher that was trained just before, where `teacher.init` names none. decisions: where
    given, gets those of the last evaluation, {"params" or "ema": {head: [classes (images,), …]}}.
    Where weights come from: 1. the newest checkpoint in workdir, 2. else `config.init`, 3. else new ones from the seed.
    Returns the last evaluation: {"params": …, "ema": …}, each as `evaluate` returns it. Raises UserError for bad input,
    Interrupted once a signal came and the state is saved.
    """
    from deit_jax import report  # here: the step above needs neither data nor files
    from deit_jax.checkpoint import Checkpoints, claim_workdir
    from deit_jax.data import pipeline, sources
    from deit_jax.evaluate import evaluate_sets
    from deit_jax.label_reader import open_labels
    from deit_jax.teacher import make_teacher

    train_source, eval_source = sources.open_sources(config)
    student = make_student(config, train_source.num_classes)
    per_epoch = pipeline.steps_per_epoch(config, train_source)
    total = num_steps(config, per_epoch)
    sizes = {"img_size": student.img_size, "num_classes": student.num_classes}
    teacher, teacher_arrays = make_teacher(config, teacher_init, **sizes, dtype=compute_dtype(config.teacher.dtype))
    labels = open_labels(config, train_source, student, total)
    workdir = claim_workdir(workdir, config, train_source.fingerprint)

    mesh = sharding.make_mesh()
    shapes = jax.eval_shape(lambda: init_state(student, config))
    places = sharding.place_params(shapes, mesh, config.sharding)
    wanted = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places)
    new_state = jax.jit(lambda weights, seed: init_state(student, config, weights, seed=seed), out_shardings=places)
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    weights, notes = load_init(config, student) if checkpoints.latest() is None else (None, [])
    state = new_state(weights, config.seed) if checkpoints.latest() is None else checkpoints.restore(wanted)
    del weights  # the arrays on the host
    teacher_arrays = jax.device_put(teacher_arrays, sharding.everywhere(mesh))
    step_fn = make_step(student, teacher, config, per_epoch)
    step_fn = jax.jit(step_fn, out_shardings=(places, None), donate_argnums=0)  # the state stays where it lies
    pixels = {"mean": tuple(config.augment.mean), "std": tuple(config.augment.std)}
    meta = {
        "model": {"name": config.model.name, **sizes},
        "weights": {**pixels, "class_names": list(train_source.class_names)},
        "config": json.loads(config.to_json_best_effort()),
    }
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}

    def batches(position: int) -> Iterator[dict]:
        """Batches from `position` to the end of the run, and round again (only a rolled-back run goes round)."""
        for start in itertools.chain([position], itertools.repeat(0)):
            stream = pipeline.train_batches(
                config, train_source, size=student.img_size, start=start, labels=labels, **process
            )
            try:
                for batch in itertools.islice(stream, total - start):
                    log.broken = stream.broken
                    yield batch
            finally:
                stream.close()

    def evaluate_all(state: dict) -> dict:
        sets = {"params": {"params": state["params"], "stats": state["stats"]}, "ema": state["ema"]}
        sets = {name: weights for name, weights in sets.items() if weights}
        if decisions is not None:
            decisions.update({name: {} for name in sets})
        views = pipeline.eval_batches(config, eval_source, size=student.img_size, **process)
        return evaluate_sets(
            student.graphdef, sets, views,
            mesh=mesh, **pixels, fusion=config.evaluate.fusion, decisions=decisions,
        )  # fmt: skip

    step, offset, rollbacks, results = int(state["step"]), int(state["offset"]), 0, None
    log = report.Log(workdir, title=title, config=config, start=step, total=total, per_epoch=per_epoch)
    log.begin(student, state["params"], teacher=config.teacher.name if teacher_arrays else "", notes=notes, mesh=mesh)
    stream, ahead = batches((step + offset) % total), []
    with Stop() as stop:
        while step < total and not stop.asked(checkpoints.manager, step):
            with log.waiting():
                batch = next(stream)
            state, metrics = step_fn(state, sharding.place_batch(batch, mesh), teacher_arrays)
            step += 1
            ahead.append(metrics["loss"])
            if len(ahead) > 2:  # dispatch is asynchronous: run two steps ahead, not a thousand
                ahead.pop(0).block_until_ready()
            values = log.step(step, metrics)

            if values and values["bad_in_row"] >= config.stability.patience:
                rollbacks += 1
                back = checkpoints.last_good()
                if rollbacks > config.stability.rollbacks:
                    raise UserError(
                        f"{title} diverges: {int(values['bad_in_row'])} non-finite steps in a row at step {step}, "
                        f"after {rollbacks - 1} roll-backs: lower --config.optimizer.lr"
                    )
                if back is None:
                    state = new_state(load_init(config, student)[0], config.seed)
                else:
                    state = checkpoints.roll_back(back, wanted)
                offset += step - int(state["step"])
                state["offset"] = jax.device_put(jnp.asarray(offset, jnp.int32), places["offset"])
                log.rolled_back(step, int(state["step"]))
                step = int(state["step"])
                stream.close()
                stream = batches((step + offset) % total)
                continue

            epoch, within = divmod(step, per_epoch)
            due = lambda every: step == total or (within == 0 and epoch % every == 0)  # noqa: B023, E731
            scores = None
            if due(config.evaluate.every):
                results = evaluate_all(state)
                scores = results["params"]
                log.evaluation(step, results)
            if due(config.checkpoint.every):
                checkpoints.save(state, meta, scores)
    stream.close()
    if step < total:
        checkpoints.save(state, meta)
    checkpoints.close()
    if step < total:
        log.close()
        raise Interrupted(f"{title}: stopped at step {step} of {total}, saved; the same command goes on from there")
    results = results or evaluate_all(state)
    log.end()
    if stop.signal is not None:  # it came in the last step: what would follow waits for the next start
        raise Interrupted(f"{title}: complete and saved; the same command goes on from there")
    return results


def load_init(config, student: Student) -> tuple[dict | None, list[str]]:
    """(weights of `config.init` fitted to the student, what was changed to fit), or (None, []) without one."""
    if not config.init:
        return None, []
    from deit_jax.weights import fit_weights, load_weights

    params, stats, notes = fit_weights(load_weights(config.init), student.build)
    return {"params": params, "stats": stats}, notes

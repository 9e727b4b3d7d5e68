"""One training run, start to end: where weights come from, the loop, saving, recovery."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from deit_jax.data import pipeline, sources
from deit_jax.distill.label_reader import open_labels
from deit_jax.distill.teacher import make_teacher
from deit_jax.errors import UserError
from deit_jax.report.log import Log
from deit_jax.runtime import sharding
from deit_jax.runtime.interrupt import Interrupted, Stop
from deit_jax.student import Student, compute_dtype, make_student
from deit_jax.train.checkpoint import Checkpoints
from deit_jax.train.evaluate import evaluate_sets
from deit_jax.train.optimizer import num_steps
from deit_jax.train.step import create_state, make_step
from deit_jax.train.workdir import claim_workdir
from deit_jax.weights import fit_weights, load_weights


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

    train_source, eval_source = sources.open_sources(config)
    student = make_student(config, train_source.num_classes)
    per_epoch = pipeline.steps_per_epoch(config, train_source)
    total = num_steps(config, per_epoch)
    sizes = {"img_size": student.img_size, "num_classes": student.num_classes}
    teacher, teacher_arrays = make_teacher(config, teacher_init, **sizes, dtype=compute_dtype(config.teacher.dtype))
    labels = open_labels(config, train_source, student, total)
    workdir = claim_workdir(workdir, config, train_source.fingerprint)

    mesh = sharding.make_mesh()
    shapes = jax.eval_shape(lambda: create_state(student, config))
    state_sharding = sharding.place_params(shapes, mesh, config.sharding)
    abstract_state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, state_sharding
    )
    initialize = jax.jit(
        lambda weights, seed: create_state(student, config, weights, seed=seed), out_shardings=state_sharding
    )
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    weights, notes = load_init(config, student) if checkpoints.latest() is None else (None, [])
    state = initialize(weights, config.seed) if checkpoints.latest() is None else checkpoints.restore(abstract_state)
    del weights  # the arrays on the host
    teacher_arrays = jax.device_put(teacher_arrays, sharding.replicated(mesh))
    step_fn = make_step(student, teacher, config, per_epoch)
    step_fn = jax.jit(step_fn, out_shardings=(state_sharding, None), donate_argnums=0)  # the state stays where it lies
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
        sets = {"params": {"params": state["params"], "batch_stats": state["batch_stats"]}, "ema": state["ema"]}
        sets = {name: weights for name, weights in sets.items() if weights}
        if decisions is not None:
            decisions.update({name: {} for name in sets})
        views = pipeline.eval_batches(config, eval_source, size=student.img_size, **process)
        return evaluate_sets(
            student.graphdef, sets, views,
            mesh=mesh, **pixels, fusion=config.evaluate.fusion, decisions=decisions,
        )  # fmt: skip

    step, offset, rollbacks, results = int(state["step"]), int(state["offset"]), 0, None
    log = Log(workdir, title=title, config=config, start=step, total=total, per_epoch=per_epoch)
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

            if values and values["nonfinite_in_row"] >= config.stability.patience:
                rollbacks += 1
                back = checkpoints.last_good()
                if rollbacks > config.stability.rollbacks:
                    raise UserError(
                        f"{title} diverges: {int(values['nonfinite_in_row'])} non-finite steps in a row at step "
                        f"{step}, after {rollbacks - 1} roll-backs: lower --config.optimizer.lr"
                    )
                if back is None:
                    state = initialize(load_init(config, student)[0], config.seed)
                else:
                    state = checkpoints.roll_back(back, abstract_state)
                offset += step - int(state["step"])
                state["offset"] = jax.device_put(jnp.asarray(offset, jnp.int32), state_sharding["offset"])
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

    params, batch_stats, notes = fit_weights(load_weights(config.init), student.build)
    return {"params": params, "batch_stats": batch_stats}, notes

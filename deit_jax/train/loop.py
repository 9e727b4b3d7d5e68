"""One training run, start to end: where weights come from, the loop, saving, evaluation, recovery."""

import collections
import contextlib
import itertools
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from deit_jax.config import Config
from deit_jax.config.recipes import teacher_config, trains_teacher
from deit_jax.data import loader
from deit_jax.errors import Interrupted, UserError
from deit_jax.evaluate.inference import evaluate_sets
from deit_jax.randomness import small_seed
from deit_jax.runtime import sharding
from deit_jax.runtime.progress import track
from deit_jax.runtime.stop import Stop
from deit_jax.train.checkpoint import Checkpoints
from deit_jax.train.log import Log
from deit_jax.train.run import Data, Run, load_init, open_run
from deit_jax.train.step import TrainState
from deit_jax.weights.load import adopt_normalization

LOWER_LR = "lower --config.optimizer.lr (a teacher's teacher.lr) in a new --workdir"
PROGRESS_AFTER = 10.0  # seconds of an evaluation without a progress line
STEPS_AHEAD = 2  # dispatched before the oldest must be done: dispatch is asynchronous, and would run a thousand ahead


def train(run: Run) -> dict[str, dict]:
    """Train a run, or finish the one that its folder holds.

    Weights come from 1. the newest checkpoint in the folder, 2. else `run.init`, 3. else the seed. A step that is both
    saved and evaluated is saved first; where a signal ends an evaluation, its step is saved.

    Returns the last evaluation: {"params": …, "ema": …}, each as `evaluate_sets` returns it.

    Raises:
        UserError: bad input, a checkpoint that cannot be saved, or a run that diverges again and again, or takes none
            of its steps.
        Interrupted: a signal came, and the state is saved.
    """
    config, total = run.config, run.total_steps
    teacher_arrays = jax.device_put(list(run.teacher.arrays) if run.teacher else [], sharding.replicated(run.mesh))
    with Stop() as stop, contextlib.ExitStack() as exits:  # closed however the run ends
        checkpoints = Checkpoints(run.folder, config.checkpoint.keep)
        exits.callback(checkpoints.close)  # waits for the running save
        state = start_state(run, checkpoints, checkpoints.latest())
        log = exits.enter_context(contextlib.closing(open_log(run, state, checkpoints)))
        batches = exits.enter_context(contextlib.closing(training_batches(run, int(state.step) + int(state.offset))))
        step, rollbacks, running = int(state.step), 0, collections.deque()
        results: dict[str, dict] = {}
        if jax.process_index() == 0 and step < total:
            loader.check_headers(config, run.data.evaluation)

        while not stop.requested:
            if is_due(run, config.evaluate.every, step) and (step == total or step not in checkpoints.scores):
                results = evaluate_state(run, state, checkpoints, log, stop)
            if step == total or stop.requested:  # the next start evaluates first what was interrupted here
                break
            with log.waiting():
                batch, broken = next(batches)
            state, metrics = run.program.step(state, sharding.place_batch(batch, run.mesh), teacher_arrays)
            step += 1
            stop.poll()
            running.append(metrics["loss"])
            if len(running) > STEPS_AHEAD:
                running.popleft().block_until_ready()

            log.record(step, metrics, broken=broken)
            checked = step % config.log.every == 0 or step == total  # to read a metric is to wait for the device
            if checked and int(metrics["nonfinite_in_row"]) >= config.stability.patience:
                rollbacks += 1
                state = roll_back(run, state, checkpoints, log, rollbacks)
                step = int(state.step)
            elif is_due(run, config.checkpoint.every, step):
                save(run, state, checkpoints, log)

        if step < total:
            save(run, state, checkpoints, log)
        check_finished(run, state, evaluated=bool(results) and not stop.requested)
    return results


def open_log(run: Run, state: TrainState, checkpoints: Checkpoints) -> Log:
    """The log of a run that begins or resumes at `state`, with what it prints first."""
    step = int(state.step)
    interval = checkpoints.meta(step).get("interval_metrics", [])
    log = Log(run, step, evaluated=step in checkpoints.scores, interval=interval)
    log.begin(state.params)
    return log


def training_batches(run: Run, position: int) -> Generator[tuple[loader.Batch, int], None, None]:
    """This process's rows of each training batch, endless, and the number of unreadable images so far.

    After the run's last batch comes its first again: the data of a run that was rolled back is ahead of its step.

    position: of the first batch, counted round the end of the run.
    """
    broken = 0
    while True:
        position %= run.total_steps
        stream = loader.train_batches(
            run.config,
            run.data.train,
            size=run.model.img_size,
            start=position,
            stored_labels=run.stored_labels,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        with contextlib.closing(stream):
            for batch in itertools.islice(stream, run.total_steps - position):
                yield batch, broken + stream.broken.total()
        position, broken = 0, broken + stream.broken.total()


def check_finished(run: Run, state: TrainState, *, evaluated: bool) -> None:
    """Raise Interrupted for a run without its last step or evaluation, UserError for one that has learned nothing."""
    step, total = int(state.step), run.total_steps
    if step < total or not evaluated:
        raise Interrupted(f"{run.title}: stopped at step {step} of {total}, saved; the same command resumes from there")
    if int(state.nonfinite["total"]) >= total:
        raise UserError(
            f"{run.title} has learned nothing: the loss or gradients of all {total} steps were not finite: check"
            f" --config.augment.mean and --config.augment.std, or {LOWER_LR}"
        )


def is_due(run: Run, every: int, step: int) -> bool:
    """Whether something that happens every few epochs, and at the end, happens after `step` steps."""
    epoch, within = divmod(step, run.steps_per_epoch)
    return step == run.total_steps or (step > 0 and within == 0 and epoch % every == 0)


def start_state(run: Run, checkpoints: Checkpoints, step: int | None) -> TrainState:
    """The state saved at `step`; None: a new one, from `run.init` (not loaded by a resumed run) or the seed."""
    if step is None:
        weights = run.init or load_init(run.config, run.model, run.data.train.class_names)[0]
        return run.program.initialize(weights, small_seed(run.config.seed))  # jit takes an int32
    return TrainState(**checkpoints.restore(vars(run.program.abstract_state), step))


def save(run: Run, state: TrainState, checkpoints: Checkpoints, log: Log) -> None:
    """Start to save the state; what the next line of the log averages over is part of it."""
    log.sync()
    checkpoints.save(vars(state), run.meta | {"interval_metrics": log.interval_metrics()})


def evaluate_state(run: Run, state: TrainState, checkpoints: Checkpoints, log: Log, stop: Stop) -> dict:
    """Evaluate the weights and their average, log and record it; {} if a stop was requested meanwhile."""

    def batches() -> Iterator[loader.Batch]:
        process: dict[str, Any] = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        images, rows = run.data.evaluation, run.config.data.eval_batch_size or run.config.batch_size
        size = run.model.img_size
        stream = loader.eval_batches(run.config, images, size=size, **process)
        total = -(-len(images) // rows) if jax.process_index() == 0 else 0
        for batch in track(stream, "evaluation batches", total, after=PROGRESS_AFTER):
            if stop.poll():
                raise Interrupted(f"{run.title}: evaluation of step {step} stopped")
            yield batch

    step = int(state.step)
    sets = {"params": {"params": state.params, "batch_stats": state.batch_stats}, "ema": state.ema}
    sets = {name: weights for name, weights in sets.items() if weights}
    try:
        results = evaluate_sets(
            run.program.model.graphdef,
            sets,
            batches(),
            mesh=run.mesh,
            **run.pixel_statistics,
            fusion=run.config.evaluate.fusion,
        )
    except Interrupted:
        return {}
    if step not in checkpoints.scores:
        log.evaluation(step, results)
        checkpoints.score(step, results["params"])
    return results


def roll_back(run: Run, state: TrainState, checkpoints: Checkpoints, log: Log, rollbacks: int) -> TrainState:
    """The newest healthy state before the run diverged, or a new one, to continue on data that was not seen yet: its
    `step` goes back and its `offset` forward, so that the next batch is the one that follows.

    rollbacks: how many this one makes. Raises UserError where that is more than `stability.rollbacks`.
    """
    step = int(state.step)
    if rollbacks > run.config.stability.rollbacks:
        raise UserError(
            f"{run.title} diverges: {int(state.nonfinite['in_row'])} non-finite steps in a row at step {step}, after"
            f" {rollbacks - 1} roll-backs: {LOWER_LR}"
        )
    good = checkpoints.last_good()
    to = good or 0
    checkpoints.discard_after(to)
    back = start_state(run, checkpoints, good)
    offset = int(state.offset) + step - to
    place = run.program.abstract_state.offset.sharding
    back = back.replace(offset=jax.device_put(jnp.asarray(offset, jnp.int32), place))
    in_row = int(state.nonfinite["in_row"])
    log.rolled_back(step, to, in_row, interval=checkpoints.meta(to).get("interval_metrics", []))
    return back


def train_run(config: Config, workdir: str | Path, data: Data | None = None, **options: Any) -> dict[str, dict]:
    """Open a run and train it; arguments as `open_run`, result and errors as `train`."""
    return train(open_run(config, workdir, data, **options))


def train_teacher(config: Config, workdir: Path, data: Data | None = None) -> tuple[str, dict[str, dict] | None]:
    """(folder of the teacher's weights, its results), trained in WORKDIR/teacher; ("", None) where none is trained."""
    if not trains_teacher(config):
        return "", None
    folder = workdir / "teacher"
    return str(folder), train_run(adopt_normalization(teacher_config(config), folder), folder, data, title="teacher")

"""Runs whose step costs nothing, through the real checkpoints and the real label store, and what they leave."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from benchmarks.faults.starts import at
from deit_jax.distill.label_store import CHUNK, LabelStore, digest
from deit_jax.label import fill, prepare_store
from deit_jax.runtime import peers, sharding
from deit_jax.runtime.interrupt import EXIT_INTERRUPTED, Interrupted, Stop, listen
from deit_jax.runtime.processes import from_process_0, hold_folder
from deit_jax.train.checkpoint import Checkpoints

STEPS = 30
CHUNKS = 40
SEVERAL_STEPS = 40
SEVERAL_CHUNKS = 192
LOST_AFTER = 15.0  # seconds; all processes share a core here
STEP_SECONDS = 0.01  # asleep: saving goes on meanwhile


def toy_run(workdir: Path, steps: int = STEPS) -> Callable[[], None]:
    """A run that saves after each step: state k + 1 follows from state k alone."""

    def work() -> None:
        checkpoints = Checkpoints(workdir, keep=2)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), toy_state(0))
        state = toy_state(0) if checkpoints.latest() is None else checkpoints.restore(shapes)
        for step in range(int(state["step"]) + 1, steps + 1):
            at("step")
            time.sleep(STEP_SECONDS)
            kernel = np.asarray(state["params"]["kernel"])
            state = toy_state(step, np.float32(0.9) * kernel + np.float32(step))
            checkpoints.save(state, {"model": {}})
        checkpoints.close()

    return work


def toy_state(step: int, kernel: np.ndarray | None = None) -> dict[str, Any]:
    kernel = np.zeros((256, 64), np.float32) if kernel is None else kernel
    return {
        "step": np.int32(step),
        "params": {"kernel": kernel},
        "batch_stats": {},
        "ema": {},
        "nonfinite": {"in_row": np.int32(0)},
    }


def toy_labels(folder: Path, chunks: int = CHUNKS) -> Callable[[], None]:
    """Fill a store, one chunk after the other."""

    def work() -> None:
        both = {"images": {"data.classes": 1000}, "teacher": {}}
        header = {
            "kind": "hard",
            "k": 1,
            "dtype": "uint16",
            "tau": 1.0,
            "batch_size": 512,
            "hash": digest(both),
            **both,
        }
        folder.mkdir(exist_ok=True)
        store = LabelStore.create(folder, header, chunks * CHUNK)
        for chunk in store.damaged():
            store.remove(chunk)
        for chunk in store.missing(chunks * CHUNK):
            at("step")
            rows = np.random.default_rng(chunk).integers(0, 1000, (CHUNK, 512)).astype(np.uint16)
            at("label write")
            for write in store.write(chunk, {"decision": rows}):
                write.result()

    return work


def label_bits(folder: Path) -> dict[str, Any]:
    """The content of a toy store, and its files."""
    store = LabelStore(folder)
    labels = store.read_steps(0, store.array("decision").shape[0])["decision"].tobytes()
    return {"labels": labels, "damaged": store.damaged()}


def several_saving(workdir: Path, environment: dict[str, str] | None = None) -> Callable[[], None]:
    """`toy_run` as one of several processes that meet in every step, in what a real run stands in."""

    def work() -> None:
        with as_one_of_several(workdir, environment), Stop() as stop:
            checkpoints = Checkpoints(workdir, keep=2)
            replicated = sharding.replicated(sharding.make_mesh())
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), toy_state(0))
            state = toy_state(0) if checkpoints.latest() is None else checkpoints.restore(shapes)
            for step in range(int(state["step"]) + 1, SEVERAL_STEPS + 1):
                if stop.asked(step - 1):
                    break
                at("step")
                time.sleep(5 * STEP_SECONDS)
                multihost_utils.broadcast_one_to_all(np.int32(step))
                kernel = np.asarray(state["params"]["kernel"])
                state = jax.device_put(toy_state(step, np.float32(0.9) * kernel + np.float32(step)), replicated)
                checkpoints.save(state, {"model": {}})
            checkpoints.close()
            end_one_by_one()
            if int(state["step"]) < SEVERAL_STEPS:
                raise Interrupted("stopped and saved; the same command resumes from there")

    return work


def several_labelling(folder: Path, environment: dict[str, str] | None = None) -> Callable[[], None]:
    """Labelling as `--mode=label` does it in one of several processes, by a teacher that costs nothing."""

    def one(_: int, step: int) -> dict[str, np.ndarray]:
        time.sleep(STEP_SECONDS / 10)
        return {"decision": np.random.default_rng(step).integers(0, 1000, 64)}

    def batches(start: int) -> Iterator[int]:
        yield from range(start, SEVERAL_CHUNKS * CHUNK)

    def work() -> None:
        both = {"images": {"data.classes": 1000}, "teacher": {}}
        header = {"kind": "hard", "k": 1, "dtype": "uint16", "tau": 1.0, "batch_size": 64, "hash": digest(both), **both}
        folder.mkdir(exist_ok=True)
        with as_one_of_several(folder, environment):
            from_process_0(lambda: prepare_store(folder, header, SEVERAL_CHUNKS * CHUNK))
            at("label write")
            fill(LabelStore(folder), one, batches, SEVERAL_CHUNKS * CHUNK)
            end_one_by_one()

    return work


def end_one_by_one() -> None:
    """Have some processes be done while others still work, as in a report."""
    at("end")
    time.sleep(STEP_SECONDS * 50 * jax.process_index())


@contextlib.contextmanager
def as_one_of_several(folder: Path, environment: dict[str, str] | None) -> Iterator[None]:
    """What main.py puts around a run; a signal ends in exit code 130."""
    os.environ.update(environment or {})
    try:
        with listen():
            sharding.start_processes()
            with peers.watch(LOST_AFTER), hold_folder(folder):
                yield
    except Interrupted as stop:
        print(stop, flush=True)
        sys.exit(EXIT_INTERRUPTED)
    finally:
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()  # as at the end of an interpreter, which a fork has not

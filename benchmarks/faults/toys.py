"""Runs whose step costs nothing, through the real checkpoints and the real label store, and what they leave."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.faults.starts import at
from deit_jax.distill.label_store import CHUNK, LabelStore
from deit_jax.train.checkpoint import Checkpoints

STEPS = 30
CHUNKS = 40
STEP_SECONDS = 0.01  # asleep: saving goes on meanwhile


def toy_run(workdir: Path, steps: int = STEPS) -> Callable[[], None]:
    """A run that saves after each step: state k + 1 follows from state k alone."""

    def work() -> None:
        checkpoints = Checkpoints(workdir, keep=2)
        latest = checkpoints.latest()
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), toy_state(0))
        state = toy_state(0) if latest is None else checkpoints.restore(shapes, latest)
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
        form = {"kind": "hard", "k": 1, "dtype": "uint16", "tau": 1.0, "batch_size": 512}
        header = form | {"images": {"data.classes": 1000}, "teacher": {}}
        folder.mkdir(exist_ok=True)
        store = LabelStore.create(folder, header, chunks * CHUNK)
        for chunk in store.damaged():
            store.remove(chunk)
        for chunk in store.missing(chunks * CHUNK):
            at("step")
            rows = np.random.default_rng(chunk).integers(0, 1000, (CHUNK, 512)).astype(np.uint16)
            at("label write")
            for write in store.write(chunk, {"label": rows}):
                write.result()

    return work


def label_bits(folder: Path) -> dict[str, Any]:
    """The content of a toy store, and its files."""
    store = LabelStore(folder)
    labels = store.read_steps(0, store.steps)["label"].tobytes()
    return {"labels": labels, "damaged": store.damaged()}

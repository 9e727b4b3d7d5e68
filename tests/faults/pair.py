"""One of two processes, for test_pair.py: `pair.py INDEX PORT FOLDER` writes what it saw to FOLDER/INDEX.json."""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from deit_jax.distill.label_store import CHUNK, LabelStore, digest
from deit_jax.errors import UserError
from deit_jax.label import fill, prepare_store
from deit_jax.runtime import interrupt, peers, sharding
from deit_jax.runtime.processes import from_process_0, hold_folder, wait_for_process_0
from deit_jax.train import setup
from deit_jax.train.checkpoint import Checkpoints

CHUNKS = 40


def complaint(work: Callable) -> str:
    """What UserError `work` raises; "" for none."""
    try:
        work()
    except UserError as error:
        return str(error)
    return ""


def fail() -> int:
    raise UserError("the disk is gone")


def look_at(*fingerprints: str) -> None:
    """Compare data of these fingerprints with the other process's."""
    data: Any = [SimpleNamespace(fingerprint=f) for f in fingerprints]
    setup.check_same_on_all_processes(data)


def save_on_a_full_disk(folder: Path, index: int) -> dict:
    """Checkpoints of three steps; files of process 0 may have 20,000 bytes while the second is saved."""
    kernel = np.random.default_rng(0).normal(size=(256, 64)).astype(np.float32)  # no compression makes it fit
    state = {
        "step": np.int32(0),
        "params": {"kernel": kernel},
        "batch_stats": {},
        "ema": {},
        "nonfinite": {"in_row": np.int32(0)},
    }
    replicated = sharding.replicated(sharding.make_mesh())
    checkpoints = Checkpoints(folder, keep=3)
    started = []
    for step in (1, 2, 3):
        if step == 2 and index == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        state["step"] = np.int32(step)
        started.append(checkpoints.save(jax.device_put(state, replicated), {}))
        checkpoints.settle()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    steps = checkpoints.manager.all_steps()
    return {"steps": sorted(steps), "failure": str(checkpoints.failure), "close": complaint(checkpoints.close)}


def store_labels(folder: Path) -> None:
    """Label slowly, until a signal comes."""
    both = {"images": {"data.classes": 10}, "teacher": {}}
    header = {"kind": "hard", "k": 1, "dtype": "uint16", "tau": 1.0, "batch_size": 4, "hash": digest(both), **both}
    folder.mkdir(exist_ok=True)
    from_process_0(lambda: prepare_store(folder, header, CHUNKS * CHUNK))

    def one(batch: int, step: int) -> dict:
        time.sleep(0.002)
        return {"decision": np.full(4, step % 10)}

    def batches(start: int):
        yield from range(start, CHUNKS * CHUNK)

    print("labelling", flush=True)
    fill(LabelStore(folder), one, batches, CHUNKS * CHUNK)


def main(index: int, port: int, folder: Path) -> None:
    os.environ |= {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
    }
    seen = {}
    with interrupt.listen():
        sharding.start_processes()
        with peers.watch(20.0):
            begun = time.monotonic()
            time.sleep(0.5 * (index == 0))
            wait_for_process_0("late")
            seen["waited"] = time.monotonic() - begun
            seen["decided"] = from_process_0(lambda: 7)
            seen["refused"] = complaint(lambda: from_process_0(fail))
            seen["same"] = complaint(lambda: look_at("a", "b"))
            seen["other"] = complaint(lambda: look_at("a", f"b{index}"))
            with hold_folder(folder / "run"):
                seen["saves"] = save_on_a_full_disk(folder / "run", index)
            try:
                store_labels(folder / "labels")
            except interrupt.Interrupted as stop:
                seen["stopped"] = str(stop)
    (folder / f"{index}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

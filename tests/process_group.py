"""Groups of local processes that stand in for the hosts of one run, for test_processes.py.

They are forked from a process that has imported everything: importing is a third of what a small run costs.
"""

import contextlib
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
from helpers import ROOT, SLURM_PORTS, TINY, TINY_PLAIN, held_port, tiny_config

from deit_jax.ablate import ablate
from deit_jax.config import default_config
from deit_jax.errors import Interrupted
from deit_jax.evaluate.evaluation_command import Request, evaluate_command
from deit_jax.label import label
from deit_jax.runtime import sharding
from deit_jax.train import loop
from deit_jax.train.loop import train_run

STEPS_PER_EPOCH = 4


def small_config(**changes: Any):
    """Twelve steps of a small distilled model on 128 digits; evaluated on 50, which no number of processes divides."""
    run = {"data.limit": 128, "evaluate.limit": 50, "batch_size": 32, "epochs": 3, "log.every": 1}
    run |= {"model.scan_unroll": 1, "optimizer.lr": 4e-3, "evaluate.every": 100}
    light = {"augment.mixup": 0.0, "augment.cutmix": 0.0, "augment.erasing": 0.0}  # less to compile
    kept = {"data.cache": "device", "data.device_size": 12}  # by each process, all of them
    return tiny_config(**run | light | kept | changes)


def train_until(step: int, folder: Path, **changes: Any) -> dict[str, Any] | None:
    """Train, or go on, and stop after `step` (0: at the end) as after a signal; the evaluation of a run that reached
    its end."""
    begun = max((int(path.name) for path in folder.glob("checkpoints/[0-9]*")), default=0)

    class StopAtStep(loop.Stop):
        def poll(self) -> bool:  # how the processes agree on a step is tested in runtime/test_stop.py
            nonlocal begun
            begun += 1
            self.requested = begun == step
            return self.requested

    with mock.patch.object(loop, "Stop", StopAtStep), contextlib.suppress(Interrupted):
        return train_run(small_config(**changes), folder)
    return None


def evaluate(folder: Path) -> dict[str, Any]:
    """`--mode=evaluate --workdir=FOLDER`: {"params" or "ema": its result}."""
    given = {"batch_size": 16}
    config = default_config()
    config.update_from_flattened_dict(given)
    rows = evaluate_command(config, given, Request(workdir=str(folder)))["rows"]
    return {row["kind"]: next(iter(row["results"].values())) for row in rows}


def store_labels(teacher: Path, folder: Path) -> None:
    """`--mode=label`: what a trained model says of the same images in another augmentation, 70 steps: two chunks."""
    changes = {"teacher.name": TINY, "teacher.init": str(teacher), "distill.kind": "hard"}
    label(small_config(**changes, epochs=18), folder)


def study(folder: Path) -> dict[str, Any]:
    """`--mode=ablate`: a teacher, its stored labels and a student; what the student's heads reach."""
    arms = {"ablate.arms": ("hard",), "ablate.seeds": (0,), "ablate.store_labels": True, "epochs": 1}
    teacher = {"teacher.name": TINY_PLAIN, "teacher.epochs": 1, "distill.kind": "hard"}
    return ablate(small_config(**arms, **teacher), folder)["hard"][0]


def as_started_by_hand(index: int, count: int, port: int) -> dict[str, str]:
    """The variables of docs/scale.md for clusters that jax does not know."""
    return {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
    }


def as_started_by_slurm(index: int, count: int, port: int) -> dict[str, str]:
    """What `srun` sets on one node; jax takes its port from the job's number."""
    return {
        "SLURM_JOB_ID": str(port - SLURM_PORTS[0]),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "SLURM_STEP_NUM_NODES": "1",
    }


def member(environment: dict[str, str], work: list[tuple], results: Path) -> None:
    """One process of a group: join the others, do the work, write down what it found."""
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ |= environment
    sharding.start_processes()
    found = {"processes": jax.process_count(), "devices": [jax.device_count(), jax.local_device_count()]}
    for name, arguments, changes in work:
        works = {"train_until": train_until, "evaluate": evaluate, "store_labels": store_labels, "study": study}
        found[name] = works[name](*arguments, **changes)
    (results / f"{jax.process_index()}.json").write_text(json.dumps(found))


def run_group(count: int, start: Callable, work: list[tuple], results: Path) -> list[dict[str, Any]]:
    """Run a group of processes and return what each of them found.

    Args:
        count: of processes.
        start: (index, count, port) → the environment variables of a process.
        work: what all of them do, [(name of a function here, arguments, keywords)].
        results: a folder to be made.
    """
    results.mkdir()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    with held_port() as port:
        group = [context.Process(target=member, args=(start(i, count, port), work, results)) for i in range(count)]
        with mock.patch.dict(os.environ, {"PYTHONPATH": path}):  # for the process they are forked from
            for process in group:
                process.start()
        for process in group:
            process.join()  # where one ends early, jax ends the others
    assert [process.exitcode for process in group] == [0] * count
    return [json.loads((results / f"{i}.json").read_text()) for i in range(count)]

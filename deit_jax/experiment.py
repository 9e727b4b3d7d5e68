"""`--mode=train`: the teacher (where it is trained here), the comparison, the student, the report."""

import dataclasses
import time
from pathlib import Path

import jax

from deit_jax.config import Config
from deit_jax.config.recipes import plain_config
from deit_jax.report.run_report import write_report
from deit_jax.runtime.processes import hold_folder, wait_for_process_0
from deit_jax.train.loop import train, train_run, train_teacher
from deit_jax.train.run import PLAIN_STUDENT, open_run, open_teacher


def train_and_report(config: Config, workdir: str | Path) -> dict[str, dict]:
    """Train what `config` describes: the teacher where it is trained here, the plain student for comparison where
    `train_baseline` asks for it, the student; then write the report.

    workdir: folder of the student's run; the others are in its `teacher` and `plain`. Several starts of the same
    command resume where the last one ended.

    Returns {"teacher", "plain", "student"}: the evaluations of what was trained, as `train` returns them. Raises
    UserError for bad input, found before anything is trained, and Interrupted after a signal, the state saved.
    """
    begun, results = time.perf_counter(), {}
    run = open_run(config, workdir)
    with hold_folder(run.folder):
        teacher_folder, evaluations = train_teacher(config, run.folder, run.data)
        if evaluations:
            results["teacher"] = evaluations
            teacher = open_teacher(config, run.data.train.class_names, run.model, teacher_folder)
            run = dataclasses.replace(run, teacher=teacher)
        if config.train_baseline:
            results["plain"] = train_run(plain_config(config), run.folder / "plain", run.data, title=PLAIN_STUDENT)
        results["student"] = train(run)
        try:
            if jax.process_index() == 0:
                write_report(run, results, time.perf_counter() - begun)
        finally:
            wait_for_process_0("report")
    return results

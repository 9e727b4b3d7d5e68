"""`--mode=train`: the teacher (where it is trained here), the comparison, the student, the report.

With `finetune.epochs`, fine-tuning at another resolution follows in the same command: how the paper's best model is
trained (distilled DeiT-B at 384 px, 85.2 %), which the released code leaves to the user.

    WORKDIR/            the training, as without `finetune`
    WORKDIR/finetune/   the fine-tuning, a run of its own, started from the training's best weights
    WORKDIR/chain.md    both results
"""

import dataclasses
import time
from pathlib import Path

import jax

from deit_jax.config import Config, default_config, finetune_config, validate
from deit_jax.config.recipes import has_teacher, plain_config, trains_teacher
from deit_jax.data import loader
from deit_jax.errors import UserError
from deit_jax.report.agreement import PLAIN_STUDENT
from deit_jax.report.run_report import write_chain_report, write_report
from deit_jax.runtime import storage
from deit_jax.runtime.processes import hold_folder, wait_for_process_0
from deit_jax.train.loop import train, train_run, train_teacher
from deit_jax.train.run import Data, open_data, open_models, open_run
from deit_jax.train.step import make_student


def run(config: Config, workdir: str | Path, data: Data | None = None) -> dict[str, dict]:
    """Train what `config` describes: the teacher where it is trained here, the plain student for comparison where
    `train_baseline` asks for it, the student; then write the report.

    workdir: folder of the student's run; the others are in its `teacher` and `plain`. Several starts of the same
    command resume where the last one ended. data: the images, opened already; None opens them.

    Returns {"teacher", "plain", "student"}: the evaluations of what was trained, as `train` returns them. Raises
    UserError for bad input, found before anything is written, and Interrupted after a signal, the state saved.
    """
    begun = time.perf_counter()
    student = open_run(config, workdir, data)
    first = jax.process_index() == 0
    with hold_folder(student.folder):
        results = {}
        teacher_folder, results["teacher"] = train_teacher(config, student.folder, student.data)
        if config.train_baseline:
            plain = student.folder / "plain"
            results["plain"] = train_run(plain_config(config), plain, student.data, title=PLAIN_STUDENT)
        if teacher_folder:
            teacher = open_models(config, student.data, teacher_folder)[1]
            student = dataclasses.replace(student, teacher=teacher)
        results["student"] = train(student)
        results = {name: found for name, found in results.items() if found is not None}
        try:
            if first:
                write_report(student, results, time.perf_counter() - begun)
        finally:
            wait_for_process_0("report")
    return results


def chain(config: Config, workdir: str | Path) -> dict[str, dict]:
    """Train as `config` says, then fine-tune as `config.finetune` says.

    config: resolved and valid. A second call resumes where the first ended, in whichever stage; both stages share the
    data, opened once. Returns {"train", "finetune"}: what `run` returned for each. Raises UserError for what is wrong
    with either stage before the first begins.
    """
    workdir = storage.as_path(workdir)
    first, then = stages(config, workdir)
    validate(then, num_devices=jax.device_count())
    data = open_data(then)
    make_student(then, data.train.num_classes)
    loader.steps_per_epoch(then, data.train)

    results = {"train": run(first, workdir, data)}
    results["finetune"] = run(then, workdir / "finetune", data)
    if jax.process_index() == 0:
        write_chain_report(workdir, {"train": first, "finetune": then}, results, data.train.num_classes)
    return results


def stages(config: Config, workdir: Path) -> tuple[Config, Config]:
    """(config of the pretraining, config of the fine-tuning) of a resolved config with `finetune.epochs`.

    The first is that of the same run without fine-tuning, so that a finished run can be fine-tuned later. Raises
    UserError where the second would have no teacher.
    """
    pretraining = config.copy_and_resolve_references()
    pretraining.finetune.update(default_config().finetune)
    fine_tuning = finetune_config(config, str(workdir))
    if trains_teacher(config):
        fine_tuning.teacher.init, fine_tuning.teacher.epochs = str(workdir / "teacher"), 0
    elif has_teacher(config) and not (config.teacher.init or config.finetune.labels):
        raise UserError("fine-tuning needs a teacher or its labels: give --config.teacher.init= or finetune.labels")
    return pretraining, fine_tuning

"""Training, fine-tuning at another resolution, evaluation, in one command: how the paper's best model is trained
(distilled DeiT-B at 384 px, 85.2 %), which the released code leaves to the user.

    WORKDIR/            the training, as without `finetune`
    WORKDIR/finetune/   the fine-tuning, a run of its own, started from the training's best weights
    WORKDIR/chain.md    both results
"""

from pathlib import Path
from typing import Any

import jax

from deit_jax.config import Config, validate
from deit_jax.config.finetune import stages
from deit_jax.data import pipeline
from deit_jax.report import log, tables
from deit_jax.run import run
from deit_jax.runtime import atomic
from deit_jax.student import make_student
from deit_jax.train.setup import open_data


def chain(config: Config, workdir: str | Path) -> dict[str, dict]:
    """Train as `config` says, then fine-tune as `config.finetune` says.

    config: resolved and valid. A second call goes on where the first ended, in whichever stage; both stages share the
    data, opened once. Returns {"train", "finetune"}: what `run` returned for each. Raises UserError for what is wrong
    with either stage before the first begins.
    """
    workdir = Path(workdir)
    first, then = stages(config, workdir)
    validate(then, num_devices=jax.device_count())
    data = open_data(then, workdir)
    make_student(then, data.train.num_classes)
    pipeline.steps_per_epoch(then, data.train)

    results = {"train": run(first, workdir, data)}
    results["finetune"] = run(
        then, workdir / "finetune", data, lr_setting="finetune.lr", command_folder=workdir.absolute()
    )  # fmt: skip
    if jax.process_index() == 0:
        write_chain(workdir, {"train": first, "finetune": then}, results, data.train.num_classes)
    return results


def write_chain(workdir: Path, configs: dict[str, Any], results: dict[str, dict], num_classes: int) -> None:
    """chain.md and chain.json: the student of each stage, by stage. The table is printed, too."""
    students = []
    for stage, config in configs.items():
        name = config.model.name + (f" at {config.model.img_size} px" if config.model.img_size else "")
        students.append((name, results[stage]["student"]))
    table = tables.accuracy_table(students, num_classes)
    links = "[training](report.md), [fine-tuning](finetune/report.md)"
    atomic.write_json(workdir / "chain.json", log.to_json(results))
    atomic.write_text(workdir / "chain.md", f"# {configs['finetune'].model.name}\n\n{table}\n\nReports: {links}\n")
    print(f"\n{table}\n\nreport: {workdir / 'chain.md'}")

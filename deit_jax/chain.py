"""Training, fine-tuning at another resolution, evaluation, in one command: the way to the paper's best model (distilled
DeiT-B at 384 px, 85.2 %), which its code never showed.

    WORKDIR/            the training, as without `finetune`
    WORKDIR/finetune/   the fine-tuning, a run of its own, begun from the training's best weights
    WORKDIR/chain.md    both results
"""

import json
from pathlib import Path

import jax

from deit_jax.config import validate
from deit_jax.config.finetune import stages
from deit_jax.data import pipeline, sources
from deit_jax.report import tables
from deit_jax.run import run
from deit_jax.student import make_student


def chain(config, workdir: str | Path) -> dict:
    """`--mode=train` with `finetune.epochs`. Returns {"train", "finetune"}: what `run` returned for each.

    config: resolved and valid. A second call goes on where the first ended, in whichever stage. Raises UserError for
    what is wrong with either stage before the first begins.
    """
    workdir = Path(workdir)
    first, then = stages(config, workdir)
    validate(then, num_devices=jax.device_count())
    train_source, _ = sources.open_sources(then)
    make_student(then, train_source.num_classes)
    pipeline.steps_per_epoch(then, train_source)

    results = {"train": run(first, workdir), "finetune": run(then, workdir / "finetune")}
    if jax.process_index() == 0:
        write_chain(workdir, {"train": first, "finetune": then}, results)
    return results


def write_chain(workdir: Path, configs: dict, results: dict) -> None:
    """chain.md and chain.json: the student of each stage. Printed as well."""
    rows = []
    for stage, config in configs.items():
        name = config.model.name + (f" at {config.model.img_size} px" if config.model.img_size else "")
        rows += tables.accuracy_rows(name, results[stage]["student"])
    table = tables.table(["model", "head", "weights", "top-1 %", "top-5 %"], rows)
    links = "[training](report.md), [fine-tuning](finetune/report.md)"
    (workdir / "chain.md").write_text(f"# {configs['finetune'].model.name}\n\n{table}\n\nReports: {links}\n")
    (workdir / "chain.json").write_text(json.dumps(results, indent=1))
    print(f"\n{table}\n\nreport: {workdir / 'chain.md'}")

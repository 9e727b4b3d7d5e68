"""`--mode=ablate`: the paper's Table 3 on any data. Every arm over every seed, resumable run by run, with one teacher.

An arm is a change to the config; to add one, add it to ARMS.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from deit_jax import plots, report
from deit_jax.config import validate
from deit_jax.errors import UserError, nearest
from deit_jax.run import check, plain_config, plain_name, train_teacher
from deit_jax.train import train


def soft(config) -> None:
    """The paper's setting: lambda 0.1, temperature 3, KL a batch mean."""
    d = config.distill
    d.kind, d.alpha, d.tau, d.normalization = "soft", 0.1, 3.0, "paper"


def hard(config) -> None:
    config.distill.kind, config.distill.alpha = "hard", 0.5


def without_token(config) -> None:
    """The one head learns both terms."""
    hard(config)
    config.model.name = plain_name(config.model.name)


def soft_without_token(config) -> None:
    soft(config)
    config.model.name = plain_name(config.model.name)


def second_cls(config) -> None:
    """The paper's control: a second token that learns the true labels, too."""
    config.distill.kind, config.distill.alpha = "second_cls", 0.5


ARMS: dict[str, Callable] = {
    "none": lambda config: None,
    "soft": soft,
    "hard": hard,
    "soft_no_token": soft_without_token,
    "hard_no_token": without_token,
    "second_cls": second_cls,
}
TAUGHT = set(ARMS) - {"none", "second_cls"}
LABELS = {
    "none": "no distillation", "soft": "soft, with token", "hard": "hard, with token",
    "soft_no_token": "soft, no token", "hard_no_token": "hard, no token", "second_cls": "second class token",
}  # fmt: skip


def arm_config(config, arm: str, seed: int):
    """The config of one run of the study; where no teacher shapes the run, none is part of its identity."""
    c = config.copy_and_resolve_references() if arm in TAUGHT else plain_config(config)
    if arm == "second_cls":
        c.model.name = config.model.name
    c.seed, c.compare = seed, False
    ARMS[arm](c)
    return c


def ablate(config, workdir: str | Path) -> dict:
    """Run the study; returns {arm: {head: [top-1 a seed]}} and writes it as table, bar plot, curves and JSON."""
    begun = time.perf_counter()
    for arm in config.ablate.arms:
        if arm not in ARMS:
            raise UserError(f"ablate.arms has '{arm}'{nearest(arm, ARMS)}: known are {', '.join(ARMS)}")
    if "_distilled" not in config.model.name:
        raise UserError(
            f"model.name {config.model.name} has no distillation token: ablate starts from a distilled model"
        )
    if config.distill.labels:
        raise UserError(
            "distill.labels belong to one seed, ablate trains several: leave it empty, the teacher runs live"
        )
    base = config.copy_and_resolve_references()
    hard(base)
    for arm in config.ablate.arms:
        validate(arm_config(base, arm, 0))
    workdir = check(base, workdir)
    teacher_folder, teacher = train_teacher(base, workdir)

    scores: dict[str, dict[str, list[float]]] = {}
    logs = {}
    for seed in config.ablate.seeds:  # seed by seed, so that an unfinished study compares whole rows
        for arm in config.ablate.arms:
            folder = workdir / f"{arm}-{seed}"
            result = train(
                arm_config(base, arm, seed), folder, title=f"{arm}, seed {seed}", teacher_init=teacher_folder
            )
            for head, r in result["params"]["heads"].items():
                scores.setdefault(arm, {}).setdefault(head, []).append(r["top1"])
            logs.setdefault(arm, report.read_log(folder))
    if jax.process_index() == 0:
        write_study(workdir, config, teacher, scores, logs, time.perf_counter() - begun)
    return scores


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for one value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def paired(values: list[float], others: list[float]) -> tuple[float, float, float]:
    """(mean difference, its standard error, two-sided p of Student's paired t-test) over seeds, values - others."""
    from scipy import stats

    difference = np.subtract(values, others)
    if len(difference) < 2 or not difference.std():
        return float(difference.mean()), math.nan, math.nan
    test = stats.ttest_rel(values, others)
    return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference))), float(test.pvalue)


def write_study(workdir: Path, config, teacher, scores, logs, seconds: float) -> None:
    """ablation.md, ablation.json, ablation.png, curves.png."""
    cells = {}
    for arm, heads in scores.items():
        cells[arm] = {head: mean_and_deviation(values) for head, values in heads.items()}
    show = lambda cell: f"{cell[0]:.2f} ± {cell[1]:.2f}" if cell else ""  # noqa: E731
    fused = f"fused_{config.evaluate.fusion}"
    rows = [[LABELS[arm], *(show(c.get(head)) for head in ("cls", "dist", fused))] for arm, c in cells.items()]
    table = report.table(["arm", "class head", "distillation head", "fused"], rows)
    best = lambda arm: scores[arm].get(fused, scores[arm]["cls"])  # noqa: E731
    tests = []
    if "none" in scores:
        for arm in scores:
            if arm != "none":
                mean, error, p = paired(best(arm), best("none"))
                tests.append([LABELS[arm], f"{mean:+.2f}", f"{error:.2f}", f"{p:.3f}"])
    compared = report.table(["against no distillation", "difference", "standard error", "p (paired t-test)"], tests)
    taught = f"Teacher {config.teacher.name}: {teacher['params']['top1']:.2f} %. " if teacher else ""
    seeds = ", ".join(map(str, config.ablate.seeds))
    text = [
        f"# {config.model.name}: ablation",
        f"{taught}Top-1 in percent, mean ± standard deviation over seeds {seeds}; {report.duration(seconds)}.",
        table,
        *([compared] if tests else []),
        "![bars](ablation.png)",
        "![curves](curves.png)",
    ]
    (workdir / "ablation.md").write_text("\n\n".join(text) + "\n")
    record = {"scores": scores, "teacher": teacher and teacher["params"]["top1"], "seeds": list(config.ablate.seeds)}
    (workdir / "ablation.json").write_text(json.dumps(record, indent=1))
    plots.bars(workdir / "ablation.png", {LABELS[arm]: mean_and_deviation(best(arm)) for arm in scores})
    plots.curves(workdir / "curves.png", {LABELS[arm]: log for arm, log in logs.items()})
    print(f"\n{table}\n\n{compared}\n\nreport: {workdir / 'ablation.md'}")

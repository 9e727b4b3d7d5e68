"""`--mode=ablate`: the paper's Tables 2 and 3 on any data. Every arm over every seed, resumable run by run.

An arm is a change to the config; to add one, add it to ARMS. `ARM@MODEL:EPOCHS` is an arm taught by another teacher,
trained here for that many epochs (`hard@deit_nano_patch4_32:5`: a transformer teaches). The command may be started
several times on one workdir: the processes share out the runs (deit_jax/study/jobs.py).
"""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from deit_jax import models
from deit_jax.config import validate
from deit_jax.config.derived import plain_config, teacher_config, trains_teacher, without_token
from deit_jax.distill.runs import open_models, train_run
from deit_jax.errors import UserError, nearest
from deit_jax.label import label
from deit_jax.runtime import lock
from deit_jax.study import decisions, jobs, report
from deit_jax.study.jobs import Job
from deit_jax.train.setup import open_data
from deit_jax.train.workdir import claim_workdir
from deit_jax.weights.orbax import find_step, read_meta


def soft(config) -> None:
    """The paper's setting: lambda 0.1, temperature 3, the KL divergence a mean over the batch."""
    d = config.distill
    d.kind, d.alpha, d.tau, d.normalization = "soft", 0.1, 3.0, "paper"


def hard(config) -> None:
    config.distill.kind, config.distill.alpha = "hard", 0.5


def hard_without_token(config) -> None:
    """The one head learns both terms."""
    hard(config)
    config.model.name = without_token(config.model.name)


def soft_without_token(config) -> None:
    soft(config)
    config.model.name = without_token(config.model.name)


def second_cls(config) -> None:
    """The paper's control: a second token that learns the true labels, too."""
    config.distill.kind, config.distill.alpha = "second_cls", 0.5


ARMS: dict[str, Callable] = {
    "none": lambda config: None,
    "soft": soft,
    "soft_no_token": soft_without_token,
    "hard": hard,
    "hard_no_token": hard_without_token,
    "second_cls": second_cls,
    "hard_live": hard,
}
TAUGHT = set(ARMS) - {"none", "second_cls"}
REPORT_SECONDS = 600.0  # the pictures take seconds, as much as some runs' evaluation
LIVE = "hard_live"  # although `ablate.store_labels`: what stored labels are checked against, for the first seed


class Arm(NamedTuple):
    """An arm by its parts: `kind` of ARMS; model and epochs of its own teacher, "" and 0 for the study's."""

    kind: str
    teacher: str = ""
    epochs: int = 0


def parse_arm(text: str) -> Arm:
    """Raises UserError for an arm, or a teacher's model, that is not known."""
    kind, at, teacher = text.partition("@")
    name, _, epochs = teacher.partition(":")
    if kind not in ARMS:
        raise UserError(f"ablate.arms has '{kind}'{nearest(kind, ARMS)}: known are {', '.join(ARMS)}")
    if not at:
        return Arm(kind)
    if kind not in TAUGHT or not epochs.isdecimal() or epochs.startswith("0"):
        raise UserError(f"ablate.arms has '{text}': another teacher is given as hard@MODEL:EPOCHS")
    models.find(name)
    if "/" in name:
        raise UserError(f"ablate.arms has '{text}': the teacher is trained here, give a name of deit_jax.list_models()")
    return Arm(kind, name, int(epochs))


def with_teacher(config, arm: Arm):
    """The config with the arm's own teacher; one of another model than the study's learns at the student's rate."""
    c = config.copy_and_resolve_references()
    if arm.teacher:
        c.teacher.lr = c.teacher.lr if arm.teacher == c.teacher.name else 0.0
        c.teacher.init, c.teacher.name, c.teacher.epochs = "", arm.teacher, arm.epochs
    return c


def arm_config(config, arm: str, seed: int):
    """The config of one run of the study; where no teacher shapes the run, none is part of its identity."""
    parsed = parse_arm(arm)
    c = with_teacher(config, parsed) if parsed.kind in TAUGHT else plain_config(config)
    if parsed.kind == "second_cls":
        c.model.name = config.model.name
    c.seed, c.train_baseline = seed, False
    ARMS[parsed.kind](c)
    return c


def ablate(config, workdir: str | Path) -> dict[str, dict[int, dict[str, float]]]:
    """Run the study, or what is left of it; returns {arm: {seed: {head: top-1}}}.

    WORKDIR/results holds it as tables, pictures and JSON, refreshed every ten minutes and at the end (study/report.py).
    """
    arms = {name: parse_arm(name) for name in config.ablate.arms}
    if config.distill.labels:
        raise UserError(
            "distill.labels belong to one seed, ablate trains several: leave it empty; with"
            " --config.ablate.store_labels=True each seed has its own"
        )
    if "_distilled" not in config.model.name:
        raise UserError(
            f"model.name {config.model.name} has no distillation token: ablate starts from a distilled model, as"
            " --config=configs/deit_s.py:distill=hard gives"
        )
    base = config.copy_and_resolve_references()
    hard(base)
    data = open_data(base)
    source = data.train
    for name in arms:
        for seed in config.ablate.seeds:
            validate(arm_config(base, name, seed))
    for name in {(arm[1:], arm.kind in TAUGHT): name for name, arm in arms.items()}.values():  # one per teacher
        open_models(arm_config(base, name, 0), data)
    base.label.k = min(base.label.k, source.num_classes)
    workdir = claim_workdir(workdir, base, source.fingerprint)

    def write() -> dict:
        scores, averaged = collect(workdir, config), collect(workdir, config, "ema")
        if jax.process_index() == 0:
            with lock.try_hold(workdir / "results") as other:
                if other is None:
                    report.write(workdir, config, scores, averaged, command=shlex.join(["python", *sys.argv]))
        return scores

    jobs.run_jobs(plan_jobs(base, workdir, arms), jobs.at_most_every(REPORT_SECONDS, write))
    scores = write()
    if jax.process_index() == 0:
        print(f"\n{(workdir / 'results/ablation.md').read_text()}\n\nreport: {workdir / 'results/ablation.md'}")
    return scores


def plan_jobs(base, workdir: Path, arms: dict[str, Arm]) -> list[Job]:
    """Teachers first, then seed by seed: an unfinished study has all arms of the seeds that are done."""
    teachers = {arm[1:]: with_teacher(base, Arm("hard", *arm[1:])) for arm in arms.values() if arm.kind in TAUGHT}
    names = {t: f"teacher-{c.teacher.name}-{t[1]}" if t[0] else "teacher" for t, c in teachers.items()}
    folders = {t: workdir / names[t] if trains_teacher(c) else None for t, c in teachers.items()}
    planned = [
        Job(folder, (), lambda c=c, f=folder: train_the_teacher(c, f))
        for t, c in teachers.items()
        if (folder := folders[t])
    ]
    for seed in base.ablate.seeds:
        stores = {}
        for t, folder in folders.items():
            stored = [a for a, arm in arms.items() if arm[1:] == t and arm.kind in TAUGHT and arm.kind != LIVE]
            if not (base.ablate.store_labels and stored):
                continue
            soft_ones = [a for a in stored if arms[a].kind.startswith("soft")]
            c = arm_config(base, (soft_ones or stored)[0], seed)
            c.label.kind = "topk" if soft_ones else "hard"  # probabilities hold decisions, too
            store = workdir / "labels" / f"{names[t]}-{seed}-{c.label.kind}"
            work = lambda c=c, s=store, f=folder: label(c, s, teacher_init=str(f or ""))
            planned.append(Job(store, (folder,) if folder else (), work))
            stores |= dict.fromkeys(stored, store)
        for name, arm in arms.items():
            if arm.kind == LIVE and seed != base.ablate.seeds[0]:
                continue  # one seed shows the equality
            c, run = arm_config(base, name, seed), workdir / report.run_name(name, seed)
            folder = folders.get(arm[1:]) if arm.kind in TAUGHT else None
            needs = (folder,) if folder else ()
            if name in stores:
                c.distill.labels, needs = str(stores[name]), (stores[name],)
            planned.append(Job(run, needs, lambda c=c, r=run, f=folder: train_one(c, r, f)))
    return planned


def train_one(config, folder: Path, teacher: Path | None) -> dict[str, Any]:
    """Train one run; returns what `decisions.record` found of its last weights, and writes down what they decide."""
    data = open_data(config)
    train_run(config, folder, data, title=folder.name, teacher_init=str(teacher or ""))
    return decisions.record(config, data, folder) if jax.process_index() == 0 else {}


def train_the_teacher(config, folder: Path) -> dict[str, Any]:
    """Train a teacher, evaluated on `ablate.teacher_split` (default: the students' split) as it learns.

    Returns, and writes down, what `train_one` does for the students' evaluation images; "teaches_with": the top-1 of
    the checkpoint that teaches, the best on its own split; "evaluation": that of its last weights on the students'.
    """
    c = teacher_config(config)
    students = c.data.eval_split
    c.data.eval_split = config.ablate.teacher_split or students
    train_run(c, folder, open_data(c), title=folder.name)
    best = find_step(folder)
    assert best, "a finished run has a checkpoint"
    found = {"teaches_with": read_meta(best)["metrics"]["top1"]}
    c.data.eval_split = students
    data = open_data(c)  # on every process: they compare what they have opened
    if jax.process_index() == 0:
        found |= decisions.record(c, data, folder)
        found["evaluation"] = found["heads"]["cls"]
    return found


def collect(workdir: Path, config, weights: str = "heads") -> dict[str, dict[int, dict[str, float]]]:
    """{arm: {seed: {head: top-1}}} of the runs that are done; weights: "heads", the last ones, or "ema"."""
    scores: dict[str, dict[int, dict[str, float]]] = {}
    for arm in config.ablate.arms:
        for seed in config.ablate.seeds:
            found = jobs.result(workdir / report.run_name(arm, seed))
            if found and weights in found:
                scores.setdefault(arm, {})[seed] = found[weights]
    return scores

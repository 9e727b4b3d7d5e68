"""`--mode=ablate`: the paper's Tables 2 and 3 on any data. Every arm over every seed, resumable run by run.

An arm is a change to the config; to add one, add it to ARMS. `ARM@MODEL:EPOCHS` is an arm distilled from another
teacher, trained here for that many epochs (`hard@deit_nano_patch4_32:5`: a transformer teaches).

The same command may be started several times on one workdir: each process claims the next unclaimed run by a file lock;
a failed run is retried by the next process. Each start has its own core (`taskset -c 0`, `-c 1`, …) or GPU
(`CUDA_VISIBLE_DEVICES=0`, `=1`, …).

    WORKDIR/RUN/done.json           scores of the last weights; seconds, machine and versions of the start that ended it
    WORKDIR/RUN/predictions.npz     "WEIGHTS/HEAD" → predicted classes (images,) of the evaluation images
    WORKDIR/results/ablation.md     the table: mean over the seeds, and differences paired by seed
    WORKDIR/results/ablation.json   the same, with the scores of every seed
"""

import contextlib
import datetime
import itertools
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy import stats

from deit_jax import models
from deit_jax.augment import normalize
from deit_jax.config import validate
from deit_jax.config.recipes import plain_config, teacher_config, trains_teacher, without_token
from deit_jax.data import loader
from deit_jax.data.base import limit_images
from deit_jax.errors import UserError, nearest
from deit_jax.evaluate.inference import predict_classes
from deit_jax.evaluate.tables import table
from deit_jax.label import label
from deit_jax.report.run_report import token_cosine
from deit_jax.runtime import atomic, hardware, sharding
from deit_jax.runtime.processes import from_process_0, try_hold, wait_for_process_0
from deit_jax.train.loop import train_run
from deit_jax.train.run import Data, PixelStatistics, claim_workdir, open_data, open_teacher
from deit_jax.train.step import model_spec
from deit_jax.version import __version__
from deit_jax.weights import integrity
from deit_jax.weights.load import adopt_normalization
from deit_jax.weights.orbax import best_checkpoint, read_meta, read_weights

POLL = 2.0  # seconds between checks on the runs of other processes
COSINE_IMAGES = 256
HEADS = {"cls": "class head", "dist": "distillation head", "fused": "fused"}

Scores = dict[str, dict[int, dict[str, float]]]  # arm, seed, head → top-1 in percent


# the paper's soft setting: lambda 0.1, temperature 3, the KL divergence a mean over the batch
SOFT = {"distill.kind": "soft", "distill.alpha": 0.1, "distill.tau": 3.0, "distill.normalization": "paper"}
HARD = {"distill.kind": "hard", "distill.alpha": 0.5}
NO_TOKEN = "_no_token"  # both loss terms act on the only head

ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "soft": SOFT,
    f"soft{NO_TOKEN}": SOFT,
    "hard": HARD,
    f"hard{NO_TOKEN}": HARD,
    "second_cls": {"distill.kind": "second_cls", "distill.alpha": 0.5},  # a second token learns the true labels as well
}
DISTILLED_ARMS = set(ARMS) - {"none", "second_cls"}


class Arm(NamedTuple):
    """An arm by its parts: `kind` of ARMS; model and epochs of its own teacher, "" and 0 for the config's."""

    kind: str
    teacher: str = ""
    epochs: int = 0


def parse_arm(text: str) -> Arm:
    """The parts of an arm's name. Raises UserError for an unknown arm or teacher."""
    kind, at, teacher = text.partition("@")
    name, _, epochs = teacher.partition(":")
    if kind not in ARMS:
        raise UserError(f"ablate.arms has '{kind}'{nearest(kind, ARMS)}: known are {', '.join(ARMS)}")
    if not at:
        return Arm(kind)
    if kind not in DISTILLED_ARMS or "/" in name or not epochs.isdecimal() or epochs.startswith("0"):
        raise UserError(f"ablate.arms has '{text}': another teacher, trained here, is given as hard@MODEL:EPOCHS")
    models.find(name)
    return Arm(kind, name, int(epochs))


def with_teacher(config, arm: Arm):
    """The config with the arm's own teacher; one of another model than the config's learns at the student's rate."""
    c = config.copy_and_resolve_references()
    if arm.teacher:
        c.teacher.lr = c.teacher.lr if arm.teacher == c.teacher.name else 0.0
        c.teacher.init, c.teacher.name, c.teacher.epochs = "", arm.teacher, arm.epochs
    return c


def arm_config(config, arm: str, seed: int):
    """The config of one run; the teacher is part of its identity only where it shapes the run."""
    parsed = parse_arm(arm)
    c = with_teacher(config, parsed) if parsed.kind in DISTILLED_ARMS else plain_config(config)
    if parsed.kind == "second_cls":
        c.model.name = config.model.name
    c.seed, c.train_baseline = seed, False
    c.update_from_flattened_dict(ARMS[parsed.kind])
    if parsed.kind.endswith(NO_TOKEN):
        c.model.name = without_token(config.model.name)
    return c


class Job(NamedTuple):
    """One run. work: () → its result (JSON); needs: folders of the jobs that come before it."""

    folder: Path
    needs: tuple[Path, ...]
    work: Callable[[], dict[str, Any]]


def ablate(config, workdir: str | Path) -> Scores:
    """Run the arms over the seeds, or what is left of them, and write the table after each run.

    Returns the scores of the last weights.
    """
    arms = {name: parse_arm(name) for name in config.ablate.arms}
    if config.distill.labels:
        raise UserError("distill.labels are of one seed, ablate trains several: use --config.ablate.store_labels=True")
    if "_distilled" not in config.model.name:
        raise UserError(
            f"model.name {config.model.name} has no distillation token: ablate starts from a distilled model, as"
            " --config=configs/deit_s.py:distill=hard gives"
        )
    base = config.copy_and_resolve_references()
    base.update_from_flattened_dict(HARD)
    data = open_data(base)
    source = data.train
    for name in arms:  # before anything is trained
        validate(arm_config(base, name, 0))
    for name in {(arm[1:], arm.kind in DISTILLED_ARMS): name for name, arm in arms.items()}.values():  # one per teacher
        arm = arm_config(base, name, 0)
        open_teacher(arm, source.class_names, model_spec(arm, source.num_classes))
    base.label.k = min(base.label.k, source.num_classes)
    workdir = claim_workdir(workdir, base, source.fingerprint)

    run_jobs(plan_jobs(base, workdir, arms), after=lambda: write_ablation(workdir, config))
    if jax.process_index() == 0:
        write_ablation(workdir, config)
        print(f"\n{(workdir / 'results/ablation.md').read_text()}\nreport: {workdir / 'results/ablation.md'}")
    return collect(workdir, config)


def run_name(arm: str, seed: int) -> str:
    """The folder of a run in the workdir."""
    return f"{arm.replace(':', '-')}-{seed}"


def plan_jobs(base, workdir: Path, arms: dict[str, Arm]) -> list[Job]:
    """Teachers first, then seed by seed: an unfinished ablation has all arms of the seeds that are done."""
    teachers = {
        arm[1:]: with_teacher(base, Arm("hard", *arm[1:])) for arm in arms.values() if arm.kind in DISTILLED_ARMS
    }
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
            stored = [a for a, arm in arms.items() if arm[1:] == t and arm.kind in DISTILLED_ARMS]
            if not (base.ablate.store_labels and stored):
                continue
            soft_ones = [a for a in stored if arms[a].kind.startswith("soft")]
            c = arm_config(base, (soft_ones or stored)[0], seed)
            c.label.kind = "topk" if soft_ones else "hard"  # the likeliest of the stored classes is the hard label
            store = workdir / "labels" / f"{names[t]}-{seed}-{c.label.kind}"
            work = lambda c=c, s=store, f=folder: label(c, s, teacher_init=str(f or ""))
            planned.append(Job(store, (folder,) if folder else (), work))
            stores |= dict.fromkeys(stored, store)
        for name, arm in arms.items():
            c, run = arm_config(base, name, seed), workdir / run_name(name, seed)
            folder = folders.get(arm[1:]) if arm.kind in DISTILLED_ARMS else None
            needs = (folder,) if folder else ()
            if name in stores:
                c.distill.labels, needs = str(stores[name]), (stores[name],)
            planned.append(Job(run, needs, lambda c=c, r=run, f=folder: train_one(c, r, f)))
    return planned


def train_one(config, folder: Path, teacher: Path | None) -> dict[str, Any]:
    """Train one run; returns the result of `record`."""
    data = open_data(config)
    train_run(config, folder, data, title=folder.name, teacher_init=str(teacher or ""))
    return record(config, data, folder) if jax.process_index() == 0 else {}


def train_the_teacher(config, folder: Path) -> dict[str, Any]:
    """Train a teacher, evaluated on `ablate.teacher_split` (default: the students' split) during training.

    Returns the result of `record` on the students' evaluation images; "teaches_with": the top-1 of the checkpoint that
    teaches, the best on its own split; "evaluation": that of its last weights on the students' images.
    """
    c = adopt_normalization(teacher_config(config))
    students = c.data.eval_split
    c.data.eval_split = config.ablate.teacher_split or students
    train_run(c, folder, open_data(c), title=folder.name)
    best = best_checkpoint(folder)
    assert best, "a finished run has a checkpoint"
    found = {"teaches_with": read_meta(best)["metrics"]["top1"]}
    c.data.eval_split = students
    data = open_data(c)  # on every process: they compare what they have opened
    if jax.process_index() == 0:
        found |= record(c, data, folder)
        found["evaluation"] = found["heads"]["cls"]
    return found


def record(config, data: Data, folder: Path) -> dict[str, Any]:
    """Evaluate the last weights of a finished run, which no evaluation has chosen, and their EMA.

    Writes FOLDER/predictions.npz. Returns {"heads": {head: top-1}, "ema": the same of the EMA, where there is one} and,
    with two tokens, "cosine": `token_cosine` of the last weights, a value per layer.
    """
    step = max(integrity.steps_in(folder / "checkpoints"), key=lambda path: int(path.name))
    student, mesh = model_spec(config, data.train.num_classes), sharding.make_mesh(jax.local_devices())
    view: PixelStatistics = {"mean": tuple(config.augment.mean), "std": tuple(config.augment.std)}
    predictions, found = {}, {}
    for name, key in (("params", "heads"), ("ema", "ema")):
        if not (step / name).is_dir():
            continue
        weights = jax.device_put(read_weights(step, name)[1], sharding.replicated(mesh))
        batches = loader.eval_batches(config, data.evaluation, size=student.img_size)
        heads, labels = predict_classes(student.graphdef, weights, batches, mesh=mesh, **view)
        predictions |= {f"{name}/{head}": x.astype(np.uint16) for head, x in heads.items()}
        found[key] = {head: 100 * float((x == labels).mean()) for head, x in heads.items()}
        if name == "ema" or "dist" not in heads:
            continue
        model = nnx.merge(student.graphdef, weights["params"], weights["batch_stats"])
        if isinstance(model, models.vit.ViT) and model.distilled:
            some = loader.eval_batches(config, limit_images(data.evaluation, COSINE_IMAGES), size=student.img_size)
            images = np.concatenate([batch["image"][(batch["mask"] > 0) & (batch["label"] >= 0)] for batch in some])
            found["cosine"] = token_cosine(model.inspect(normalize(jnp.asarray(images), **view)))
    np.savez_compressed(folder / "predictions.npz", **predictions)
    return found


def job_result(folder: Path) -> dict[str, Any] | None:
    """The result of a job, with its `seconds` and `where` it ran; None where it is not done."""
    try:
        return json.loads((folder / "done.json").read_text())
    except FileNotFoundError:
        return None


def run_jobs(jobs: list[Job], after: Callable[[], None]) -> None:
    """Do what is not done, in order where needs and other starts of the command allow; returns when all is done.

    after: called on process 0 after each job of this start.
    """
    is_done = lambda folder: job_result(folder) is not None
    while todo := [job for job in jobs if not from_process_0(lambda job=job: is_done(job.folder))]:
        for job in todo:
            with contextlib.ExitStack() as held:

                def claim(job: Job = job, held: contextlib.ExitStack = held) -> bool:
                    ready = all(map(is_done, job.needs))
                    return ready and held.enter_context(try_hold(job.folder)) and not is_done(job.folder)

                if not from_process_0(claim):
                    continue
                begun = time.perf_counter()
                found = job.work()
                if jax.process_index() == 0:
                    spent = {"seconds": round(time.perf_counter() - begun, 1), "where": where()}
                    atomic.write_json(job.folder / "done.json", found | spent)
                    after()
                wait_for_process_0("job")  # which records and reports alone
            break  # look again from the first: the jobs that needed this one come next
        else:
            time.sleep(POLL)


def where() -> str:
    """Day, machine and versions of this process."""
    device = jax.devices()[0]
    machine = f"{jax.device_count()} x {device.device_kind}"
    if device.platform == "cpu":
        machine = f"{hardware.cores()} CPU core{'s' * (hardware.cores() > 1)}"
    return f"{datetime.date.today()}, {machine}, jax {jax.__version__}, deit_jax {__version__}"


def collect(workdir: Path, config, weights: str = "heads") -> Scores:
    """The scores of the runs that are done; weights: "heads", the last ones, or "ema"."""
    scores: Scores = {}
    for arm, seed in itertools.product(config.ablate.arms, config.ablate.seeds):
        found = job_result(workdir / run_name(arm, seed))
        if found and weights in found:
            scores.setdefault(arm, {})[seed] = found[weights]
    return scores


def by_head(runs: dict[int, dict[str, float]], head: str, fusion: str) -> dict[int, float]:
    """{seed: top-1} of a head; the fused prediction of a model with one head is that head's. {} without such a head."""
    key = f"fused_{fusion}" if head == "fused" else head
    return {
        seed: heads[key] if key in heads else heads["cls"]
        for seed, heads in runs.items()
        if key in heads or head == "fused"
    }


def paired_difference(a: dict[int, float], b: dict[int, float]) -> dict[str, Any]:
    """The difference a - b over the seeds of both: {"mean", "low", "high", "p", "values": {seed: difference}}.

    low, high: its 95 % confidence interval, by Student's t. p: of the two-sided paired t-test. These are None for one
    seed, and for differences without variance.
    """
    seeds = sorted(a.keys() & b.keys())
    values = np.round([a[seed] - b[seed] for seed in seeds], 6)  # equal differences are equal to their last bits
    found: dict[str, Any] = {"mean": float(values.mean()) if seeds else None, "low": None, "high": None, "p": None}
    if len(seeds) > 1 and np.ptp(values):
        test: Any = stats.ttest_1samp(values, 0.0)
        low, high = test.confidence_interval()
        found |= {"low": float(low), "high": float(high), "p": float(test.pvalue)}
    return found | {"values": dict(zip(seeds, values.tolist(), strict=True))}


def write_ablation(workdir: Path, config) -> None:
    """ablation.md and ablation.json in WORKDIR/results, of the runs that are done; nothing where there is none."""
    scores, ema, fusion = collect(workdir, config), collect(workdir, config, "ema"), config.evaluate.fusion
    if not scores:
        return
    first, rows = next(iter(scores)), []
    joint = {arm: by_head(runs, "fused", fusion) for arm, runs in scores.items()}
    differences = {f"{a} - {b}": paired_difference(joint[a], joint[b]) for b, a in itertools.combinations(scores, 2)}
    for arm, runs in scores.items():
        cells = [spread(list(by_head(runs, head, fusion).values())) for head in HEADS]
        cells[-1] = cells[-1] if by_head(runs, "dist", fusion) else ""
        cells.append(spread(list(by_head(ema.get(arm, {}), "fused", fusion).values())))
        cells.append(interval(differences[f"{arm} - {first}"]) if arm != first else "")
        rows.append([arm, *cells, str(len(runs))])
    header = ["arm", *HEADS.values(), "EMA", f"difference to {first} (95 %)", "seeds"]
    text = [
        f"# {config.model.name}: ablation",
        f"`{shlex.join(['python', *sys.argv])}`",
        "Top-1 in percent of the last weights, mean ± standard deviation over the seeds; EMA and differences are of the"
        " joint prediction. Differences are paired by seed, with 95 % confidence intervals by Student's t, not"
        " corrected for their number; those between all arms are in ablation.json.",
        table(header, rows),
    ]
    (workdir / "results").mkdir(exist_ok=True)
    atomic.write_text(workdir / "results/ablation.md", "\n\n".join(text) + "\n")
    results = {"scores": scores, "scores_ema": ema, "differences": differences, "config": config.to_dict()}
    atomic.write_json(workdir / "results/ablation.json", results)


def spread(values: list[float]) -> str:
    """Mean ± sample standard deviation, "" without values."""
    if not values:
        return ""
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def interval(difference: dict[str, Any]) -> str:
    """+1.23 (+0.98 .. +1.48), of `paired_difference`; "" without a seed."""
    mean, low, high = (difference[key] for key in ("mean", "low", "high"))
    if mean is None:
        return ""
    return f"{mean:+.2f}" + ("" if low is None else f" ({low:+.2f} .. {high:+.2f})")

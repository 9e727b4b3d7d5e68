"""How many stored views are enough? A live teacher against K stored epochs of views, at equal student steps.

    python examples/cifar10_folders.py CIFAR10 DATA
    python benchmarks/views.py DATA WORK [--seeds=0,1,2,3,4] [--report]

Each job is short and its line in WORK/results.jsonl ends it: the same command goes on with those that are missing.
`--report` only writes the table and the curve of the lines that are there, WORK/views.md and WORK/views.png.

The plan, written before the first run:

Data: CIFAR-10 at 12 px, of DATA/train 512 images per seed for the students (`data.limit`). Judged once, on the last
weights, on 5,000 of DATA/test, which chooses nothing.
Teacher: `deit_digits_patch4_16` (at 12 px), trained once for 28 epochs on all 4,000 of DATA/train, with the settings of
`configs/cifar10.py:scale=cpu`; a transformer, because a RegNet takes minutes to compile on the busy machine.
Student: `deit_pico_patch4_12`, from the KL divergence to the teacher alone (`distill.kind=soft`, `distill.alpha=1`,
temperature 1), batches of 64 in mixing groups of 16, mixup with a uniform share on every group, crops from half of the
image on, flips, no EMA; labels of all ten classes, float32.
Arms: live (a fresh view of each image in each epoch, the teacher in the step), and K = 1, 4, 16, 64 stored epochs of
views (`label.views=K`), 100 epochs (800 steps) each, seeds 0 to 4. Then, if time is left, 400 epochs of live and of
K = 16, seeds 0 and 1.
Measures: top-1 in percent (first), and the divergence KL(teacher || student) on the same images (second). Differences
to live are paired by seed, with 95 % intervals by Student's t, not corrected for their number.
"""

import argparse
import json
import runpy
import time
from pathlib import Path

import jax
import numpy as np
from common import ROOT, table
from matplotlib.figure import Figure

from deit_jax import plots
from deit_jax.ablate import interval, paired_difference, spread
from deit_jax.augment import normalize
from deit_jax.config import Config, resolve
from deit_jax.data import loader
from deit_jax.distill.teacher import load_teacher
from deit_jax.evaluate.inference import infer
from deit_jax.label import label
from deit_jax.runtime import sharding
from deit_jax.runtime.compile_cache import use_compile_cache
from deit_jax.train.loop import train_run, train_teacher
from deit_jax.train.run import Data, open_data
from deit_jax.train.step import model_spec
from deit_jax.weights.orbax import read_weights

cifar10 = runpy.run_path(str(ROOT / "configs/cifar10.py"))["get_config"]
STORED, EPOCHS, TEACHER = (1, 4, 16, 64), 100, "deit_digits_patch4_16"
LONG_SEEDS, LONGER, LONG_VIEWS = (0, 1), 4, 16


def settings(data: Path, seed: int, teacher: str, **changes) -> Config:
    """The config of a student of the plan; changes: of its `label` and its `epochs`."""
    c = cifar10("scale=cpu")
    c.data.root, c.seed, c.data.limit, c.evaluate.limit = str(data), seed, 512, 5000
    c.teacher.name, c.teacher.init, c.teacher.epochs = TEACHER, teacher, 0
    c.model.name, c.batch_size, c.epochs = "deit_pico_patch4_12", 64, EPOCHS
    c.distill.kind, c.distill.alpha, c.distill.tau, c.distill.normalization = "soft", 1.0, 1.0, "paper"
    c.label.k, c.label.dtype = 10, "float32"
    c.augment.mixup, c.augment.cutmix, c.augment.mix_prob, c.augment.mix_group = 1.0, 0.0, 1.0, 16
    c.optimizer.ema_decay, c.checkpoint.keep = 0.0, 1
    c.update_from_flattened_dict(changes)
    return resolve(c)


def make_teacher(data: Path, work: Path) -> str:
    """The folder of the teacher's weights, trained once."""
    c = cifar10("scale=cpu")
    c.data.root, c.teacher.name, c.teacher.epochs = str(data), TEACHER, 28
    return train_teacher(resolve(c), work)[0]


def judge(config: Config, data: Data, folder: Path) -> dict[str, float]:
    """{"top1", "kl", "agreement"} of a student's last weights on the evaluation images."""
    student, mesh = model_spec(config, data.train.num_classes), sharding.make_mesh(jax.local_devices()[:1])
    live = load_teacher(config, data.train.class_names, student.img_size)
    mean, std = tuple(config.augment.mean), tuple(config.augment.std)
    answers = jax.jit(lambda images: live.predict(live.arrays, {"image": normalize(images, mean, std)}))
    sums, weights = np.zeros(4), read_weights(folder)[1]
    batches = loader.eval_batches(config, data.evaluation, size=student.img_size)
    for batch, found in infer(student.graphdef, {"": weights}, batches, mesh=mesh, mean=mean, std=std):
        ours, theirs, real = found[""]["cls"], jax.device_get(answers(batch["image"])), batch["mask"] > 0
        p, q = (np.asarray(jax.nn.log_softmax(x.astype(np.float32))) for x in (theirs, ours))
        right, same = ours.argmax(-1) == batch["label"], ours.argmax(-1) == theirs.argmax(-1)
        sums += [x[real].sum() for x in (np.ones(len(real)), right, (np.exp(p) * (p - q)).sum(-1), same)]
    return {"top1": 100 * sums[1] / sums[0], "kl": sums[2] / sums[0], "agreement": 100 * sums[3] / sums[0]}


def run_job(data: Path, work: Path, teacher: str, arm: str, seed: int) -> dict:
    """Train and judge the student of one arm: "live", "views=16", and "… x4" for the longer schedule."""
    begun, name = time.perf_counter(), arm.replace(" ", "_")
    views, longer = int(arm.split()[0].partition("=")[2] or 0), LONGER if " x" in arm else 1
    config = settings(data, seed, teacher, **{"epochs": EPOCHS * longer, "label.views": views})
    opened = open_data(config)
    if views:
        config.distill.labels = str(work / f"labels-{seed}")
        label(settings(data, seed, teacher, **{"label.views": max(STORED)}), config.distill.labels)  # what is missing
    train_run(config, work / f"{name}-{seed}", opened)
    found = judge(config, opened, work / f"{name}-{seed}")
    return {"arm": arm, "seed": seed, **found, "seconds": round(time.perf_counter() - begun, 1)}


def report(work: Path, lines: list[dict]) -> str:
    """Write views.md and views.png of the jobs that are done; returns the table."""
    arms, rows = list(dict.fromkeys(line["arm"] for line in lines)), []
    of = lambda arm, key: {line["seed"]: line[key] for line in lines if line["arm"] == arm}
    for arm in arms:
        against = "live" + arm.removeprefix(arm.split()[0])
        cells = []
        for key in ("top1", "kl"):
            differs = paired_difference(of(arm, key), of(against, key)) if arm != against else None
            cells += [spread(list(of(arm, key).values())), interval(differs) if differs else ""]
        rows.append([arm, *cells, spread(list(of(arm, "agreement").values())), str(len(of(arm, "top1")))])
    text = table(["arm", "top-1", "minus live (95 %)", "KL", "minus live (95 %)", "agreement", "seeds"], rows)
    (work / "views.md").write_text(text + "\n")
    figure = Figure((6, 3.6), layout="constrained")
    axis = figure.subplots()
    found = [(k, paired_difference(of(f"views={k}", "top1"), of("live", "top1"))) for k in STORED]
    found = [(k, difference) for k, difference in found if difference["low"] is not None]
    means = np.array([[d[key] for key in ("mean", "low", "high")] for _, d in found]).reshape(-1, 3)
    bars = [means[:, 0] - means[:, 1], means[:, 2] - means[:, 0]]
    axis.errorbar([k for k, _ in found], means[:, 0], yerr=bars, marker="o", capsize=3)
    axis.set_xscale("log", base=2)
    axis.set_xticks(STORED, [str(k) for k in STORED])
    axis.axhline(0, color="gray", linewidth=1)
    plots.tidy(axis, f"stored epochs of views, of {EPOCHS} epochs", "top-1 minus live (points)")
    plots.save(figure, work / "views.png")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--report", action="store_true")
    given, arms = parser.parse_args(), ["live", *(f"views={k}" for k in STORED)]
    path = given.work / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    jobs = [(arm, int(seed)) for seed in given.seeds.split(",") for arm in arms]
    jobs += [(f"{arm} x{LONGER}", seed) for seed in LONG_SEEDS for arm in ("live", f"views={LONG_VIEWS}")]
    if not given.report:
        use_compile_cache()
        teacher = make_teacher(given.data, given.work)
    for arm, seed in jobs if not given.report else ():
        if (arm, seed) not in {(line["arm"], line["seed"]) for line in lines}:
            lines.append(run_job(given.data, given.work, teacher, arm, seed))
            with path.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    print(report(given.work, lines))


if __name__ == "__main__":
    main()

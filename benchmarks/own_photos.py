"""How good the defaults of `configs/folder.py` are for 50, 200 and 2,000 photos: a plain grid search beside them.

    python benchmarks/own_photos.py CIFAR10 [--sizes=50,200,2000] [--rates=…] [--heads=…] [--steps=0] [--output=FILE]

CIFAR10 holds train/CLASS/* and test/CLASS/*. A small ViT (0.15 M parameters, 12 x 12 pixels) is trained on the last
five classes; its weights are what a published model is to other people's photos: they know such images, not these
classes. It is then fine-tuned on some photos of the first five classes, as `configs/folder.py` says, with each learning
rate (per 512 images), each factor of the heads' rate and each number of steps (0: the config's), and evaluated on all
test images of these classes.

The runs of a seed differ in nothing but their updates, so their augmented batches are made once. A last line per size
trains the config as it stands, by the command line's own code, and must find what the grid finds for these values.
"""

import argparse
import contextlib
import importlib.util
import io
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import ROOT

from deit_jax.augment import augment_train
from deit_jax.config import Config, default_config, resolve
from deit_jax.data import loader
from deit_jax.evaluate.inference import evaluate_sets
from deit_jax.randomness import purpose_key
from deit_jax.runtime import sharding
from deit_jax.train.loop import train_run
from deit_jax.train.optimizer import num_steps
from deit_jax.train.run import Data, load_init, open_data
from deit_jax.train.step import create_state, make_student, make_train_step
from deit_jax.weights.load import adopt_normalization

MODEL = "deit_pico_patch4_12"
KEYS = ("size", "steps", "lr", "head_lr_scale", "seed")


def link_images(source: Path, target: Path, classes: list[str], count: int | None = None) -> None:
    """TARGET/CLASS/*: links to the first `count` images of each class (None: all)."""
    for name in classes:
        (target / name).mkdir(parents=True)
        for image in sorted((source / name).iterdir())[:count]:
            (target / name / image.name).symlink_to(image.resolve())


def quiet_run(config: Config, workdir: Path, data: Data) -> dict[str, dict]:
    """`train_run`, without what it prints, evaluated and saved at the end alone."""
    config.checkpoint.every = config.evaluate.every = 1_000_000
    config.log.tensorboard = False
    config.data.eval_batch_size = 500
    with contextlib.redirect_stdout(io.StringIO()):
        return train_run(config, workdir, data)


def make_start(photos: Path, work: Path, classes: list[str]) -> Path:
    """The weights that all runs start from, trained on `classes`; made once."""
    folder = work / "start"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        for split in ("train", "test"):
            link_images(photos / split, folder / "photos" / split, classes)
        c = default_config()
        c.data.root, c.model.name = str(folder / "photos"), MODEL
        c.batch_size, c.epochs = 128, 8
        c.optimizer.lr, c.optimizer.lr_update, c.optimizer.warmup_epochs = 8e-3, "step", 1.0
        c.augment.policy, c.augment.erasing, c.augment.mix_prob, c.augment.repeats = "none", 0.0, 0.3, 1
        c.augment.crop_scale, c.model.drop_path_rate, c.optimizer.ema_decay = (0.4, 1.0), 0.0, 0.0
        config = resolve(c)
        top1 = quiet_run(config, folder / "run", open_data(config))["params"]["top1"]
        (folder / "done").write_text(f"{top1}\n")
    print(f"start: {float((folder / 'done').read_text()):.1f} % on its own five classes", flush=True)
    return folder / "run"


def folder_config(argument: str) -> Config:
    """What `configs/folder.py` makes of its argument, resolved."""
    spec = importlib.util.spec_from_file_location("folder", ROOT / "configs/folder.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return adopt_normalization(resolve(module.get_config(argument)))


class Photos:
    """The photos of one size: what all its runs share."""

    def __init__(self, argument: str):
        self.config = folder_config(argument)
        with contextlib.redirect_stdout(io.StringIO()):
            self.data = open_data(self.config)
        self.per_epoch = loader.steps_per_epoch(self.config, self.data.train)
        self.student = make_student(self.config, self.data.train.num_classes)
        self.weights = load_init(self.config, self.student, self.data.train.class_names)[0]
        self.mesh = sharding.make_mesh(jax.local_devices()[:1])
        self.config.data.eval_batch_size = 500
        batches = loader.eval_batches(self.config, self.data.evaluation, size=self.student.img_size)
        self.evaluation = list(batches)

        def augment(batch, key, step):
            return augment_train(batch, key, step, self.config.augment, self.student.num_classes, 1)

        self.augment = jax.jit(augment)

    def total(self, steps: int) -> int:
        """Steps of a run; 0: the config's."""
        return steps or num_steps(self.config, self.per_epoch)

    def augmented(self, seed: int, steps: int) -> list[dict[str, np.ndarray]]:
        """The augmented batches of a run's first steps."""
        config = self.config.copy_and_resolve_references()
        config.seed = seed
        stream = loader.train_batches(config, self.data.train, size=self.student.img_size)
        key, made = purpose_key(seed, "augment"), []
        for step in range(steps):
            images, targets = self.augment(next(stream), key, step)
            made.append({"image": np.asarray(images), "target": np.asarray(targets)})
        stream.close()
        return made

    def trainer(self, lr: float, head_lr_scale: float, steps: int) -> Callable:
        """(seed, augmented batches) → top-1 of the trained weights and of the EMA in percent."""
        config = self.config.copy_and_resolve_references()
        config.optimizer.lr, config.optimizer.head_lr_scale, config.steps = lr, head_lr_scale, steps
        given = lambda batch, *_: (batch["image"], batch["target"])  # augmented once for all learning rates
        step = make_train_step(self.student, None, config, self.per_epoch, augment=given)
        update = jax.jit(step, donate_argnums=0)
        initialize = jax.jit(lambda weights, seed: create_state(self.student, config, weights, seed=seed))
        total = self.total(steps)

        def train(seed: int, batches: list[dict[str, np.ndarray]]) -> dict[str, float]:
            state = initialize(self.weights, seed)
            for batch in batches[:total]:
                state, _ = update(state, batch, ())
            sets = {"params": {"params": state.params, "batch_stats": state.batch_stats}, "ema": state.ema}
            mean, std = config.augment.mean, config.augment.std
            found = evaluate_sets(self.student.graphdef, sets, self.evaluation, mesh=self.mesh, mean=mean, std=std)
            return {name: result["top1"] for name, result in found.items()}

        return train


def grid(size: int, photos: Photos, options: argparse.Namespace, known: set) -> list[dict[str, Any]]:
    """A row per run of one size that is not known yet."""
    rows = []
    cells = list(itertools.product(options.steps, options.rates, options.heads))
    todo = [cell for cell in cells if any((size, *cell, seed) not in known for seed in options.seeds)]
    longest = max((photos.total(steps) for steps, _, _ in todo), default=0)
    batches = {seed: photos.augmented(seed, longest) for seed in options.seeds}
    for steps, lr, head in todo:
        begun, train = time.perf_counter(), photos.trainer(lr, head, steps)
        for seed in options.seeds:
            row = dict(zip(KEYS, (size, steps, lr, head, seed), strict=True))
            rows.append(row | train(seed, batches[seed]))
        print(json.dumps(rows[-1]), f"{time.perf_counter() - begun:.1f} s for all seeds", flush=True)
    return rows


def default_run(size: int, photos: Photos, argument: str) -> dict[str, Any]:
    """The row of the config as it stands, seed 0, trained by the command line's own code."""
    config = folder_config(argument)
    with tempfile.TemporaryDirectory() as workdir:
        results = quiet_run(config, Path(workdir), photos.data)
    o = config.optimizer
    return {"size": size, "default": True, "lr": o.lr, "head_lr_scale": o.head_lr_scale, "seed": 0} | {
        name: results[name]["top1"] for name in ("params", "ema")
    }


def report(rows: list[dict[str, Any]]) -> list[str]:
    """A table per size and length: rates down, factors across; the EMA, mean over the seeds (lowest ..
    highest)."""
    lines = []
    runs = [row for row in rows if "default" not in row]
    for size, steps in sorted({(row["size"], row["steps"]) for row in runs}):
        here = [row for row in runs if (row["size"], row["steps"]) == (size, steps)]
        heads = sorted({row["head_lr_scale"] for row in here})
        lines += ["", f"{size} photos" + (f", {steps} steps" if steps else ""), ""]
        lines += ["| learning rate | " + " | ".join(f"heads x {head:g}" for head in heads) + " |"]
        lines += ["| --- |" + " --- |" * len(heads)]
        for rate in sorted({row["lr"] for row in here}):
            cells = []
            for head in heads:
                tops = [row["ema"] for row in here if (row["lr"], row["head_lr_scale"]) == (rate, head)]
                cells.append(f"{statistics.mean(tops):.1f} ({min(tops):.1f} .. {max(tops):.1f})" if tops else "")
            lines.append(f"| {rate:g} | " + " | ".join(cells) + " |")
    for row in (row for row in rows if "default" in row):
        at = f"rate {row['lr']:g}, heads x {row['head_lr_scale']:g}, seed 0"
        lines.append(f"{row['size']} photos, the config as it stands ({at}): {row['ema']:.1f}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda kind: lambda text: [kind(x) for x in text.split(",") if x]
    parser.add_argument("photos", type=Path)
    parser.add_argument("--sizes", type=numbers(int), default=[50, 200, 2000])
    parser.add_argument("--rates", type=numbers(float), default=[1e-3, 4e-3, 1.6e-2, 6.4e-2])
    parser.add_argument("--heads", type=numbers(float), default=[1.0, 10.0])
    parser.add_argument("--steps", type=numbers(int), default=[0])
    parser.add_argument("--seeds", type=numbers(int), default=[0, 1, 2])
    parser.add_argument("--no-defaults", action="store_true", help="leave out the config as it stands")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "own_photos")
    parser.add_argument("--output", type=Path, default=None, help="JSON; runs that it holds are not made again")
    options = parser.parse_args()

    classes = sorted(os.listdir(options.photos / "train"))
    start = make_start(options.photos, options.work, classes[5:10])
    rows = json.loads(options.output.read_text()) if options.output and options.output.exists() else []
    known = {tuple(row[key] for key in KEYS) for row in rows if "default" not in row}
    for size in options.sizes:
        folder = options.work / f"{size}-photos"
        shutil.rmtree(folder, ignore_errors=True)
        link_images(options.photos / "train", folder / "train", classes[:5], size // 5)
        link_images(options.photos / "test", folder / "val", classes[:5])
        argument = f"data={folder},model={MODEL},init={start}"
        photos = Photos(argument)
        rows += grid(size, photos, options, known)
        if not options.no_defaults:
            rows = [row for row in rows if not (row.get("default") and row["size"] == size)]
            rows.append(default_run(size, photos, argument))
        if options.output:
            options.output.write_text(json.dumps(rows, indent=1) + "\n")
    print("\n".join(report(rows)))


if __name__ == "__main__":
    main()

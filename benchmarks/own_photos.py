"""How good the defaults of `configs/folder.py` are for 50, 200 and 2,000 photos: a plain grid search beside them.

    python benchmarks/own_photos.py CIFAR10 [--sizes=50,200,2000] [--rates=…] [--heads=…] [--seeds=…] [--output=FILE]

CIFAR10 holds train/CLASS/* and test/CLASS/*. A small ViT (0.15 M parameters, 12 x 12 pixels) is trained on the last
five classes; its weights are what a published model is to other people's photos: they know such images, not these
classes. It is then fine-tuned on some photos of the first five classes by `configs/folder.py`, with each learning
rate (per 512 images), each factor of the heads' rate and each seed, and its EMA evaluated on all test images of these
classes. FILE (JSON) holds the runs that are done: the same command makes those that are missing.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import runpy
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, table

from deit_jax.config import Config, default_config, resolve
from deit_jax.runtime.compile_cache import use_compile_cache
from deit_jax.train.loop import train_run
from deit_jax.weights.load import adopt_normalization

MODEL = "deit_pico_patch4_12"
KEYS = ("size", "lr", "head_lr_scale", "seed")
folder_config = runpy.run_path(str(ROOT / "configs/folder.py"))["get_config"]


def link_images(source: Path, target: Path, classes: list[str], count: int | None = None) -> None:
    """TARGET/CLASS/*: links to the first `count` images of each class (None: all)."""
    for name in classes:
        (target / name).mkdir(parents=True)
        for image in sorted((source / name).iterdir())[:count]:
            (target / name / image.name).symlink_to(image.resolve())


def quiet_run(config: Config, workdir: Path) -> dict[str, float]:
    """Top-1 in percent of the trained weights and of the EMA; evaluated and saved at the end alone, without a word."""
    config.checkpoint.every = config.evaluate.every = 1_000_000
    config.log.tensorboard, config.data.eval_batch_size = False, 500
    with contextlib.redirect_stdout(io.StringIO()):
        results = train_run(adopt_normalization(resolve(config)), workdir)
    return {name: result["top1"] for name, result in results.items()}


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
        (folder / "done").write_text(f"{quiet_run(c, folder / 'run')['params']}\n")
    print(f"start: {float((folder / 'done').read_text()):.1f} % on its own five classes", flush=True)
    return folder / "run"


def report(rows: list[dict[str, Any]]) -> str:
    """Rates and factors down, sizes across: the EMA's top-1, mean over the seeds (lowest .. highest)."""
    sizes = sorted({row["size"] for row in rows})
    lines = []
    for lr, head in sorted({(row["lr"], row["head_lr_scale"]) for row in rows}):
        cells = [f"{lr:g}, x {head:g}"]
        for size in sizes:
            tops = [row["ema"] for row in rows if (row["size"], row["lr"], row["head_lr_scale"]) == (size, lr, head)]
            cells.append(f"{statistics.mean(tops):.1f} ({min(tops):.1f} .. {max(tops):.1f})" if tops else "")
        lines.append(cells)
    return table(["learning rate, factor of the heads", *(f"{size} photos" for size in sizes)], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda kind: lambda text: [kind(x) for x in text.split(",")]
    parser.add_argument("photos", type=Path)
    parser.add_argument("--sizes", type=numbers(int), default=[50, 200, 2000])
    parser.add_argument("--rates", type=numbers(float), default=[1e-3, 2e-3, 4e-3, 1.6e-2, 6.4e-2])
    parser.add_argument("--heads", type=numbers(float), default=[1.0, 10.0])
    parser.add_argument("--seeds", type=numbers(int), default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "own_photos")
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()

    use_compile_cache()
    output = options.output or options.work / "own_photos.json"
    classes = sorted(os.listdir(options.photos / "train"))
    start = make_start(options.photos, options.work, classes[5:10])
    rows = json.loads(output.read_text()) if output.exists() else []
    for size in options.sizes:
        folder = options.work / f"{size}-photos"
        shutil.rmtree(folder, ignore_errors=True)
        link_images(options.photos / "train", folder / "train", classes[:5], size // 5)
        link_images(options.photos / "test", folder / "val", classes[:5])
        for cell in itertools.product([size], options.rates, options.heads, options.seeds):
            row = dict(zip(KEYS, cell, strict=True))
            if any(row.items() <= known.items() for known in rows):
                continue
            config = folder_config(f"data={folder},model={MODEL},init={start}")
            config.optimizer.lr, config.optimizer.head_lr_scale, config.seed = cell[1:]
            with tempfile.TemporaryDirectory() as workdir:
                rows.append(row | quiet_run(config, Path(workdir)))
            print(json.dumps(rows[-1]), flush=True)
            output.write_text(json.dumps(rows, indent=1) + "\n")
    print(report(rows))


if __name__ == "__main__":
    main()

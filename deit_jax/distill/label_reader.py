"""Reading a teacher's stored labels, and whether a run may read them: the identity of their images and their teacher.

A label belongs to a view, and a view is a pure function of its place in the run (`deit_jax/randomness.py`). So the
labels of step k are those the teacher would give in step k of any run with the same images; `open_labels` refuses a
store of others.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deit_jax.config import SETTINGS, Config
from deit_jax.data import loader
from deit_jax.data.base import Source
from deit_jax.distill.label_store import LabelStore
from deit_jax.distill.teacher import TeacherModel, is_local, load_teacher
from deit_jax.errors import UserError
from deit_jax.losses import OBJECTIVES
from deit_jax.runtime.hardware import compute_dtype

FORMAT = 2  # of the images: to be raised when augmentation or decoding makes other pixels from the same settings
PACKAGES = ("jax", "numpy", "pillow", "simplejpeg")  # whose next minor version may make other pixels


def image_identity(config: Config, source: Source, img_size: int) -> dict[str, Any]:
    """Everything that shapes the training images, by readable names; values as JSON has them."""
    shaping = [name for name in SETTINGS["augment"] if name != "label_smoothing"]  # smoothing shapes targets only
    identity = {
        "format": FORMAT,
        "data.fingerprint": source.fingerprint,
        "data.images": len(source),
        "data.classes": source.num_classes,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "model.img_size": img_size,
        "data.resize": config.data.resize,
        "data.exif": config.data.exif,
        "data.drop_last": config.data.drop_last,
        **{f"augment.{name}": config.augment[name] for name in shaping},
        **{f"version.{p}": ".".join(importlib.metadata.version(p).split(".")[:2]) for p in PACKAGES},
    }
    return json.loads(json.dumps(identity))


def teacher_identity(
    config: Config, img_size: int, members: list[TeacherModel], arrays: list, init: str
) -> dict[str, Any]:
    """Everything that shapes the teacher's predictions for given images, by readable names."""
    identity = {
        "teacher.name": config.teacher.name,
        "teacher.weights": weights_digest(arrays),
        "teacher.init": init,
        "teacher.img_size": config.teacher.img_size or img_size,
        "teacher.mean": [m.mean for m in members],
        "teacher.std": [m.std for m in members],
        "teacher.dtype": str(compute_dtype(config.teacher.dtype)),
    } | training_identity(config)
    return json.loads(json.dumps(identity))


def training_identity(config: Config) -> dict[str, Any]:
    """The settings of a teacher that is trained by the run itself; {} where it is not."""
    names = ("epochs", "lr", "drop_path_rate", "augment") if config.teacher.epochs else ()
    return {f"teacher.{name}": config.teacher[name] for name in names}


def weights_digest(arrays: list) -> str:
    """SHA-256 over names, shapes and values of a teacher's arrays."""
    found = hashlib.sha256()
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(arrays), key=lambda item: str(item[0])):
        leaf = np.ascontiguousarray(leaf, np.float32)
        found.update(f"{jax.tree_util.keystr(path)}{leaf.shape}".encode())
        found.update(leaf.data)
    return found.hexdigest()


def teacher_changes(
    config: Config, theirs: dict[str, Any], img_size: int, class_names: list[str]
) -> tuple[list[str], dict]:
    """(names that differ, our values): the teacher of `config` against a store's. What the config leaves open is not
    compared."""
    t = config.teacher
    ours: dict[str, Any] = {"teacher.img_size": t.img_size or img_size}
    if t.name and theirs["teacher.name"]:  # without a name it is what its weights are
        ours["teacher.name"] = t.name
    if t.dtype != "auto":
        ours["teacher.dtype"] = t.dtype
    for name in ("mean", "std"):
        if t[name]:
            ours[f"teacher.{name}"] = [list(t[name])] * len(theirs[f"teacher.{name}"])
    if is_local(t.init):  # the bytes count, wherever they lie
        classes = {"num_classes": len(class_names), "class_names": class_names}
        arrays = load_teacher(config, img_size=img_size, dtype=compute_dtype(t.dtype), **classes)[1]
        ours["teacher.weights"] = weights_digest(arrays)
    elif t.init:
        ours["teacher.init"] = t.init
    else:
        ours |= training_identity(config)
    return [name for name in ours if ours[name] != theirs.get(name)], ours


def check_identity(
    folder: str | Path, header: dict, config: Config, source: Source, img_size: int, teacher: dict | None = None
) -> None:
    """Raise UserError naming what differs between a store and `config`; teacher: its identity, where it is loaded."""
    images = image_identity(config, source, img_size)
    there = header["images"] | header["teacher"]
    changed = sorted(name for name in images.keys() | header["images"].keys() if images.get(name) != there.get(name))
    if teacher is None:
        names, teacher = teacher_changes(config, header["teacher"], img_size, source.class_names)
    else:
        names = sorted(n for n in teacher.keys() | header["teacher"].keys() if teacher.get(n) != there.get(n))
        if "teacher.weights" not in names:  # the same weights from elsewhere are the same teacher
            same = "init name epochs lr drop_path_rate augment".split()
            names = [n for n in names if n.removeprefix("teacher.") not in same]
    changed += names
    if changed:
        here = images | teacher
        short = lambda value: f"{value}"[:24]
        shown = "; ".join(f"{k}: {short(there.get(k))} there, {short(here.get(k))} here" for k in changed)
        raise UserError(
            f"the labels in {folder} were made for other settings ({shown}): take those, or make labels for these with"
            " --mode=label in another folder"
        )


@dataclasses.dataclass(frozen=True)
class StoredLabels:
    """(step, rows) → the entries that stored labels add to a batch.

    `teacher`: int32 (rows,) hard labels; where the objective needs logits, int32 (rows, k) classes, and
    `teacher_probability` float32 (rows, k).
    """

    store: LabelStore
    logits: bool

    def __call__(self, step: int, rows: slice) -> dict[str, np.ndarray]:
        labels = self.store.read(step, rows)
        if "label" in labels:
            return {"teacher": labels["label"].astype(np.int32)}
        index = labels["index"].astype(np.int32)
        if not self.logits:
            return {"teacher": index[:, 0]}
        return {"teacher": index, "teacher_probability": labels["probability"].astype(np.float32)}


def open_labels(config: Config, source: Source, img_size: int, total: int) -> StoredLabels | None:
    """The stored labels that a run of `total` steps with a teacher reads, or None where its teacher is live.

    Args:
        config: resolved, with an objective that has a teacher.
        source: the training images.
        img_size: the student's image size in pixels.
        total: number of steps of the run.

    Raises:
        UserError: a store of other images or another teacher, of another kind, or one that ends too early.
    """
    d = config.distill
    if not d.labels:
        return None
    store = LabelStore(d.labels)
    check_identity(d.labels, store.header, config, source, img_size)
    needed = OBJECTIVES[d.kind].labels
    if needed == "topk":
        if store.header["kind"] != needed:
            raise UserError(
                f"the labels in {d.labels} are hard labels, soft distillation needs probabilities: use --mode=label"
                " with --config.label.kind=topk, or --config.distill.kind=hard"
            )
        if store.header["tau"] != d.tau:
            raise UserError(
                f"the labels in {d.labels} were made at temperature {store.header['tau']}, distill.tau is {d.tau}:"
                f" use --config.distill.tau={store.header['tau']}, or make others"
            )
    done = store.steps_done()
    if done < total:
        per_epoch = loader.steps_per_epoch(config, source)
        raise UserError(
            f"the labels in {d.labels} end at step {done} (epoch {done / per_epoch:.1f}), the run has {total}: finish"
            f" them with --mode=label --workdir={d.labels}" + (f", or train --config.steps={done}" if done else "")
        )
    return StoredLabels(store, logits=needed == "topk")

"""Reading a teacher's stored labels, and whether a run may read them: the identity of their images and their teacher.

A label belongs to a view, and a view is a pure function of its place in the run (`deit_jax/randomness.py`). So the
labels of step k are those the teacher would give in step k of any run with the same images; `open_stored_labels`
refuses a store of others.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deit_jax.config import SETTINGS, Config
from deit_jax.data import loader
from deit_jax.data.base import Source
from deit_jax.distill.label_store import LabelStore
from deit_jax.distill.teacher import Teacher
from deit_jax.errors import UserError
from deit_jax.losses import OBJECTIVES
from deit_jax.runtime.hardware import compute_dtype

FORMAT = 2  # of the images: to be raised when augmentation or decoding makes other pixels from the same settings
PACKAGES = ("jax", "numpy", "pillow", "simplejpeg")  # whose next minor version may make other pixels
TRAINING_SETTINGS = ("epochs", "lr", "drop_path_rate", "augment")  # of a teacher that the run trains itself


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
        "data.device_size": config.data.device_size,
        "data.drop_last": config.data.drop_last,
        **{f"augment.{name}": config.augment[name] for name in shaping},
        **{f"version.{p}": ".".join(importlib.metadata.version(p).split(".")[:2]) for p in PACKAGES},
    }
    return json.loads(json.dumps(identity))


def teacher_identity(config: Config, img_size: int, teacher: Teacher, init: str) -> dict[str, Any]:
    """Everything that shapes a loaded teacher's predictions for given images, by readable names."""
    identity = {
        "teacher.name": config.teacher.name,
        "teacher.weights": weights_digest(teacher.arrays, [m.own for m in teacher.models]),
        "teacher.init": init,
        "teacher.img_size": config.teacher.img_size or img_size,
        "teacher.mean": [m.mean for m in teacher.models],
        "teacher.std": [m.std for m in teacher.models],
        "teacher.dtype": str(compute_dtype(config.teacher.dtype)),
    } | training_identity(config)
    return json.loads(json.dumps(identity))


def training_identity(config: Config) -> dict[str, Any]:
    """The settings of a teacher that is trained by the run itself; {} where it is not."""
    names = TRAINING_SETTINGS if config.teacher.epochs else ()
    return {f"teacher.{name}": config.teacher[name] for name in names}


def weights_digest(arrays: Sequence[Any], own: Sequence[str] = ()) -> str:
    """SHA-256 over names, shapes and values of a teacher's arrays.

    own: of models of the user's own, name and version, which the arrays do not tell.
    """
    found = hashlib.sha256("".join(own).encode())
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(arrays), key=lambda item: str(item[0])):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # as dropout's
            leaf = jax.random.key_data(leaf)
        leaf = np.ascontiguousarray(leaf, np.float32)
        found.update(f"{jax.tree_util.keystr(path)}{leaf.shape}".encode())
        found.update(leaf.data)
    return found.hexdigest()


def stated_teacher(config: Config, theirs: dict[str, Any], img_size: int) -> dict[str, Any]:
    """What `config` states of the teacher whose identity is `theirs`; what it leaves open is not compared."""
    t = config.teacher
    ours: dict[str, Any] = {"teacher.img_size": t.img_size or img_size}
    if t.name and theirs["teacher.name"]:  # without a name it is what its weights are
        ours["teacher.name"] = t.name
    if t.dtype != "auto":
        ours["teacher.dtype"] = t.dtype
    for name in ("mean", "std"):
        if t[name]:
            ours[f"teacher.{name}"] = [list(t[name])] * len(theirs[f"teacher.{name}"])
    if t.init:
        ours["teacher.init"] = t.init
    return ours | training_identity(config)


def check_identity(folder: str | Path, header: dict, images: dict[str, Any], teacher: dict[str, Any]) -> None:
    """Raise UserError naming what differs between the store in `folder`, whose labels.json is `header`, and a run.

    images: `image_identity` of the run; teacher: what is known of its teacher, {} where that is not compared.
    """
    theirs, ours = header["images"] | header["teacher"], images | teacher
    changed = {name for name in ours.keys() | header["images"].keys() if ours.get(name) != theirs.get(name)}
    if changed:
        short = lambda value: f"{value}"[:24]
        shown = "; ".join(f"{k}: {short(theirs.get(k))} there, {short(ours.get(k))} here" for k in sorted(changed))
        raise UserError(f"the labels in {folder} are of other settings ({shown}): use those, or make others elsewhere")


@dataclasses.dataclass(frozen=True)
class StoredLabels:
    """(step, rows) → the entries that stored labels add to a batch.

    `teacher`: int32 (rows,) hard labels; where the objective needs logits, int32 (rows, k) classes, and
    `teacher_logit` float32 (rows, k + 1).
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
        return {"teacher": index, "teacher_logit": labels["logit"].astype(np.float32)}


def open_stored_labels(config: Config, source: Source, img_size: int, total: int) -> StoredLabels:
    """The stored labels, of `distill.labels`, that a run of `total` steps reads.

    source: the training images; img_size: the student's, in pixels. Raises UserError for a store of other images or of
    another teacher, of another kind, or one that ends too early.
    """
    d = config.distill
    store = LabelStore(d.labels)
    teacher = stated_teacher(config, store.header["teacher"], img_size)
    check_identity(d.labels, store.header, image_identity(config, source, img_size), teacher)
    needed = OBJECTIVES[d.kind].store_kind
    if needed == "topk" and store.header["kind"] != needed:
        raise UserError(f"{d.labels} holds hard labels: make others with label.kind=topk, or use distill.kind=hard")
    done, per_epoch, views = store.steps_done(), loader.steps_per_epoch(config, source), config.label.views
    if done < min(total, views * per_epoch or total):
        asked = f"label.views is {views}" if views else f"the run has {total}"
        raise UserError(
            f"the labels in {d.labels} end at step {done} (epoch {done / per_epoch:.1f}), {asked}: finish them with"
            f" --mode=label --workdir={d.labels}, or where they are complete, make others elsewhere"
        )
    return StoredLabels(store, logits=needed == "topk")

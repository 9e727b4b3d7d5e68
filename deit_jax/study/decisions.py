"""What the last weights of a run decide per evaluation image, and how alike its two tokens are: kept beside the run, so
that a study can average over seeds."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deit_jax.augment import normalize
from deit_jax.data import loader
from deit_jax.data.images import eval_image
from deit_jax.evaluate.inference import predict_classes
from deit_jax.models.vit import ViT
from deit_jax.report.agreement import token_cosine
from deit_jax.runtime import sharding
from deit_jax.student import Student, make_student
from deit_jax.train.setup import Data
from deit_jax.weights import integrity
from deit_jax.weights.orbax import read_weights

FILE = "decisions.npz"
COSINE_IMAGES = 256


def last_step(folder: Path) -> Path:
    """The newest checkpoint of a finished run, which is not chosen by any evaluation."""
    return max(integrity.steps_in(folder / "checkpoints"), key=lambda p: int(p.name))


def record(config, data: Data, folder: Path) -> dict:
    """Write FOLDER/decisions.npz, "WEIGHTS/HEAD" → classes (images,) of the last and the averaged weights.

    Returns {"heads": {head: top-1}, "ema": the same of the averaged weights, where there are any} and, with two tokens,
    "cosine": as `token_cosine`, of the last weights, over images spread over the evaluation data.
    """
    step, student = last_step(folder), make_student(config, data.train.num_classes)
    mean, std = tuple(config.augment.mean), tuple(config.augment.std)
    mesh = sharding.make_mesh(jax.local_devices())
    decisions, found = {}, {}
    for name, top1 in (("params", "heads"), ("ema", "ema")):
        if not (step / name).is_dir():
            continue
        weights = jax.device_put(read_weights(step, name)[1], sharding.replicated(mesh))
        batches = loader.eval_batches(config, data.evaluation, size=student.img_size)
        heads, labels = predict_classes(student.graphdef, weights, batches, mesh=mesh, mean=mean, std=std)
        decisions |= {f"{name}/{head}": x.astype(np.uint16) for head, x in heads.items()}
        found[top1] = {head: 100 * float((x == labels).mean()) for head, x in heads.items()}
        if name == "params":
            found |= cosine(config, data, student, weights)
    np.savez_compressed(folder / FILE, **decisions)
    return found


def cosine(config, data: Data, student: Student, weights: dict) -> dict[str, list[float]]:
    """{"cosine": [a value per layer]}, {} without two tokens."""
    model = nnx.merge(student.graphdef, weights["params"], weights["batch_stats"])
    if not (isinstance(model, ViT) and model.distilled):
        return {}
    source = data.evaluation
    picked = np.linspace(0, len(source) - 1, min(COSINE_IMAGES, len(source))).astype(int)
    views = [eval_image(source[int(i)]["image"], student.img_size, config.data.crop) for i in picked]
    images = normalize(jnp.asarray(np.stack(views)), tuple(config.augment.mean), tuple(config.augment.std))
    return {"cosine": [round(float(x), 4) for x in token_cosine(model, images)]}


def read(folder: Path) -> dict[str, np.ndarray]:
    """{head: classes (images,)} of the last weights; {} for a run that kept none."""
    path = folder / FILE
    if not path.exists():
        return {}
    with np.load(path) as arrays:
        return {name.partition("/")[2]: arrays[name] for name in arrays.files if name.startswith("params/")}

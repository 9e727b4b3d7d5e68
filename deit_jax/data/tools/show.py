"""`--mode=show`: a contact sheet of training images as the model sees them.

    deit-jax show --config=NAME_OR_FILE [--config.a.b=value …] [--output=augmented.png] [--step=0]

The images of one step's batch, cropped, augmented and mixed, with the classes their targets are made of.
"""

import jax
import numpy as np

from deit_jax.augment import augment_train
from deit_jax.config import Config
from deit_jax.config.recipes import named_size
from deit_jax.data import loader, sources
from deit_jax.errors import printable
from deit_jax.plots import contact_sheet
from deit_jax.randomness import purpose_key

COUNT, COLUMNS = 32, 8


def augmented(config: Config, step: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """One batch of a resolved config as the train step sees it.

    Returns:
      (images uint8 (batch, size, size, 3), targets (batch, classes), class names).
    """
    source, _ = sources.open_sources(config)
    size = config.model.img_size or named_size(config.model.name)
    batches = loader.train_batches(config, source, size=size, start=step)
    batch = next(batches)
    batches.close()
    augment = jax.jit(lambda batch, key: augment_train(batch, key, step, config.augment, source.num_classes))
    images, targets = jax.device_get(augment(batch, purpose_key(config.seed, "augment")))
    pixels = images * np.asarray(config.augment.std) + np.asarray(config.augment.mean)
    return np.clip(np.round(pixels * 255), 0, 255).astype(np.uint8), targets, list(source.class_names)


def caption(target: np.ndarray, names: list[str]) -> str:
    """The classes of a target (classes,) that stand out of the smoothing, the larger fraction first."""
    floor = np.median(target) + 0.02
    chosen = [label for label in np.argsort(-target)[:2] if target[label] > floor]
    parts = [f"{printable(names[label])[:12]}: {target[label]:.2f}" for label in chosen]
    return " + ".join(parts) or "-"


def show(config: Config, output: str, step: int = 0) -> None:
    """`--mode=show`: draw one batch of a resolved config into the picture `output`."""
    images, targets, names = augmented(config, step)
    captions = [caption(target, names) for target in targets[:COUNT]]
    contact_sheet(output, list(images[:COUNT]), captions, columns=COLUMNS)
    print(f"{min(COUNT, len(images))} of {len(images)} images of step {step}: {output}")

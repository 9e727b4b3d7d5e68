"""Step → one batch: which views stand in its rows, a pure function of the step; their images read, cropped and resized
by threads as torchvision's RandomResizedCrop does, unreadable ones replaced or marked."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from deit_jax.augment.mix import num_groups
from deit_jax.config import Config
from deit_jax.data import images
from deit_jax.data.base import Source
from deit_jax.data.batch import MAX_LABELS, UNREADABLE, Batch, eval_entries, train_entries, zeros
from deit_jax.errors import UserError
from deit_jax.randomness import generator
from deit_jax.runtime import hardware
from deit_jax.runtime.progress import track

CHUNK = 8  # images per task of the decoding threads
GIVE_UP = 64  # unreadable images in a row that mean something else is wrong


def decoding_threads(config: Config) -> int:
    """How many threads of a process decode."""
    return config.data.threads or max(1, min(16, hardware.cores() // max(1, config.data.workers)))


@functools.cache
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="decode")


def run_in_threads(threads: int, count: int, load: Callable[[int], None], what: str = "") -> None:
    """Call load(0) … load(count - 1) in `threads` threads. The first exception is raised. what: they load, to show how
    far they are; "": that is not shown."""

    def chunk(first: int) -> None:
        for row in range(first, min(first + CHUNK, count)):
            load(row)

    spread = map if threads == 1 else _pool(threads).map
    chunks = range(0, count, CHUNK)
    for _ in track(spread(chunk, chunks), f"chunks of {CHUNK} {what}", len(chunks) if what else 0, after=10.0):
        pass


def read(source: Source, index: int, decode: Callable) -> tuple[Any, dict[str, Any]]:
    """What `decode` makes of one image, and the sample it is from. Raises OSError naming an unreadable image,
    UserError for a label outside the classes."""
    sample = source[index]
    name, label = sample["name"], sample["label"]
    try:
        decoded = decode(sample["image"])
    except OSError as error:
        raise OSError(f"{name} ({error})") from error
    if not 0 <= label < source.num_classes:
        raise UserError(f"{name} has label {label}: labels are 0 to {source.num_classes - 1}")
    return decoded, sample


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The images of one epoch in shuffled order, int64 (length,)."""
    return generator(seed, "order", epoch).permutation(length)


@functools.lru_cache(maxsize=8)
def row_order(batch: int, mix_group: int) -> np.ndarray:
    """The permutation that assigns consecutive views to the rows of a batch, int64 (batch,).

    View j goes to group j mod groups, as the release deals views to its GPUs, which sends copies of an image to
    different groups. Inside a group (G rows, row i is mixed with row G-1-i) the second half is reversed, so
    partners are views G/2 places apart in their group and copies do not meet even where there is a single group.
    """
    groups = num_groups(batch, mix_group)

    def rows(group: int) -> np.ndarray:
        dealt = np.arange(group, batch, groups)
        half = (len(dealt) + 1) // 2
        return np.concatenate([dealt[:half], dealt[half:][::-1]])

    return np.concatenate([rows(group) for group in range(groups)])


class Views(NamedTuple):
    """The views of one step: their epoch, and int64 arrays (batch,) of the image and the repeat of each row."""

    epoch: int
    image: np.ndarray
    repeat: np.ndarray


def batch_views(
    step: int, *, seed: int, length: int, batch: int, repeats: int, mix_group: int, drop_last: bool = True
) -> Views:
    """The views of one step.

    An epoch is `epoch_steps` steps. Under repeated augmentation (Hoffer et al. 2020; paper, section 6) each image
    stands `repeats` times in a row in the epoch's order, which is then cut to the same number of views. Where the last
    batch reaches past the end of the order, it wraps around; the wrapped views count as further repeats.
    """
    epoch, position = divmod(step, epoch_steps(length, batch, drop_last))
    places = position * batch + row_order(batch, mix_group)
    again, image = np.divmod(places // repeats, length)
    return Views(epoch, epoch_order(seed, epoch, length)[image], places % repeats + again * repeats)


def epoch_steps(length: int, batch: int, drop_last: bool = True) -> int:
    """Batches of one pass over `length` images: the whole ones, or with drop_last False as many as hold every image."""
    return length // batch if drop_last else -(-length // batch)


@dataclasses.dataclass(frozen=True)
class TrainBatchMaker:
    """Step → training batch, with "seen", its views, and under "broken" the names of unreadable images, once per view;
    or {"error": message}.

    Attributes:
      rows: of the global batch, those of this process.
      stored_labels: (step, rows) → a teacher's entries of the batch, or None.
      crops_on_host: whether images are cropped here, as on CPUs; else the batch has their "box" (rows, 4), and the same
        pixels are cut on the device, as small images in memory are on accelerators (`data.cache`).
    """

    source: Source
    config: Config
    size: int
    rows: slice
    threads: int
    stored_labels: Callable[[int, slice], Batch] | None = None
    crops_on_host: bool = True

    def __call__(self, step: int) -> dict[str, Any]:
        data, augment = self.config.data, self.config.augment
        epoch, index, repeat = self.views(int(step))
        index, repeat = index[self.rows], repeat[self.rows]
        out = zeros(train_entries(self.size, len(index)))
        out["index"][:], out["epoch"][:], out["repeat"][:] = index, epoch, repeat
        if not self.crops_on_host:
            out["box"] = np.zeros((len(index), 4), np.int32)
            del out["image"]
        # Repeated augmentation has several views of an image in a batch: it is read once for its rows, `rows_of[i]`.
        found, first, inverse = np.unique(index, return_index=True, return_inverse=True)
        rows_of = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
        broken: list[list[str]] = [[] for _ in found]
        crop = images.simple_crop if augment.crop == "simple" else images.random_resized_crop

        def load(distinct: int) -> None:
            repeats = repeat[rows_of[distinct]].tolist()
            position, pixels, boxes, label = self.first_readable(int(found[distinct]), epoch, repeats, broken[distinct])
            for row, box in zip(rows_of[distinct], boxes, strict=True):
                if self.crops_on_host:
                    out["image"][row] = crop(pixels, box, self.size, fast=data.resize == "fast")
                else:
                    out["box"][row] = box
                out["label"][row], out["index"][row] = label, position

        try:
            run_in_threads(self.threads, len(found), load)
            out |= self.teacher_labels(int(step))
        except UserError as error:
            return {"error": str(error)}
        unreadable = [image for distinct in np.argsort(first) for image in broken[distinct] * len(rows_of[distinct])]
        return {**out, "broken": unreadable, "seen": len(index)}

    def views(self, step: int) -> Views:
        """The views of the global batch of a step."""
        return batch_views(
            step,
            seed=self.config.seed,
            length=len(self.source),
            batch=self.config.batch_size,
            drop_last=self.config.data.drop_last,
            repeats=self.config.augment.repeats,
            mix_group=self.config.augment.mix_group,
        )

    def teacher_labels(self, step: int) -> Batch:
        """The stored labels of this process's rows; {} without any."""
        return self.stored_labels(step, self.rows) if self.stored_labels else {}

    def first_readable(
        self, index: int, epoch: int, repeats: list[int], broken: list[str]
    ) -> tuple[int, np.ndarray, list[images.Box], int]:
        """Position, pixels, one box per repeat, and label of the first readable image from `index` on; the others are
        added to `broken`. Raises UserError where too many in a row cannot be read."""
        exif, augment = self.config.data.exif, self.config.augment
        for position in ((index + k) % len(self.source) for k in range(min(GIVE_UP, len(self.source)))):
            try:
                pixels, sample = read(self.source, position, lambda image: images.decode(image, exif))
                height, width = pixels.shape[:2]
                rngs = [generator(self.config.seed, "crop", epoch, position, repeat) for repeat in repeats]
                if augment.crop == "simple":
                    boxes = [images.draw_simple_crop(rng, height, width, self.size) for rng in rngs]
                else:
                    limits = augment.crop_scale, augment.crop_ratio
                    boxes = [images.draw_crop(rng, height, width, *limits) for rng in rngs]
            except OSError as error:
                broken.append(str(error))
                continue
            return position, pixels, boxes, sample["label"]
        raise UserError(f"{len(broken)} images in a row cannot be read, the first: {broken[0]}")


@dataclasses.dataclass(frozen=True)
class EvalBatchMaker:
    """Batch number → evaluation batch, with "seen", its images, and the names of the unreadable ones under "broken"; or
    {"error": message}.

    Of images that may have several right labels (imagenet2012_real), those that have none are masked out, as Beyer et
    al. 2020 count.

    Attributes:
      rows: of the global batch, those of this process.
      batch: rows of the global batch.
      fit: as `eval_image`.
    """

    source: Source
    config: Config
    size: int
    rows: slice
    threads: int
    batch: int
    fit: str = "short"

    def __call__(self, number: int) -> dict[str, Any]:
        data = self.config.data
        indices = number * self.batch + np.arange(self.rows.start, self.rows.stop)
        real = np.flatnonzero(indices < len(self.source))
        several = getattr(self.source, "several_labels", False)
        out = zeros(eval_entries(self.size, len(indices), several))
        out["mask"][real] = 1
        if several:
            out["labels"][:] = -1
        broken = [""] * len(real)

        def load(row: int) -> None:
            try:
                pixels, sample = read(self.source, int(indices[row]), lambda image: images.decode(image, data.exif))
            except OSError as error:
                broken[row] = str(error)
                out["label"][row], out["mask"][row] = UNREADABLE, data.eval_broken != "skip"
                return
            out["label"][row] = sample["label"]
            if several:
                labels = sample["labels"][:MAX_LABELS]
                out["labels"][row, : len(labels)] = labels
                out["mask"][row] = len(labels) > 0
            out["image"][row] = images.eval_image(pixels, self.size, data.crop, data.interpolation, fit=self.fit)

        try:
            run_in_threads(self.threads, len(real), load)
        except UserError as error:
            return {"error": str(error)}
        return {**out, "broken": [name for name in broken if name], "seen": len(real)}

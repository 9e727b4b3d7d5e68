"""The making of one batch: images read, cropped and resized by threads, unreadable ones replaced or marked."""

import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from deit_jax.data import batch as batches
from deit_jax.data import images, order
from deit_jax.data.base import Source
from deit_jax.data.batch import MAX_LABELS, UNREADABLE
from deit_jax.errors import UserError

CHUNK = 8  # images per task of the decoding threads
GIVE_UP = 64  # unreadable images in a row that mean something else is wrong

Unreadable = tuple[int, str]  # position of an image, and what is said of it


@functools.cache
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="decode")


def _fill(threads: int, count: int, load: Callable[[int], None]) -> None:
    """load(0) … load(count - 1) by `threads` threads; the first exception is raised."""

    def chunk(first):
        for row in range(first, min(first + CHUNK, count)):
            load(row)

    spread = map if threads == 1 else _pool(threads).map
    for _ in spread(chunk, range(0, count, CHUNK)):
        pass


def read(source: Source, index: int, decode: Callable = images.decode) -> tuple[Any, dict[str, Any]]:
    """What `decode` makes of one image, and the sample it is from. Raises OSError naming an unreadable image,
    UserError for a label outside the classes."""
    name = f"image {index}"
    try:
        sample = source[index]
        name = sample["name"]
        decoded = decode(sample["image"])
    except OSError as error:
        raise OSError(f"{name} ({error})") from error
    if not 0 <= sample["label"] < source.num_classes:
        raise UserError(
            f"{name} has label {sample['label']}: labels of {source.num_classes} classes are "
            f"0 to {source.num_classes - 1}"
        )
    return decoded, sample


@dataclasses.dataclass(frozen=True)
class TrainBatch:
    """Step → training batch, with the positions and names of unreadable images under "broken", once per view; or
    {"error": message}."""

    source: Source
    size: int
    rows: slice
    threads: int
    seed: int
    batch: int
    drop_last: bool
    repeats: int
    mix_group: int
    fast: bool
    scale: tuple[float, ...]
    ratio: tuple[float, ...]
    exif: bool
    removed: frozenset[int] = frozenset()

    def __call__(self, step: int) -> dict[str, Any]:
        epoch, index, repeat = order.batch_views(
            int(step),
            seed=self.seed,
            length=len(self.source),
            batch=self.batch,
            drop_last=self.drop_last,
            repeats=self.repeats,
            mix_group=self.mix_group,
        )
        index, repeat = index[self.rows], repeat[self.rows]
        out = batches.zeros(batches.train_entries(self.size), len(index))
        out["index"][:], out["epoch"][:], out["repeat"][:] = index, epoch, repeat
        # Repeated augmentation has several views of an image in a batch: it is read once for all of them.
        found, first, inverse = np.unique(index, return_index=True, return_inverse=True)
        rows = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
        broken: list[list[Unreadable]] = [[] for _ in found]

        def load(which):
            views = repeat[rows[which]].tolist()
            position, pixels, boxes, label = self.readable(int(found[which]), epoch, views, broken[which])
            for row, box in zip(rows[which], boxes, strict=True):
                out["image"][row] = images.random_resized_crop(pixels, box, self.size, fast=self.fast)
                out["label"][row], out["index"][row] = label, position

        try:
            _fill(self.threads, len(found), load)
        except UserError as error:
            return {"error": str(error)}
        views = [image for which in np.argsort(first) for image in broken[which] * len(rows[which])]
        return out | {"broken": views}

    def readable(
        self, index: int, epoch: int, views: list[int], broken: list[Unreadable]
    ) -> tuple[int, np.ndarray, list[images.Box], int]:
        """Position, pixels, one box per view, and label of the first image from `index` on that can be read; the
        others are added to `broken`, but for the removed ones. Raises UserError where too many in a row cannot."""
        onward = ((index + k) % len(self.source) for k in range(len(self.source)))
        for position in itertools.islice((p for p in onward if p not in self.removed), GIVE_UP):

            def draw(height: int, width: int, position=position) -> list[images.Box]:
                keys = [order.generator(self.seed, "crop", epoch, position, view) for view in views]
                return [images.draw_crop(key, height, width, self.scale, self.ratio) for key in keys]

            try:
                (pixels, boxes), sample = read(
                    self.source, position, lambda image, draw=draw: images.decode_boxes(image, draw, self.exif)
                )
                return position, pixels, boxes, sample["label"]
            except OSError as error:
                broken.append((position, str(error)))
        if not broken:
            raise UserError(f"all {len(self.source)} training images were removed: restore them")
        raise UserError(f"{len(broken)} images in a row cannot be read, the first: {broken[0][1]}")


@dataclasses.dataclass(frozen=True)
class EvalBatch:
    """Batch number → evaluation batch, with the unreadable images' positions and names under "broken" and the images'
    number under "seen"; or {"error": message}.

    Of images that may have several right labels (imagenet2012_real), those that have none are masked out, as Beyer et
    al. 2020 count.
    """

    source: Source
    size: int
    rows: slice
    threads: int
    batch: int
    crop: float
    exif: bool
    skip: bool
    interpolation: str
    fit: str = "short"

    def __call__(self, number: int) -> dict[str, Any]:
        indices = number * self.batch + np.arange(self.rows.start, self.rows.stop)
        real = np.flatnonzero(indices < len(self.source))
        several = getattr(self.source, "several_labels", False)
        out = batches.zeros(batches.eval_entries(self.size, several), len(indices))
        out["mask"][real] = 1
        if several:
            out["labels"][:] = -1
        broken = [""] * len(real)

        def load(row: int) -> None:
            try:
                pixels, sample = read(
                    self.source, int(indices[row]), lambda image: images.decode(image, exif=self.exif)
                )
            except OSError as error:
                broken[row] = str(error)
                out["label"][row], out["mask"][row] = UNREADABLE, not self.skip
                return
            out["label"][row] = sample["label"]
            if several:
                labels = sample["labels"][:MAX_LABELS]
                out["labels"][row, : len(labels)] = labels
                out["mask"][row] = len(labels) > 0
            out["image"][row] = images.eval_image(pixels, self.size, self.crop, self.interpolation, fit=self.fit)

        try:
            _fill(self.threads, len(real), load)
        except UserError as error:
            return {"error": str(error)}
        unreadable = [(int(indices[row]), name) for row, name in zip(real, broken, strict=True) if name]
        return {**out, "broken": unreadable, "seen": len(real)}

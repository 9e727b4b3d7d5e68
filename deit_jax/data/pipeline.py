"""Source → batches (see `deit_jax.data.batch`). The k-th batch is a pure function of (config.seed, k), however many
workers make it.

Each process gets its rows of the global batch of B: rows [p * B / P, (p + 1) * B / P) go to process p of P. In an
evaluation of images that may have several right labels (imagenet2012_real), those that have none are masked out, as
Beyer et al. 2020 count.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.util
import itertools
import logging
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from deit_jax.config import Config
from deit_jax.data import batch as batches
from deit_jax.data import images, order
from deit_jax.data.base import Source
from deit_jax.data.batch import MAX_LABELS, UNREADABLE, Batch
from deit_jax.data.removed import removed_positions
from deit_jax.errors import UserError, shown
from deit_jax.runtime import hardware

log = logging.getLogger(__name__)

Unreadable = tuple[int, str]  # position of an image, and what is said of it

_named: set[str] = set()  # unreadable evaluation images that were warned of

ENDLESS = 1 << 40  # steps
CHUNK = 8  # images per task of the decoding threads
GIVE_UP = 64  # unreadable images in a row that mean something else is wrong
MIN_VIEWS = 1000  # before the share of unreadable images is judged


def steps_per_epoch(config: Config, source: Source) -> int:
    """Batches of one pass over the training images (`data.drop_last`). Raises UserError where they fill none."""
    if len(source) < config.batch_size:
        unit = config.accumulate * jax.device_count()  # which a batch has to be divisible by
        raise UserError(
            f"batch_size {config.batch_size} is more than the {len(source)} training images: use "
            f"--config.batch_size={max(len(source) // unit, 1) * unit}"
        )
    return order.epoch_steps(len(source), config.batch_size, config.data.drop_last)


def train_batches(
    config: Config,
    source: Source,
    *,
    size: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    labels: Any = None,
    on_broken: Callable[[Source, int], None] | None = None,
) -> "TrainBatches":
    """Endless training batches of steps start, start + 1, …; starting late costs nothing.

    Args:
      size: of the images, pixels per side.
      labels: a teacher's stored ones (deit_jax.distill.label_reader.BatchLabels), which become entries of the batch.
      on_broken: called with the source and the position of each image that cannot be read, once.

    Returns:
      An iterator that counts unreadable images in `.broken` (of `.seen`); each is replaced by the next that can be
      read. `.close()` ends its threads and processes.

    Raises:
      UserError: where there is not one whole batch; while iterating, where more images are unreadable than
        `data.max_broken` and `data.broken_floor` allow.
    """
    steps_per_epoch(config, source)
    if config.data.resize == "fast" and not importlib.util.find_spec("cykooz_resizer"):
        raise UserError("data.resize is 'fast', which needs cykooz-resizer: pip install cykooz-resizer, or use exact")
    make = TrainBatch(
        source=source,
        size=size,
        rows=process_rows(config.batch_size, process_index, process_count),
        threads=_threads(config),
        seed=config.seed,
        batch=config.batch_size,
        drop_last=config.data.drop_last,
        repeats=config.augment.repeats,
        mix_group=config.augment.mix_group,
        fast=config.data.resize == "fast",
        scale=tuple(config.augment.crop_scale),
        ratio=tuple(config.augment.crop_ratio),
        exif=config.data.exif,
        removed=removed_positions(source),
    )
    if labels is not None:
        make = labels.into(make)
    return TrainBatches(
        _ahead(config, make, start, ENDLESS), config.data.max_broken, config.data.broken_floor,
        functools.partial(on_broken, source) if on_broken else None,
    )  # fmt: skip


def eval_batches(
    config: Config,
    source: Source,
    *,
    size: int,
    process_index: int = 0,
    process_count: int = 1,
    on_broken: Callable[[Source, int], None] | None = None,
) -> "EvalBatches":
    """Every image once, in order; the last batch is padded, and every process yields the same number of batches.

    Args:
      on_broken: called with the source and the position of each image that cannot be read.

    Returns:
      An iterator. An image that cannot be read is named in a warning and in `.broken`, and counts as wrong or is
      skipped, as `data.eval_broken` says.

    Raises:
      UserError: while iterating, where none of the images can be read.
    """
    batch = config.data.eval_batch_size or config.batch_size
    make = EvalBatch(
        source=source,
        size=size,
        rows=process_rows(batch, process_index, process_count),
        threads=_threads(config),
        batch=batch,
        crop=config.data.crop,
        exif=config.data.exif,
        skip=config.data.eval_broken == "skip",
        interpolation=config.data.interpolation,
    )
    return EvalBatches(
        _ahead(config, make, 0, -(-len(source) // batch)), skip=make.skip,
        on_broken=functools.partial(on_broken, source) if on_broken else None,
    )  # fmt: skip


def process_rows(batch: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that one process holds."""
    if batch % process_count:
        near = max(1, round(batch / process_count)) * process_count
        raise UserError(f"batch size {batch} is not divisible by {process_count} processes: use {near}")
    share = batch // process_count
    return slice(process_index * share, (process_index + 1) * share)


def _threads(config: Config) -> int:
    return config.data.threads or max(1, min(16, hardware.cores() // max(1, config.data.workers)))


def _ahead(config: Config, make: Any, start: int, stop: int) -> Any:
    """make(start), make(start + 1), … with `data.prefetch` batches held ready by threads or worker processes."""
    steps = grain.MapDataset.range(start, stop).map(make)
    workers, ready = config.data.workers, max(1, config.data.prefetch)
    if workers:
        ready = -(-ready // workers)
        if not flags.FLAGS.is_parsed():  # Grain reads its own flags, which only absl's app.run parses
            flags.FLAGS.mark_as_parsed()
    # A second thread starts the next batch while the first waits for its last images.
    options = grain.ReadOptions(num_threads=min(2, make.threads, ready), prefetch_buffer_size=ready)
    batches = steps.to_iter_dataset(options)
    if workers:
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ready))
    return iter(batches)


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


class EvalBatches:
    """Iterator over evaluation batches that names the images that cannot be read, each once per process.

    Attributes:
      broken: what was said of each, so far.
      seen: images met so far, readable or not.
    """

    def __init__(self, batches: Any, *, skip: bool, on_broken: Callable[[int], None] | None = None):
        self._batches, self._skip, self._on_broken = batches, skip, on_broken
        self.broken: list[str] = []
        self.seen = 0

    def __iter__(self) -> "EvalBatches":
        return self

    def __next__(self) -> Batch:
        try:
            batch = dict(_unwrapped(next(self._batches)))
        except StopIteration:
            if self.broken and len(self.broken) == self.seen:
                raise UserError(
                    f"none of the {self.seen} evaluation images can be read, the first: {self.broken[0]}"
                ) from None
            if self.broken:
                how = "are left out" if self._skip else "count as wrong"
                log.warning("%d of %d evaluation images cannot be read: they %s", len(self.broken), self.seen, how)
            raise
        for position, name in batch.pop("broken"):
            if name not in _named:
                log.warning("evaluation image cannot be read: %s", shown(name))
                _named.add(name)
            if self._on_broken:
                self._on_broken(position)
            self.broken.append(name)
        self.seen += batch.pop("seen")
        return batch

    def close(self) -> None:
        """End the threads and processes that read ahead."""
        self._batches.close()


def _unwrapped(batch: dict[str, Any]) -> dict[str, Any]:
    """Errors travel from the workers as values: an exception would lose its type on the way."""
    if "error" in batch:
        raise UserError(batch["error"])
    return batch


@dataclasses.dataclass(frozen=True)
class EvalBatch:
    """Batch number → evaluation batch, with the unreadable images' positions and names under "broken" and the images'
    number under "seen"; or {"error": message}."""

    source: Source
    size: int
    rows: slice
    threads: int
    batch: int
    crop: float
    exif: bool
    skip: bool
    interpolation: str

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
            out["image"][row] = images.eval_image(pixels, self.size, self.crop, self.interpolation)

        try:
            _fill(self.threads, len(real), load)
        except UserError as error:
            return {"error": str(error)}
        unreadable = [(int(indices[row]), name) for row, name in zip(real, broken, strict=True) if name]
        return {**out, "broken": unreadable, "seen": len(real)}


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


class TrainBatches:
    """Iterator over training batches that counts the unreadable images on the way.

    Attributes:
      broken: views whose image could not be read and was replaced, so far.
      seen: views so far.
    """

    def __init__(self, batches: Any, max_broken: float, floor: int, on_broken: Callable[[int], None] | None = None):
        self._batches, self._max_broken, self._floor, self._on_broken = batches, max_broken, floor, on_broken
        self._named: set[str] = set()
        self.seen = self.broken = 0

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> Batch:
        batch = dict(_unwrapped(next(self._batches)))
        self._count(len(batch["label"]), batch.pop("broken"))
        return batch

    def close(self) -> None:
        """End the threads and processes that read ahead."""
        self._batches.close()

    def _count(self, views: int, broken: list[Unreadable]) -> None:
        self.seen += views
        self.broken += len(broken)
        for position, name in broken:
            if name not in self._named:
                log.warning("unreadable image, replaced by the next: %s", shown(name))
                self._named.add(name)
                if self._on_broken:
                    self._on_broken(position)
        too_many = self.broken > self._max_broken * self.seen and len(self._named) > self._floor
        if self.seen >= MIN_VIEWS and too_many:
            raise UserError(
                f"{self.broken} of {self.seen} views of training images cannot be read, of {len(self._named)} files,"
                f" e.g. {min(self._named)}: remove them and start the same command again, or raise data.max_broken"
                f" above {self.broken / self.seen:.2g} or data.broken_floor to {len(self._named)} or more"
            )

"""Source → batches (see `deit_jax.data.batch`). The k-th batch is a pure function of (config.seed, k), however many
workers make it.

Each process gets its rows of the global batch of B: rows [p * B / P, (p + 1) * B / P) go to process p of P.
"""

import functools
import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import grain
import jax
from absl import flags

from deit_jax.config import Config
from deit_jax.data import order
from deit_jax.data.assemble import EvalBatch, TrainBatch, Unreadable
from deit_jax.data.base import Source
from deit_jax.data.batch import Batch
from deit_jax.data.removed import removed_positions
from deit_jax.errors import UserError, printable
from deit_jax.runtime import hardware

log = logging.getLogger(__name__)

_named: set[str] = set()  # unreadable evaluation images that were warned of

ENDLESS = 1 << 40  # steps
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
        _ahead(config, make, start, ENDLESS),
        config.data.max_broken,
        config.data.broken_floor,
        functools.partial(on_broken, source) if on_broken else None,
    )


def eval_batches(
    config: Config,
    source: Source,
    *,
    size: int,
    process_index: int = 0,
    process_count: int = 1,
    on_broken: Callable[[Source, int], None] | None = None,
    fit: str = "short",
) -> "EvalBatches":
    """Every image once, in order; the last batch is padded, and every process yields the same number of batches.

    Args:
      on_broken: called with the source and the position of each image that cannot be read.
      fit: as `eval_image`.

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
        fit=fit,
    )
    return EvalBatches(
        _ahead(config, make, 0, -(-len(source) // batch)),
        skip=make.skip,
        on_broken=functools.partial(on_broken, source) if on_broken else None,
    )


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
                log.warning("evaluation image cannot be read: %s", printable(name))
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
                log.warning("unreadable image, replaced by the next: %s", printable(name))
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

"""Source → batches (see `deit_jax.data.batch`). The k-th batch is a pure function of (config.seed, k), however many
workers make it.

Each process gets its rows of the global batch of B: rows [p * B / P, (p + 1) * B / P) go to process p of P.
"""

import collections
import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import grain
import jax
from absl import flags

from deit_jax.augment.mix import num_groups
from deit_jax.config import Config
from deit_jax.data.assemble import EvalBatchMaker, TrainBatchMaker, decoding_threads, epoch_steps, read, run_in_threads
from deit_jax.data.base import Source
from deit_jax.data.batch import Batch
from deit_jax.data.device_crops import Cut, open_crops
from deit_jax.data.images import read_header
from deit_jax.data.replay import ReplayBatchMaker
from deit_jax.errors import UserError, printable

log = logging.getLogger(__name__)

MAX_STEPS = 1 << 40
MIN_VIEWS = 1000  # before the fraction of unreadable images is judged
NAMED = 10  # unreadable images named one by one; the others are counted


def steps_per_epoch(config: Config, source: Source) -> int:
    """Batches of one pass over the training images (`data.drop_last`). Raises UserError where they fill none."""
    if len(source) < config.batch_size:
        unit = config.accumulate * jax.device_count()  # which a batch has to be divisible by
        raise UserError(
            f"batch_size {config.batch_size} is more than the {len(source)} training images: use"
            f" --config.batch_size={max(len(source) // unit, 1) * unit}"
        )
    groups = num_groups(config.batch_size, config.augment.mix_group)
    if config.label.views and config.batch_size % groups:
        raise UserError(f"label.views needs a batch_size of whole groups: a multiple of {config.augment.mix_group}")
    return epoch_steps(len(source), config.batch_size, config.data.drop_last)


def train_batches(
    config: Config,
    source: Source,
    *,
    size: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    stored_labels: Callable[[int, slice], Batch] | None = None,
) -> "BatchIterator":
    """Endless training batches of steps start, start + 1, …; starting late costs nothing.

    Args:
      size: of the images, pixels per side.
      stored_labels: (step, rows) → a teacher's entries of the batch: `deit_jax.distill.label_reader.StoredLabels`.

    Unreadable images are counted; each is replaced by the next readable one. Raises UserError where there is not one
    whole batch; while iterating, where more are unreadable than `data.max_broken` and `data.broken_floor` allow.
    """
    steps_per_epoch(config, source)  # raises
    if config.data.resize == "fast" and not importlib.util.find_spec("cykooz_resizer"):
        raise UserError("data.resize is 'fast', which needs cykooz-resizer: pip install cykooz-resizer, or use exact")
    rows = process_rows(config.batch_size, process_index, process_count)
    source, cut = open_crops(source, size)
    kind = ReplayBatchMaker if config.label.views else TrainBatchMaker
    make = kind(source, config, size, rows, decoding_threads(config), stored_labels, crops_on_host=cut is None)
    return BatchIterator(config, _prefetch(config, make, start, MAX_STEPS), cut)


def eval_batches(
    config: Config, source: Source, *, size: int, fit: str = "short", process_index: int = 0, process_count: int = 1
) -> "EvalBatchIterator":
    """Every image once, in order; the last batch is padded, and every process yields the same number of batches.

    size: of the images, pixels per side. fit: as `eval_image`. An unreadable image is named in `.broken`, and counts as
    wrong or is skipped, as `data.eval_broken` says. Raises UserError, while iterating, where none can be read.
    """
    batch = config.data.eval_batch_size or config.batch_size
    rows = process_rows(batch, process_index, process_count)
    make = EvalBatchMaker(source, config, size, rows, decoding_threads(config), batch, fit)
    return EvalBatchIterator(config, _prefetch(config, make, 0, -(-len(source) // batch)))


def check_headers(config: Config, source: Source) -> list[str]:
    """Read the header of every evaluation image, and warn of those that are not images, before an epoch is spent.

    Returns the unreadable images' names and errors.
    """
    broken: dict[int, str] = {}

    def check(index: int) -> None:
        try:
            read(source, index, read_header)
        except OSError as error:
            broken[index] = str(error)

    run_in_threads(decoding_threads(config), len(source), check, "headers of evaluation images")
    errors = [broken[index] for index in sorted(broken)]
    for error in errors[:NAMED]:
        log.warning("evaluation image cannot be read: %s", printable(error))
    if errors:
        log.warning("%d of %d evaluation images cannot be read", len(errors), len(source))
    return errors


def process_rows(batch: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that one process holds."""
    if batch % process_count:
        near = max(1, round(batch / process_count)) * process_count
        raise UserError(f"batch size {batch} is not divisible by {process_count} processes: use {near}")
    rows = batch // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def _prefetch(config: Config, make: TrainBatchMaker | EvalBatchMaker, start: int, stop: int) -> Any:
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


class BatchIterator:
    """Iterator over batches that counts unreadable images. `cut` makes the images of batches that have boxes.

    Attributes:
      broken: views per unreadable image so far, by its name and error.
      seen: views so far.
    """

    def __init__(self, config: Config, batches: Any, cut: Cut | None = None):
        self._config, self._batches, self._cut = config, batches, cut
        self.broken: collections.Counter[str] = collections.Counter()
        self.seen = 0

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        batch = dict(next(self._batches))
        if "error" in batch:  # errors travel from the workers as values: an exception would lose its type on the way
            raise UserError(batch["error"])
        self.seen += batch.pop("seen")
        self.count(batch.pop("broken"))
        if self._cut:
            batch["image"] = self._cut(batch["index"], batch.pop("box"))
        return batch

    def close(self) -> None:
        """End the threads and processes that read ahead."""
        self._batches.close()

    def count(self, names: list[str]) -> None:
        """Count a batch's unreadable images and name the new ones. Raises UserError where there are too many."""
        for name in names:
            if name not in self.broken:
                log.warning("unreadable image, replaced by the next: %s", printable(name))
            self.broken[name] += 1
        views, files, data = self.broken.total(), len(self.broken), self._config.data
        if self.seen >= MIN_VIEWS and views > data.max_broken * self.seen and files > data.broken_floor:
            raise UserError(
                f"{views} of {self.seen} views of training images cannot be read, of {files} files, e.g."
                f" {min(self.broken)}: repair them, or raise data.max_broken above {views / self.seen:.2g}"
            )


class EvalBatchIterator(BatchIterator):
    """Iterator over evaluation batches that counts unreadable images, and reports them once at the end."""

    def __next__(self) -> Batch:
        try:
            return super().__next__()
        except StopIteration:
            self.report()
            raise

    def count(self, names: list[str]) -> None:
        self.broken.update(names)

    def report(self) -> None:
        """Warn of the unreadable images. Raises UserError where no image could be read."""
        names = [printable(name) for name in self.broken]
        if names and len(names) == self.seen:
            raise UserError(f"none of the {self.seen} evaluation images can be read, the first: {names[0]}")
        if names:
            how = "are left out" if self._config.data.eval_broken == "skip" else "count as wrong"
            some = "; ".join(names[:NAMED]) + (" …" if len(names) > NAMED else "")
            log.warning("%d of %d evaluation images cannot be read: they %s: %s", len(names), self.seen, how, some)

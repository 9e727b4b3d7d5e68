"""The batches of a run, from any position on."""

import jax

from deit_jax.data import loader
from deit_jax.train.run import Run


class Stream:
    """This process's rows of each training batch, endless: after the run's last batch comes its first again.

    Only a run that was rolled back, whose data is ahead of its step, gets that far.

    Attributes:
        broken: unreadable images met so far, each replaced by the next that can be read.
    """

    def __init__(self, run: Run, position: int):
        self.run, self.broken = run, 0
        self.open(position)

    def open(self, position: int) -> None:
        self.position = position % self.run.total_steps
        self.before = self.broken
        self.batches = loader.train_batches(
            self.run.config,
            self.run.data.train,
            size=self.run.student.img_size,
            start=self.position,
            labels=self.run.labels,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def seek(self, position: int) -> None:
        """Go on from the batch at `position`, counted round the end of the run."""
        self.close()
        self.open(position)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> loader.Batch:
        if self.position == self.run.total_steps:
            self.seek(0)
        batch = next(self.batches)
        self.position += 1
        self.broken = self.before + self.batches.broken.total()
        return batch

    def close(self) -> None:
        """End the threads and processes that read ahead."""
        self.batches.close()

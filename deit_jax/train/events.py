"""TensorBoard events, written by the calling thread: a writer thread that dies (full disk) would hang the run."""

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from deit_jax.runtime import storage


class Events:
    """Scalars of a run as TensorBoard reads them; a resumed run hides what was written past its start.

    Every method may raise OSError; none blocks. Those of a run in a bucket are written to this machine's temporary
    folder, and copied by `flush` and `close`.
    """

    def __init__(self, folder: Path, start: int):
        # tensorboardX takes 0.3 s to import, and only process 0 needs it
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self.messages: Any = event_pb2  # made at run time: its classes are unknown to type checkers
        self.scalar = summary.scalar
        Event, SessionLog = self.messages.Event, self.messages.SessionLog
        self.local, self.folder = folder, folder
        if storage.is_bucket(folder):
            self.local = Path(tempfile.mkdtemp(prefix="deit_jax-"))
        self.local.mkdir(parents=True, exist_ok=True)
        self.writer = EventsWriter(str(self.local / "events"))
        for event in (
            Event(step=start + 1, file_version="brain.Event:2"),
            Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)),
        ):
            self.writer.write_event(event)

    def write(self, step: int, values: dict[str, float], time: float) -> None:
        """Add scalars at `step`. time: seconds since 1970."""
        for name, value in values.items():
            self.writer.write_event(self.messages.Event(wall_time=time, step=step, summary=self.scalar(name, value)))

    def flush(self) -> None:
        self.writer.flush()
        self.copy()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what a full disk refuses is lost
            self.writer.close()
            self.copy()
        if self.local != self.folder:
            shutil.rmtree(self.local, ignore_errors=True)

    def copy(self) -> None:
        """Bring what was written to where it belongs."""
        if self.local != self.folder:
            for path in self.local.iterdir():
                (self.folder / path.name).write_bytes(path.read_bytes())

"""Experiment trackers: TensorBoard, and what `log.trackers` names.

Each gets the same metrics by the same names, the config, and after the report its pictures and the table of accuracies.
Its library is imported where it is used, and keeps its files and finds its server as in any other program.
"""

import contextlib
import importlib
import importlib.util
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from deit_jax.config import Config, flat
from deit_jax.errors import UserError, first_line, nearest

if TYPE_CHECKING:
    from deit_jax.train.run import Run

PROJECT = "deit_jax"
Pictures = dict[str, Path]  # by name
Table = list[list[str]]  # a header and rows; empty: none
Tracker = tuple[Callable[[int, dict[str, float], Pictures, Table], None], Callable[[], object]]  # log, close


def tensorboard(_: str, run: "Run", start: int) -> Tracker:
    """Events in the run's folder tensorboard/, which hide what a former start wrote past this one's first step.

    By tensorboardX's synchronous writer: that of `SummaryWriter` waits for ever for its thread, which a full disk ends.
    """
    import numpy as np
    from PIL import Image
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2

    (run.folder / "tensorboard").mkdir(parents=True, exist_ok=True)
    events, writer = cast(Any, event_pb2), EventsWriter(str(run.folder / "tensorboard" / "events"))
    write = lambda step, **content: writer.write_event(events.Event(wall_time=time.time(), step=step, **content))
    write(start + 1, session_log=events.SessionLog(status=events.SessionLog.START))
    write(start, summary=summary.text("config", "\n".join(f"    {k} = {v}" for k, v in flat(run.config).items())))

    def log(step, values, pictures, table):
        for name, value in values.items():
            write(step, summary=summary.scalar(name, value))
        for name, path in pictures.items():
            write(step, summary=summary.image(name, np.asarray(Image.open(path)), dataformats="HWC"))
        if table:
            lines = [" | ".join(row) for row in [table[0], ["---"] * len(table[0]), *table[1:]]]
            write(step, summary=summary.text("accuracy", "\n".join(lines)))
        writer.flush()

    return log, writer.close


def wandb(library: str, run: "Run", _: int) -> Tracker:
    """Weights & Biases, offline without an account; and trackio, which has its interface."""
    module, (name, number) = importlib.import_module(library), run_name(run)
    options = {"project": PROJECT, "name": name, "config": flat(run.config), "resume": "allow"}
    if library == "wandb":
        account = os.environ.get("WANDB_MODE") or module.login(prompt=False)
        options |= {"id": number} | ({} if account else {"mode": "offline"})
    begun = module.init(**options)

    def log(step, values, pictures, table):
        shown = values | {name: module.Image(str(path)) for name, path in pictures.items()}
        begun.log(shown | ({"accuracy": module.Table(columns=table[0], data=table[1:])} if table else {}), step=step)

    return log, module.finish


def mlflow(library: str, run: "Run", _: int) -> Tracker:
    """MLflow, at MLFLOW_TRACKING_URI or its default."""
    module, (name, _number) = importlib.import_module(library), run_name(run)
    module.set_experiment(PROJECT)
    query = {"experiment_names": [PROJECT], "filter_string": f'run_name = "{name}"', "output_format": "list"}
    found = [former.info.run_id for former in module.search_runs(**query)]
    module.start_run(*found[:1], run_name=name)
    if not found:
        module.log_params(flat(run.config))

    def log(step, values, pictures, table):
        module.log_metrics(values, step=step)
        for path in pictures.values():
            module.log_artifact(str(path))
        if table:
            module.log_table({heading: cells for heading, *cells in zip(*table, strict=True)}, "accuracy.json")

    return log, module.end_run


KNOWN = {"tensorboard": tensorboard, "trackio": wandb, "wandb": wandb, "mlflow": mlflow}


def run_name(run: "Run") -> tuple[str, str]:
    """(name, number) of the run for trackers. Its file tracker_id holds the number, which no other folder has, so that
    a later start continues the tracked run."""
    record = run.folder / "tracker_id"
    if not record.exists():
        record.write_text(uuid.uuid4().hex[:8])
    number = record.read_text()
    return "-".join([*run.folder.absolute().parts[-2:], number]), number


def tracker_names(config: Config) -> list[str]:
    """The trackers that a run has. Raises UserError for one that is not known or not installed."""
    given = [name.strip() for name in config.log.trackers.split(",") if name.strip()]
    for name in given:
        if name not in KNOWN:
            raise UserError(f"log.trackers: '{name}' is not known{nearest(name, KNOWN)}: use {', '.join(KNOWN)}")
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise UserError(f"log.trackers: {name} is not installed: pip install {name}")
    return list(dict.fromkeys([*["tensorboard"] * config.log.tensorboard, *given]))


class Trackers:
    """The trackers of a run, opened at step `start`. One that fails ends with one line, which `say` prints, and the run
    goes on."""

    def __init__(self, run: "Run", start: int, say: Callable[[str], None]):
        self.say, self.opened = say, {}
        for name in tracker_names(run.config):
            with self.ending(name):
                self.opened[name] = KNOWN[name](name, run, start)

    def log(
        self, step: int, values: dict[str, Any], pictures: Pictures | None = None, table: Table | None = None
    ) -> None:
        """Log the finite numbers among values; of the report also its pictures, and its table of accuracies."""
        finite = {k: float(v) for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
        for name, (log, _) in list(self.opened.items()):
            with self.ending(name):
                log(step, finite, pictures or {}, table or [])

    def close(self) -> None:
        for name, (_, close) in list(self.opened.items()):
            with self.ending(name):
                close()

    @contextlib.contextmanager
    def ending(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each library has errors of its own
            _, close = self.opened.pop(name, (None, None))
            if close:  # MLflow opens no run while another is open
                with contextlib.suppress(Exception):
                    close()
            self.say(f"the {name} log cannot be written, and ends here ({first_line(error)}): training continues")

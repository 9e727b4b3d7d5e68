"""Experiment trackers: TensorBoard, and what `log.trackers` names.

Each gets the same metrics by the same names, the config, and after the report its pictures and the table of accuracies.
Its library is imported where it is used, and keeps its files and finds its server as in any other program: trackio
below ~/.cache, mlflow and wandb in the folder the command was started in; wandb stays offline without an account.
"""

import contextlib
import functools
import importlib
import importlib.util
import math
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from deit_jax.config import Config, flat
from deit_jax.errors import UserError, first_line, nearest

if TYPE_CHECKING:
    from deit_jax.train.run import Run

PROJECT = "deit_jax"
OPTIONAL = ("trackio", "wandb", "mlflow")  # as pip and Python name them


class TensorBoard:
    """Events in the run's folder tensorboard/, which hide what a former start wrote past this one's first step.

    Written by tensorboardX's synchronous writer: that of `SummaryWriter` waits for ever for its thread, which a full
    disk ends.
    """

    def __init__(self, run: "Run", start: int, *_: str):
        from tensorboardX.event_file_writer import EventsWriter  # here: 0.3 s, and only process 0 needs it
        from tensorboardX.proto import event_pb2, summary_pb2

        folder = run.folder / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self.events, self.summaries = cast(Any, event_pb2), cast(Any, summary_pb2)  # their classes are made at run time
        self.writer = EventsWriter(str(folder / "events"))
        session = self.events.SessionLog(status=self.events.SessionLog.START)
        self.writer.write_event(self.events.Event(step=start + 1, session_log=session))
        if not start:
            self.text(0, "config", "\n".join(f"    {path} = {value}" for path, value in flat(run.config).items()))

    def write(self, step: int, summary: Any) -> None:
        self.writer.write_event(self.events.Event(wall_time=time.time(), step=step, summary=summary))

    def text(self, step: int, name: str, markdown: str) -> None:
        from tensorboardX.summary import text

        self.write(step, text(name, markdown))

    def log(self, step: int, values: dict[str, float]) -> None:
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self.write(step, scalar(name, value))
        if "eval/top1" in values:
            self.writer.flush()

    def report(self, step: int, pictures: dict[str, Path], table: list[list[str]]) -> None:
        from PIL import Image

        for name, path in pictures.items():
            width, height = Image.open(path).size
            image = {"width": width, "height": height, "colorspace": 4, "encoded_image_string": path.read_bytes()}
            value = self.summaries.Summary.Value(tag=name, image=self.summaries.Summary.Image(**image))
            self.write(step, self.summaries.Summary(value=[value]))
        lines = [" | ".join(row) for row in [table[0], ["---"] * len(table[0]), *table[1:]]]
        self.text(step, "accuracy", "\n".join(lines))
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """Weights & Biases, and trackio, which has its interface."""

    def __init__(self, library: str, run: "Run", start: int, name: str, number: str):
        self.library = importlib.import_module(library)
        options = {"project": PROJECT, "name": name, "config": flat(run.config), "resume": "allow"}
        if library == "wandb":
            account = os.environ.get("WANDB_MODE") or self.library.login(prompt=False)
            options |= {"id": number} | ({} if account else {"mode": "offline"})
        self.run = self.library.init(**options)

    def log(self, step: int, values: dict[str, Any]) -> None:
        self.run.log(values, step=step)

    def report(self, step: int, pictures: dict[str, Path], table: list[list[str]]) -> None:
        shown = {name: self.library.Image(str(path)) for name, path in pictures.items()}
        self.log(step, shown | {"accuracy": self.library.Table(columns=table[0], data=table[1:])})

    def close(self) -> None:
        self.library.finish()


class MLflow:
    """MLflow, at MLFLOW_TRACKING_URI or its default."""

    def __init__(self, run: "Run", start: int, name: str, number: str):
        mlflow = importlib.import_module("mlflow")
        self.metric, self.client = mlflow.entities.Metric, mlflow.MlflowClient()
        experiment = self.client.get_experiment_by_name(PROJECT)
        where = experiment.experiment_id if experiment else self.client.create_experiment(PROJECT)
        found = self.client.search_runs([where], f"tags.{PROJECT} = '{number}'")
        begun = found[0] if found else self.client.create_run(where, tags={PROJECT: number}, run_name=name)
        self.id = begun.info.run_id
        for path, value in () if found else flat(run.config).items():
            self.client.log_param(self.id, path, value)

    def log(self, step: int, values: dict[str, float]) -> None:
        now = int(1000 * time.time())
        self.client.log_batch(self.id, [self.metric(name, value, now, step) for name, value in values.items()])

    def report(self, step: int, pictures: dict[str, Path], table: list[list[str]]) -> None:
        for path in pictures.values():
            self.client.log_artifact(self.id, str(path))
        columns = zip(*table, strict=True)
        self.client.log_table(self.id, {name: list(values) for name, *values in columns}, "accuracy.json")

    def close(self) -> None:
        self.client.set_terminated(self.id)


KNOWN: dict[str, Callable[..., Any]] = {
    "tensorboard": TensorBoard,
    "trackio": functools.partial(Wandb, "trackio"),
    "wandb": functools.partial(Wandb, "wandb"),
    "mlflow": MLflow,
}


def tracker_names(config: Config) -> list[str]:
    """The trackers that a run has. Raises UserError for one that is not known or not installed."""
    given = [name.strip() for name in config.log.trackers.split(",") if name.strip()]
    for name in given:
        if name not in KNOWN:
            raise UserError(f"log.trackers: '{name}' is not known{nearest(name, KNOWN)}: use {', '.join(KNOWN)}")
        if name in OPTIONAL and importlib.util.find_spec(name) is None:
            raise UserError(f"log.trackers: {name} is not installed: pip install {name}")
    return list(dict.fromkeys([*["tensorboard"] * config.log.tensorboard, *given]))


class Trackers:
    """The trackers of a run. One that fails ends with one line, and the run goes on.

    Args:
        run: what is tracked; a later start of it continues the same one.
        start: the step it begins or resumes at.
        say: prints a line.
    """

    def __init__(self, run: "Run", start: int, say: Callable[[str], None]):
        self.say, names = say, tracker_names(run.config)
        self.opened: dict[str, Any] = dict.fromkeys(names)
        number = run_number(run.folder) if set(names) - {"tensorboard"} else ""
        name = "-".join([*run.folder.absolute().parts[-2:], number])
        self.each(lambda tracker: self.opened.update({tracker: KNOWN[tracker](run, start, name, number)}))

    def each(self, call: Callable[[str], Any]) -> None:
        """Call it with the name of each tracker."""
        for tracker in list(self.opened):
            try:
                call(tracker)
            except Exception as error:  # each library has errors of its own
                del self.opened[tracker]
                self.say(
                    f"the {tracker} log cannot be written, and ends here ({first_line(error)}): training continues"
                )

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Log the finite numbers among values."""
        finite = {k: float(v) for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
        self.each(lambda tracker: self.opened[tracker].log(step, finite))

    def report(self, step: int, pictures: dict[str, Path], table: list[list[str]]) -> None:
        """Log the report's pictures, by name, and its table of accuracies, a header and rows."""
        self.each(lambda tracker: self.opened[tracker].report(step, pictures, table))

    def close(self) -> None:
        self.each(lambda tracker: self.opened[tracker].close())


def run_number(folder: Path) -> str:
    """Eight characters that name the run in a folder and no other; made where it has none."""
    record = folder / "tracker_id"
    number = record.read_text() if record.exists() else uuid.uuid4().hex[:8]
    with contextlib.suppress(OSError):  # a full disk ends no training
        record.write_text(number)
    return number

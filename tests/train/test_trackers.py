"""Trackers: what each gets, that a later start continues, and that none ends a run."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from deit_jax.config import default_config, resolve
from deit_jax.errors import UserError
from deit_jax.train.trackers import Trackers, tracker_names

FAKE = """
import json, os
calls = []
Image, Table = (lambda path: ["image", os.path.basename(path)]), (lambda columns, data: ["table", columns, data])
login = lambda prompt: False
def init(**options):
    calls.append(["init", options])
    import types
    return types.SimpleNamespace(log=log)
def log(values, step):
    if step == 13:
        raise RuntimeError("the server is\\ngone")
    calls.append(["log", step, values])
finish = lambda: calls.append(["finish"])
"""
TABLE = [["model", "top-1 %"], ["deit", "81.80"]]


@pytest.fixture
def run(tmp_path):
    config = resolve(default_config())
    config.log.tensorboard = False
    folder = tmp_path / "runs" / "one" / "teacher"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / "curves.png")
    return SimpleNamespace(config=config, folder=folder)


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    for name in ("trackio", "wandb"):
        (tmp_path / f"{name}.py").write_text(FAKE)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    yield
    for name in ("trackio", "wandb"):
        sys.modules.pop(name, None)


def track(run, start, say=print):
    """One start of a run: two lines of its log, then the report."""
    trackers = Trackers(run, start, say)
    trackers.log(start + 1, {"eval/dist/top1": 50.0, "loss": math.nan, "note": "text"})
    trackers.log(start + 2, {"loss": 1})
    trackers.log(start + 2, {}, {"curves": run.folder / "curves.png"}, TABLE)
    trackers.close()


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_metrics_config_pictures_and_table_reach_the_library(run, fakes, name):
    run.config.log.trackers = name
    for start in (0, 2):
        track(run, start)
    calls = sys.modules[name].calls
    first, second = (options for kind, *options in calls if kind == "init")
    assert first == second, "the later start continues the tracked run"
    options = first[0]
    assert (options["config"]["optimizer.lr"], options["resume"]) == (run.config.optimizer.lr, "allow")
    number = (run.folder / "tracker_id").read_text()
    assert options["name"] == f"one-teacher-{number}"
    assert (options.get("id"), options.get("mode")) == ((number, "offline") if name == "wandb" else (None, None))
    assert calls[1:5] == [
        ["log", 1, {"eval/dist/top1": 50.0}],
        ["log", 2, {"loss": 1.0}],
        ["log", 2, {"curves": ["image", "curves.png"], "accuracy": ["table", TABLE[0], TABLE[1:]]}],
        ["finish"],
    ]


def test_a_tracker_that_fails_ends_with_one_line_and_the_others_go_on(run, fakes):
    run.config.log.trackers = "trackio, wandb"
    said = []
    trackers = Trackers(run, 0, said.append)
    sys.modules["wandb"].calls.clear()
    trackers.opened["trackio"] = (lambda *_: 1 / 0), None
    for step in (12, 14):
        trackers.log(step, {"loss": 1.0})
    assert [call[1] for call in sys.modules["wandb"].calls] == [12, 14]
    trackers.log(13, {"loss": 1.0})
    trackers.close()
    end = "training continues"
    assert said == [
        f"the trackio log cannot be written, and ends here (division by zero): {end}",
        f"the wandb log cannot be written, and ends here (the server is): {end}",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("wandbb", r"log.trackers: 'wandbb' is not known \(did you mean wandb\?\): use tensorboard, trackio, wandb"),
        ("trackio", r"log.trackers: trackio is not installed: pip install trackio"),
    ],
)
def test_a_tracker_that_is_missing_is_named_before_training(run, monkeypatch, given, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run.config.log.trackers = given
    with pytest.raises(UserError, match=message):
        tracker_names(run.config)


def test_tensorboard_gets_the_picture_and_the_table(run):
    run.config.log.trackers = "tensorboard"
    track(run, 0)
    events = b"".join(path.read_bytes() for path in (run.folder / "tensorboard").glob("events*"))
    for part in (
        b"eval/dist/top1",
        b"curves",
        b"\x89PNG",
        b"deit | 81.80",
        b"optimizer.lr = ",
    ):
        assert part in events
    assert not (run.folder / "tracker_id").exists()
